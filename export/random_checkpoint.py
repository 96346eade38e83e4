"""A checkpoint that exists nowhere: every tensor is drawn from a seed when asked for. For tests, benchmarks, the seeded default."""
from __future__ import annotations

import math
import zlib

import numpy as np
import torch

from .reference.config import Ps3Config
from .weights import expected_shapes


def draw(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The f32 values of one tensor; see RandomCheckpoint."""
    values = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])).standard_normal(shape, np.float32)
    if name.endswith((".bias", "_bias")):
        return 0.05 * values
    if len(shape) == 1 and name != "vision_model.prior_prompt":
        return 1 + 0.1 * values
    if "pos_emb" in name or "embedding" in name or len(shape) < 2 or name.endswith("latent"):
        return 0.5 * values
    values *= np.float32(1 / math.sqrt(np.prod(shape[1:])))
    return values


class RandomCheckpoint:
    """Stands in for weights.Checkpoint: keys(), shape(), array(), tensor(), check().

    Matrices are normal with deviation fan_in ** -0.5, so that activations keep their size through any depth; norms are near
    one and biases near zero, but never exactly, so that nothing hides. The same seed gives the same numbers on every machine.
    """

    def __init__(self, config: Ps3Config, seed: int = 0):
        self.source, self.revision, self.folder = f"random weights, seed {seed}", None, None
        self._shapes, self._seed = expected_shapes(config), seed

    def keys(self) -> list[str]:
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def array(self, name: str) -> np.ndarray:
        return draw(name, self._shapes[name], self._seed)

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.array(name))

    def check(self, expected, optional=None) -> None:
        """Every key is there by construction."""
