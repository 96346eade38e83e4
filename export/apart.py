"""Run a network of an unfinished bundle in a process of its own, as a robot would: without PyTorch, and gone afterwards.

    python -m ps3_sdk.export.apart FOLDER      FOLDER/request.json says what to run, see Apart.run; outputs come as FOLDER/<name>.out.npy

The exporting process holds PyTorch and the reference's results; a large network beside them would need the memory of both.
"""
from __future__ import annotations

import ctypes
import json
import mmap
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from ps3_sdk.errors import ExportError

from .child import module

LARGE_BYTES = 256 << 20     # networks with more weights run apart; large results wait on the disk


@dataclass(frozen=True)
class Placed:
    """One network of a file as a runtime adapter needs it: its two members by place and size, its manifest entry."""
    path: Path
    manifest: dict
    places: dict[str, tuple[int, int]]

    @property
    def members(self) -> dict[str, int]:
        return {name: size for name, (_, size) in self.places.items()}

    def offset(self, name: str) -> int:
        return self.places[name][0]

    def member(self, name: str) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset(name))
            return file.read(self.members[name])


class Apart:
    """Has a runtime network's `run`. draft: anything with path, manifest, members, offset(name)."""

    def __init__(self, draft, name: str):
        entry = draft.manifest["networks"][name]
        self._name, self._folder = name, draft.path.parent
        self._request = {"path": str(draft.path), "network": name, "entry": entry,
                         "places": {member: (draft.offset(member), draft.members[member]) for member in (entry["file"], entry["weights"])}}

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """As Network.run; outputs are read-only views of files that are already unlinked. Raises ExportError when the process fails."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".ps3-export-") as folder:
            for name, array in inputs.items():
                _save(Path(folder) / f"{name}.in.npy", array)
            (Path(folder) / "request.json").write_text(json.dumps({**self._request, "inputs": list(inputs), "outputs": list(outputs)}))
            let_go(inputs)
            result = subprocess.run(module("ps3_sdk.export.apart", folder), stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if result.returncode:
                why = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1][:400]
                raise ExportError(f"[check] the network {self._name} did not run: {why.rstrip('.')}. Nothing was written. "
                                  "Free some memory and disk; if that does not help, report it.")
            return {name: np.load(Path(folder) / f"{name}.out.npy", mmap_mode="r") for name in outputs}


def on_disk(arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """The same arrays, as views of unlinked files in `folder` when they are large together."""
    if sum(array.nbytes for array in arrays.values()) <= LARGE_BYTES // 4:
        return dict(arrays)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ps3-export-") as place:
        for name, array in arrays.items():
            _save(Path(place) / f"{name}.npy", array)
        return {name: np.load(Path(place) / f"{name}.npy", mmap_mode="r") for name in arrays}


def let_go(arrays: Mapping[str, np.ndarray]) -> None:
    """Give back memory that is not needed for now: pages of arrays that are views of files, and what the allocator keeps for later."""
    for base in arrays.values():
        while isinstance(base, (np.ndarray, memoryview)):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None      # glibc's
    if trim is not None:
        trim(0)


def _save(path: Path, array: np.ndarray) -> None:
    try:
        np.save(path, array)
    except OSError as error:
        raise ExportError(f"[check] intermediate results cannot be written to {path.parent.parent}: {error.strerror or error}. "
                          "Nothing was written. Free some space or choose another disk.") from error


def main(folder: Path) -> None:
    from ps3_sdk.runtimes import ort
    request = json.loads((folder / "request.json").read_text())
    placed = Placed(Path(request["path"]), {"networks": {request["network"]: request["entry"]}}, request["places"])
    network = ort.load(placed, request["network"])
    inputs = {name: np.load(folder / f"{name}.in.npy", mmap_mode="r") for name in request["inputs"]}
    for name, array in network.run(inputs, request["outputs"]).items():
        np.save(folder / f"{name}.out.npy", array)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
