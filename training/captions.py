"""Localised contrast: what a box of a frame shows and the words for it are near each other, those of other boxes are not. It teaches the low-res pass
which kind and colour a thing is, all that a question names.

Source: PS3, arXiv 2503.19903, section 3.2; the loss is SigLIP's, arXiv 2303.15343.
"""
from __future__ import annotations

import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE, BIAS = 10.0, -4.0        # to begin with: of about fifty captions one is right


class Captions(nn.Module):
    """Two projections into a space of their own, which only training knows."""

    def __init__(self, seen_width: int, read_width: int):
        super().__init__()
        self.seen, self.read = nn.Linear(seen_width, seen_width), nn.Linear(read_width, seen_width)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(SCALE))), nn.Parameter(torch.tensor(BIAS))

    def forward(self, features: Tensor, boxes: Sequence[Tensor], words: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """features: (scenes, places, width) of low-res places | boxes: per scene (things, places) bool, none empty | words: (all things, width), the language
        model's state behind the caption of each | names: of each; those of equal names are all right.

        Returns the loss, and which things have one of their own name nearest, (all things,) bool.
        """
        shown = torch.cat([box.to(features).div(box.sum(dim=1, keepdim=True).to(features)) @ own for own, box in zip(features, boxes)])
        same = torch.tensor([[one == other for other in names] for one in names], device=features.device)
        with torch.autocast(features.device.type, enabled=False):
            cosine = F.normalize(self.seen(shown.float()), dim=1) @ F.normalize(self.read(words.float()), dim=1).T
            logit = self.log_scale.exp() * cosine + self.bias
        nearest = cosine.detach().argmax(dim=1)
        return -F.logsigmoid(torch.where(same, logit, -logit)).sum() / len(names), same.gather(1, nearest[:, None])[:, 0]
