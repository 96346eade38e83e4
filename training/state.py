"""What a training can be continued from: one file, written beside and renamed; and its log, one JSON line per entry."""
from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import nn

from .optimiser import Optimiser


class Run:
    """A folder of one training stage: state.pt, log.jsonl. step counts optimiser steps, seconds the time spent in all sittings."""

    def __init__(self, folder: str | Path, model: nn.Module, optimiser: Optimiser):
        self.folder, self.model, self.optimiser = Path(folder), model, optimiser
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step, self.seconds, self._since = 0, 0.0, time.perf_counter()
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            self.step, self.seconds = state["step"], state["seconds"]

    def spent(self) -> float:
        """Seconds of training in this and earlier sittings."""
        return self.seconds + time.perf_counter() - self._since

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.step, "seconds": self.spent()}
        beside = self.folder / "state.new"
        torch.save(state, beside)
        beside.replace(self.folder / "state.pt")

    def log(self, **values) -> None:
        entry = {"step": self.step, "seconds": round(self.spent(), 1), **{k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(" ".join(f"{k} {v}" for k, v in entry.items()), flush=True)
