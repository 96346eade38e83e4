"""The losses of one question answered as the SDK answers it: places picked by the model's own score, all their patches of every scale.

The last stage of training, four times as dear per question as windows: it teaches to find what was asked among all that was picked.
"""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .examples import LOW_GRID, SCALES, Example, normalised
from .joint import Joint
from .nano import NOT_SEEN
from .reading import PATCH_PX


class Closely(Joint):
    """places: how many low-res places are looked at closely, 6 for a budget of 720 patches | true_share: of questions whose places are
    mixed with the right ones, so that reading is learnt while looking is not yet certain."""

    def __init__(self, model, reader, places: int = 6, true_share: float = 0.5):
        super().__init__(model, reader)
        self.places, self.true_share = places, true_share

    def forward(self, example: Example, rng: np.random.Generator, questions: int = 2) -> tuple[Tensor, dict[str, float]]:
        vision = self.model.vision.vision_model
        seen, score, low_rows = self.see_low(example)
        chat, chosen = self.model.chat, example.asked[:questions]
        asked_ids = [chat._encode("\n" + prompt) for prompt, *_ in chosen]
        _, kv = self.read_prefix(low_rows)
        prompts = self.model.projector.prompt(self.read_prompts(kv, asked_ids))
        truth = torch.stack([place for *_, place in chosen]).float().to(self.device)
        losses = {}
        losses["where"], measures = self.where(score, prompts, truth)
        losses["prior"], _ = self.where(score, vision.prior_prompt[None], example.signs.float()[None].to(self.device))
        share = self.true_share if torch.is_grad_enabled() else 0.0
        with torch.no_grad():
            prob = self.prob(score, prompts)
            mixed = torch.where((torch.rand(len(chosen), 1, device=prob.device) < share) & (truth.flatten(1) > 0), prob + truth.flatten(1), prob)
            picked = mixed.topk(self.places, dim=1).indices.sort(dim=1).values
        answers, right = [], []
        for (_, answer, _, _), ids, cells in zip(chosen, asked_ids, picked):
            loss, good = self.read_answers(kv, [self.look(example, seen, cells)], [ids], [chat._encode(answer)])
            answers.append(loss)
            right += good
        losses["answer"] = torch.stack(answers).mean()
        total = losses["answer"] + losses["where"] + 0.3 * losses["prior"]
        answerable, right = np.array([answer != NOT_SEEN for _, answer, *_ in chosen]), np.array(right)
        return total, {**{k: float(v.detach()) for k, v in losses.items()}, **measures, "exact": float(right[answerable].mean()) if answerable.any() else float("nan"),
                       "refused": float(right[~answerable].mean()) if (~answerable).any() else float("nan")}

    def look(self, example: Example, seen, cells: Tensor) -> Tensor:
        """All patches of some low-res places, (k,) int64 ascending, seen together -> rows of the language model, scale by scale."""
        patches, positions, all_ids = [], [], []
        for index, px in enumerate(SCALES, 1):
            side = px // PATCH_PX // LOW_GRID
            rows, columns = (cells // LOW_GRID).cpu()[:, None] * side + torch.arange(side), (cells % LOW_GRID).cpu()[:, None] * side + torch.arange(side)
            ids = (rows[:, :, None] * (px // PATCH_PX) + columns[:, None, :]).flatten().sort().values
            all_ids.append(ids.to(self.device))
            patches.append(normalised(example.frame, px, PATCH_PX, ids.numpy()).to(self.device))
            positions.append(self.positions(index, all_ids[-1]))
        high = self.see(torch.cat(patches)[None], torch.cat(positions)[None], seen.kv).hidden[-1][0]
        rows = []
        for index, (px, ids, tokens) in enumerate(zip(SCALES, all_ids, high.split([len(ids) for ids in all_ids])), 1):
            grid = px // PATCH_PX
            place = torch.full((grid * grid,), -1, device=self.device)
            place[ids] = torch.arange(len(ids), device=self.device)
            blocks = place.view(grid // 2, 2, grid // 2, 2).transpose(1, 2).reshape(-1, 4)
            whole = torch.nonzero((blocks >= 0).all(dim=1))[:, 0]
            rows.append(self.model.projector(tokens[blocks[whole]].flatten(1), index, whole, grid // 2))
        return torch.cat(rows)
