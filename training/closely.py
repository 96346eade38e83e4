"""The losses of one question answered as the SDK answers it: places picked by the model's own score, all their patches of every scale,
rows told how probable their place is, words said. It teaches to find what was asked among all that was picked.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .examples import LOW_GRID, SCALES, Example, normalised
from .looking import Looking, numbers, repeated, say, shares
from .nano import NOT_SEEN
from .reading import GRID, IGNORED, PATCH_PX, slot_loss

UNSEEN = 1      # questions about things that are not shown, per look, at most: they are answered by NOT_SEEN
TOLD = 0.2      # share of the questions whose places are told, so that reading is learnt while looking is not yet certain


class Closely(Looking):
    """places: how many low-res places are looked at closely, 4 for a budget of 482 patches | true_share: of looks at places that are right
    for several questions, so that reading is learnt while looking is not yet certain."""

    def __init__(self, model, reader, places: int = 4, true_share: float = 0.7):
        super().__init__(model, reader)
        self.places, self.true_share = places, true_share

    def forward(self, example: Example, rng: np.random.Generator, looks: int = 2) -> tuple[Tensor, dict[str, float]]:
        """Where gradients are kept, each look answers every question that it shows; else the one that it was made for, as the SDK does."""
        learning = torch.is_grad_enabled()
        losses, measures, seen, kv, questions, _, prob, truth = self.find(example)
        told = prob.detach()
        if learning:
            told = torch.where(torch.rand(len(told), 1, device=told.device) < TOLD, truth.clamp(0.01, 0.99), told)
        answer_losses, slot_losses, all_right, all_answers = [], [], [], []
        for lead in range(min(looks, len(questions))):
            wanted = prob[lead].detach()
            if learning and rng.random() < self.true_share:
                wanted = wanted + self.right_places(truth, lead, rng)
            picked = wanted.topk(self.places).indices.sort().values
            kept, answers = self.told_there(example, truth, picked, lead, rng) if learning else ([lead], [example.asked[lead][1]])
            rows, place, slots = self.look(example, seen, picked)
            slot_losses.append(slots)
            if not kept:
                continue
            loss, right = self.answer(self.model.projector.told(rows[None], told[kept][:, place]), kv, [questions[i] for i in kept], answers)
            answer_losses.append(loss)
            all_right += right
            all_answers += answers
        losses["answer"] = torch.stack(answer_losses).mean() if answer_losses else losses["where"] * 0
        losses["slot"] = torch.stack(slot_losses).mean()
        return losses["answer"] + losses["slot"] + self.looked(losses), {**numbers(losses), **measures, **shares(all_right, all_answers)}

    def right_places(self, truth: Tensor, lead: int, rng) -> Tensor:
        """Places of the text that question `lead` is about, and of others' texts as long as all fit: (729,) 0 or 1."""
        chosen = truth[lead].clone()
        for i in rng.permutation(len(truth)):
            more = torch.maximum(chosen, truth[int(i)])
            if more.sum() <= self.places:
                chosen = more
        return chosen

    def told_there(self, example: Example, truth: Tensor, picked: Tensor, lead: int, rng) -> tuple[list[int], list[str]]:
        """Which questions are answered where the places in `picked` can be read, and how; those whose text is there in part are left out.

        Of those that are not there the one that the look was made for comes first: what it found instead is most like what it was asked for.
        """
        share = (truth[:, picked].sum(dim=1) / truth.sum(dim=1).clamp(min=1)).tolist()
        seen = [i for i, part in enumerate(share) if part == 1]
        unseen = sorted((int(i) for i in rng.permutation(len(share)) if share[i] == 0), key=lambda i: i != lead)[:UNSEEN]
        return seen + unseen, [example.asked[i][1] for i in seen] + [NOT_SEEN] * len(unseen)

    def answer(self, rows: Tensor, kv, questions: list[list[int]], answers: list[str]) -> tuple[Tensor, list[bool]]:
        """Answer pass: high-res rows (q, k, width) behind the low-res ones, then question and answer."""
        said, targets = [], []
        for question, text in zip(questions, answers):
            answer = self.model.chat._encode(text) + self.end_ids
            said.append(self.embed(question + self.tail_ids + answer[:-1]))
            targets.append(torch.tensor([IGNORED] * (rows.shape[1] + len(question) + len(self.tail_ids) - 1) + answer, device=self.device))
        rows = torch.cat([rows, nn.utils.rnn.pad_sequence(said, batch_first=True)], dim=1)
        return say(self.model.llm, rows, nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED), repeated(kv, len(questions)))

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
        high = self.model.vision.vision_model.trunk(torch.cat(patches)[None], torch.cat(positions)[None], seen.kv).hidden[-1][0]
        rows, place_of = [], []
        for index, (px, ids, tokens) in enumerate(zip(SCALES, all_ids, high.split([len(ids) for ids in all_ids])), 1):
            grid = px // PATCH_PX
            place = torch.full((grid * grid,), -1, device=self.device)
            place[ids] = torch.arange(len(ids), device=self.device)
            blocks = place.view(grid // 2, 2, grid // 2, 2).transpose(1, 2).reshape(-1, 4)
            whole = torch.nonzero((blocks >= 0).all(dim=1))[:, 0]
            rows.append(self.model.projector(tokens[blocks[whole]].flatten(1), index, whole, grid // 2))
            place_of.append(places_of(whole, grid // 2))
        labels = torch.from_numpy(example.slots.reshape(2, GRID * GRID, 2)[:, all_ids[-1].cpu().numpy()].astype(np.int64)).permute(1, 2, 0)
        return torch.cat(rows), torch.cat(place_of), slot_loss(self.reader.slots(high[-len(labels):]), labels.to(self.device))


def places_of(blocks: Tensor, side: int) -> Tensor:
    """Blocks of a scale with side x side of them -> the low-res places they lie in."""
    return blocks // side * LOW_GRID // side * LOW_GRID + blocks % side * LOW_GRID // side
