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


def labels_of(examples: Sequence[Example], device: torch.device | str = "cpu") -> Tensor:
    """(scenes, 2, 729) int64: kind and colour of the thing at each low-res place, counted from 1; 0 where there is none."""
    labels = torch.zeros(len(examples), 2, LOW_GRID ** 2, dtype=torch.int64)
    for own, example in zip(labels, examples):
        for (_, name), box in zip(example.captions, example.boxes):
            colour, kind = name.split(" ", 1)
            own[0, box], own[1, box] = NAMES[0].index(kind) + 1, NAMES[1].index(colour) + 1
    return labels.to(device)


def spread(labels: Tensor, places: int) -> Tensor:
    """Labels (.., 729) of low-res places for the `places` of a grid whose side is a multiple of theirs: (.., places)."""
    times = round(places ** 0.5) // LOW_GRID
    return labels.unflatten(-1, (LOW_GRID, LOW_GRID)).repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1).flatten(-2)
