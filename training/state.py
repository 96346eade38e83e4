"""What a training can be continued from: one file, written beside and renamed; its log, one JSON line per entry; the mean of its last weights."""
from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ps3_sdk.atomic import replaced

from .optimiser import Optimiser

HEADS = "training_heads.safetensors"


class Run:
    """A folder of one training stage: state.pt, log.jsonl. step counts optimiser steps, seconds the time spent in all sittings; mean: of the weights
    of about the last `mean_over` steps."""

    def __init__(self, folder: str | Path, model: nn.Module, optimiser: Optimiser, mean_over: float = 1):
        self.folder, self.model, self.optimiser, self.mean = Path(folder), model, optimiser, Mean(model, mean_over)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds, self._since = 0, 0.0, time.perf_counter()
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.mean = Mean(model, mean_over, state.get("mean"))
            self.step, self.seconds = state["step"], state["seconds"]

    def spent(self) -> float:
        """Seconds of training in this and earlier sittings."""
        return self.seconds + time.perf_counter() - self._since

    def stepped(self) -> None:
        """After each of the optimiser's steps."""
        self.step += 1
        self.mean.step()

    def save(self) -> None:
        with self.mean.inside():        # under every name, as in model: parts share their weights
            mean = {name: value.clone() for name, value in self.model.state_dict().items()}
        state = {"model": self.model.state_dict(), "mean": mean, "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.spent()}
        with replaced(self.folder / "state.pt") as beside:
            torch.save(state, beside)

    def log(self, **values) -> None:
        entry = {"step": self.step, "seconds": round(self.spent(), 1), **{k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(" ".join(f"{k} {v}" for k, v in entry.items()), flush=True)


def means(measures: dict[str, list]) -> dict[str, float]:
    """Of each measure, tensors or numbers, over those that are numbers at all."""
    measures = {key: [float(value) for value in values] for key, values in measures.items()}
    return {key: float(np.nanmean(values)) for key, values in measures.items() if not np.isnan(values).all()}


def save_heads(folder: str | Path, **heads: nn.Module) -> None:
    """What only training knows, beside the weights of a checkpoint folder, for trainings that go on from it. Other heads that the folder has stay; written beside and renamed."""
    from safetensors.torch import load_file, save_file
    path = Path(folder) / HEADS
    every = load_file(path) if path.exists() else {}
    for name, head in heads.items():
        every.update({f"{name}.{key}": value.detach().cpu().contiguous() for key, value in head.state_dict().items()})
    with replaced(path) as beside:
        save_file(every, beside)


def load_heads(folder: str | Path, **heads: nn.Module) -> set[str]:
    """What save_heads() wrote. Heads that the folder does not have stay as they are, which is printed. Returns their names."""
    from safetensors.torch import load_file
    path = Path(folder) / HEADS
    every, missing = load_file(path) if path.exists() else {}, set()
    for name, head in heads.items():
        own = {key.removeprefix(f"{name}."): value for key, value in every.items() if key.startswith(f"{name}.")}
        if own:
            head.load_state_dict(own)
        else:
            print(f"{path} has no head {name!r}: training begins with a new one", flush=True)
            missing.add(name)
    return missing


def copy_heads(source: str | Path, folder: str | Path) -> None:
    """Heads of a checkpoint folder for a training that goes on from it, also those that it does not need, unless `folder` has some."""
    made = Path(folder) / HEADS
    if (Path(source) / HEADS).exists() and not made.exists():
        shutil.copyfile(Path(source) / HEADS, made)


class Mean:
    """A model's weights, averaged over about its last `over` steps: what each step threw them aside by is gone. 1: as they are.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """

    def __init__(self, model: nn.Module, over: float, weights: dict[str, Tensor] | None = None):
        self.over, self._steps = over, 0 if weights is None else round(over)
        self._own = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.weights = {name: (own if weights is None else weights[name].to(own)).clone() for name, own in self._own.items()}

    def step(self) -> None:
        """One more; the mean of the first few is over as many as there are."""
        self._steps += 1
        torch._foreach_lerp_(list(self.weights.values()), list(self._own.values()), 1 / min(self.over, self._steps))

    @contextmanager
    def inside(self):
        """The model has these weights, not its own."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, own in self._own.items():
            kept = own.clone()
            own.copy_(self.weights[name])
            self.weights[name].copy_(kept)
