"""What is shown where: the kind and the colour of the thing that each place is of, which is all that a question names of it besides its place."""
from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .examples import LOW_GRID, Example
from .scenes.draw import ALL_COLOURS
from .scenes.kinds import KINDS

SHARP = 10.0            # length of features
NAMES = ([kind.name for kind in KINDS], list(ALL_COLOURS))


class Things(nn.Module):
    """Two lines through the directions of places' features, which only training knows; 0 is for places of no thing."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(names)) for names in NAMES)

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """features: (n, places, width) | labels: (n, 2, places) int64, of each of these places.

        Returns the loss, in which places of things and of none weigh the same, and the share of the former that is told which of all kinds it is of; NaN where there is none.
        """
        features, loss = SHARP * F.normalize(features.float(), dim=2), torch.zeros((), device=features.device)
        thing = labels[:, 0] > 0
        for head, wanted in zip(self.heads, labels.unbind(1)):
            wrong = F.cross_entropy(head(features).transpose(1, 2), wanted, reduction="none")
            loss = loss + sum((wrong * part).sum() / part.sum().clamp(min=1) for part in (thing, ~thing))
        told = self.heads[0](features.detach()[thing])[:, 1:].argmax(dim=1) + 1 == labels[:, 0][thing]
        return loss, told.float().mean()


def labels_of(examples: Sequence[Example], grid: int, device: torch.device | str = "cpu") -> Tensor:
    """(scenes, 2, grid^2) int64: kind and colour of the thing at each place, counted from 1; 0 where there is none. Of low-res places a thing has all that
    it covers some of, of a finer grid those whose middle it covers: of all that lie in such low-res places half show nothing of it."""
    labels, middle = torch.zeros(len(examples), 2, grid, grid, dtype=torch.int64), (torch.arange(grid) + 0.5) / grid
    for own, example in zip(labels, examples):
        for (_, name), box, (x0, y0, x1, y1) in zip(example.captions, example.boxes, example.extents.tolist()):
            colour, kind = name.split(" ", 1)
            covered = box.view(grid, grid) if grid == LOW_GRID else ((middle >= y0) & (middle < y1))[:, None] & (middle >= x0) & (middle < x1)
            own[0, covered], own[1, covered] = NAMES[0].index(kind) + 1, NAMES[1].index(colour) + 1
    return labels.flatten(2).to(device)
