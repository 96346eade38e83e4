"""The losses of one question answered as the SDK answers it: places picked by the model's own score, all their patches of every scale.

The last stage of training, four times as dear per question as windows: it teaches to find what was asked among all that was picked.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .examples import LOW_GRID, SCALES, Example, normalised
from .joint import UNSEEN, Joint, places_of, shares
from .nano import NOT_SEEN
from .reading import GRID, PATCH_PX, slot_loss


class Closely(Joint):
    """places: how many low-res places are looked at closely, 6 for a budget of 724 patches | true_share: of looks whose places are
    mixed with the right ones, so that reading is learnt while looking is not yet certain."""

    def __init__(self, model, reader, places: int = 6, true_share: float = 0.5):
        super().__init__(model, reader)
        self.places, self.true_share = places, true_share

    def forward(self, example: Example, rng: np.random.Generator, looks: int = 2) -> tuple[Tensor, dict[str, float]]:
        """Where gradients are kept, each look answers every question that it shows; else the one that it was made for, as the SDK does.
        An example without windows is only looked at, as in Joint."""
        vision, chat, learning = self.model.vision.vision_model, self.model.chat, torch.is_grad_enabled()
        seen, score, low_rows = self.see_low(example)
        questions = [chat._encode("\n" + prompt) for prompt, *_ in example.asked]
        _, kv = self.read_prefix(low_rows)
        prompts = self.model.projector.prompt(self.read_prompts(kv, questions))
        truth = torch.stack([place for *_, place in example.asked]).float().to(self.device)
        losses = {}
        losses["where"], measures = self.where(score, prompts, truth)
        losses["prior"], _ = self.where(score, vision.prior_prompt[None], example.signs.float()[None].to(self.device))
        if not len(example.windows):
            return losses["where"] + 0.3 * losses["prior"], {**{k: float(v.detach()) for k, v in losses.items()}, **measures}
        prob, truth = self.told_places(score, prompts, truth), truth.flatten(1)
        all_losses, all_slots, all_right, all_answers = [], [], [], []
        for lead in range(min(looks, len(questions))):
            wanted = prob[lead] + truth[lead] if learning and rng.random() < self.true_share else prob[lead]
            picked = wanted.topk(self.places).indices.sort().values
            kept, answers = self.told_there(example, truth, picked, rng) if learning else ([lead], [example.asked[lead][1]])
            rows, place, slots = self.look(example, seen, picked)
            rows = self.model.projector.told(rows[None], prob[kept][:, place])
            high_kv = self.model.llm(rows, [(k.expand(len(kept), -1, -1, -1), v.expand(len(kept), -1, -1, -1)) for k, v in kv])[1]
            loss, right = self.read_answers(high_kv, [questions[i] for i in kept], [chat._encode(answer) for answer in answers])
            all_losses.append(loss)
            all_right += right
            all_answers += answers
            all_slots.append(slots)
        losses["answer"], losses["slot"] = torch.stack(all_losses).mean(), torch.stack(all_slots).mean()
        total = losses["answer"] + losses["slot"] + losses["where"] + 0.3 * losses["prior"]
        return total, {**{k: float(v.detach()) for k, v in losses.items()}, **measures, **shares(all_right, all_answers)}

    def told_there(self, example: Example, truth: Tensor, picked: Tensor, rng) -> tuple[list[int], list[str]]:
        """Which questions are answered where the places in `picked` can be read, and how; those whose text is there in part are left out."""
        share = (truth[:, picked].sum(dim=1) / truth.sum(dim=1).clamp(min=1)).tolist()
        seen = [i for i, part in enumerate(share) if part == 1]
        unseen = [int(i) for i in rng.permutation(len(share)) if share[i] == 0][:UNSEEN]
        return seen + unseen, [example.asked[i][1] for i in seen] + [NOT_SEEN] * len(unseen)

    def look(self, example: Example, seen, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All patches of some low-res places, (k,) int64 ascending, seen together -> rows of the language model, scale by scale, each row's place,
        and the loss of what the halves of the 3780 px patches show."""
        patches, positions, all_ids = [], [], []
        for index, px in enumerate(SCALES, 1):
            side = px // PATCH_PX // LOW_GRID
            rows, columns = (cells // LOW_GRID).cpu()[:, None] * side + torch.arange(side), (cells % LOW_GRID).cpu()[:, None] * side + torch.arange(side)
            ids = (rows[:, :, None] * (px // PATCH_PX) + columns[:, None, :]).flatten().sort().values
            all_ids.append(ids.to(self.device))
            patches.append(normalised(example.frame, px, PATCH_PX, ids.numpy()).to(self.device))
            positions.append(self.positions(index, all_ids[-1]))
        high = self.see(torch.cat(patches)[None], torch.cat(positions)[None], seen.kv).hidden[-1][0]
        rows, place_of = [], []
        for index, (px, ids, tokens) in enumerate(zip(SCALES, all_ids, high.split([len(ids) for ids in all_ids])), 1):
            grid = px // PATCH_PX
            place = torch.full((grid * grid,), -1, device=self.device)
            place[ids] = torch.arange(len(ids), device=self.device)
            blocks = place.view(grid // 2, 2, grid // 2, 2).transpose(1, 2).reshape(-1, 4)
            whole = torch.nonzero((blocks >= 0).all(dim=1))[:, 0]
            rows.append(self.model.projector(tokens[blocks[whole]].flatten(1), index, whole, grid // 2))
            place_of.append(places_of(whole, grid // 2))
        labels = example.slots.reshape(GRID * GRID, 2)[all_ids[-1].cpu().numpy()].astype(np.int64)
        seen_slots = self.reader.head(self.reader.norm(high[-len(labels):])).unflatten(-1, (2, -1)).float()
        return torch.cat(rows), torch.cat(place_of), slot_loss(seen_slots, torch.from_numpy(labels).to(self.device))
