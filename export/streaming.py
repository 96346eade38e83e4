"""Run a model that does not fit in memory twice: weights are read when they are needed and let go of after."""
from __future__ import annotations

import re
from contextlib import contextmanager

import torch
from torch import nn

from .weights import Checkpoint

BLOCK = re.compile(r".*\.(res)?blocks\.\d+|model\.layers\.\d+")       # of towers | of language models


class Streamed:
    """The weights of a model that is on torch's meta device.

    A transformer block reads its own when it runs, so that at any time one block is in memory. What is outside the blocks is
    there inside `with resident(prefixes)`; using it elsewhere is an error of torch's, not a wrong number.
    Raises ExportError for keys that do not fit, before anything is read.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, optional: dict[str, tuple[int, ...]] | None = None):
        """optional: keys the checkpoint may hold besides; see Checkpoint.check."""
        self.model, self.checkpoint = model, checkpoint
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        checkpoint.check(shapes, optional)
        blocks = {name: module for name, module in model.named_modules() if BLOCK.fullmatch(name)}
        self._outside = [key for key in shapes if not any(key.startswith(f"{name}.") for name in blocks)]
        for name, module in blocks.items():
            _stream(module, name, checkpoint)

    @contextmanager
    def resident(self, *prefixes: str):
        """Weights outside the blocks whose keys start with one of `prefixes`, for as long as the `with` block lasts."""
        keys = [key for key in self._outside if key.startswith(prefixes)]
        put = lambda read: self.model.load_state_dict({key: read(key) for key in keys}, strict=False, assign=True)
        try:
            put(self.checkpoint.tensor)
            yield
        finally:
            put(lambda key: torch.empty(self.checkpoint.shape(key), device="meta"))


def _stream(module: nn.Module, name: str, checkpoint: Checkpoint) -> None:
    def read(*_) -> None:
        module.load_state_dict({key: checkpoint.tensor(f"{name}.{key}") for key in module.state_dict()}, assign=True)

    def let_go(*_) -> None:
        module.to_empty(device="meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(let_go)
