"""Sampling: tokens drawn by chance, the same chance for the same seed."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: logits are divided by it; above 0, and near 0 it is greedy | top_p: only the most probable tokens that together reach
    this probability can be drawn; 1 allows all | seed: the same seed draws the same tokens from the same logits.
    """
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not _is_number(self.temperature) or not (0 < self.temperature < math.inf):
            raise InputError(f"[decode] temperature is {self.temperature!r}; a number above 0 is needed. Leave sampling out for greedy.")
        if not _is_number(self.top_p) or not (0 < self.top_p <= 1):
            raise InputError(f"[decode] top_p is {self.top_p!r}; a number above 0 and at most 1 is needed.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"[decode] seed is {self.seed!r}; a whole number of at least 0 is needed.")

    def start(self) -> Callable[[np.ndarray], int]:
        """A function logits (vocabulary,) f32 -> id that draws anew with every call. Equal probabilities are ordered by id."""
        rng = np.random.Generator(np.random.PCG64(self.seed))

        def draw(logits: np.ndarray) -> int:
            scaled = (logits.astype(np.float64) - float(logits.max())) / self.temperature
            order = np.argsort(-scaled, kind="stable")
            total = np.cumsum(np.exp(scaled[order]))
            kept = int(np.searchsorted(total, self.top_p * total[-1])) + 1      # the smallest leading set that reaches top_p
            return int(order[min(int(np.searchsorted(total[:kept], rng.random() * total[:kept][-1], side="right")), kept - 1, len(order) - 1)])
        return draw


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
