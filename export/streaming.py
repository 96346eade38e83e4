"""Run a model that does not fit in memory twice: transformer blocks read their weights when they run and let go of them after."""
from __future__ import annotations

import re

from torch import nn

from .weights import Checkpoint

BLOCK = re.compile(r".*\.(res)?blocks\.\d+")


def stream_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Like weights.load_into for a model on torch's meta device, but only what is outside the blocks is read now.

    A forward pass reads each block in turn, so that at any time one block of each tower is in memory. Raises ExportError for
    keys that do not fit, before anything is read.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    checkpoint.check(shapes)
    blocks = {name: module for name, module in model.named_modules() if BLOCK.fullmatch(name)}
    inside = lambda key: any(key.startswith(f"{name}.") for name in blocks)
    for key in shapes:
        if not inside(key):
            model.load_state_dict({key: checkpoint.tensor(key)}, strict=False, assign=True)
    for name, module in blocks.items():
        _stream(module, name, checkpoint)


def _stream(module: nn.Module, name: str, checkpoint: Checkpoint) -> None:
    def read(*_) -> None:
        module.load_state_dict({key: checkpoint.tensor(f"{name}.{key}") for key in module.state_dict()}, assign=True)

    def let_go(*_) -> None:
        module.to_empty(device="meta")

    module.register_forward_pre_hook(read)
    module.register_forward_hook(let_go)
