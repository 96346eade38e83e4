"""Members of an unfinished export that a second attempt need not make again.

    kept = Kept(work_dir, {"checkpoint": stamps, "precision": "int8"})
    kept.add_tensors(writer, "encode.safetensors", layout, load)        # made once, whatever happens after
    kept.remove()                                                       # when the bundle is there

Without a folder nothing is kept and tensors go straight into the bundle.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import numpy as np

from ps3_sdk.atomic import replaced
from ps3_sdk.errors import ExportError
from ps3_sdk.tensors import DTYPES

from .write_bundle import BundleWriter, SafetensorsLayout


class Kept:
    """folder: where finished members lie until the bundle is written, or None | about: JSON of all that decides what is in them."""

    def __init__(self, folder: str | Path | None, about: dict):
        self._folder, self._about, self._names = Path(folder) if folder is not None else None, about, set()

    def add_tensors(self, writer: BundleWriter, name: str, layout: SafetensorsLayout, load: Callable[[str], np.ndarray]) -> bool:
        """As BundleWriter.add_tensors; True where the member was there already. Raises ExportError also where the folder cannot be written."""
        if self._folder is None:
            writer.add_tensors(name, layout, load)
            return False
        path, note = self._folder / name, self._folder / f"{name}.json"
        stamp = json.dumps({**self._about, "tensors": {key: [dtype, list(shape)] for key, (dtype, shape) in layout.tensors.items()}}, indent=1)
        try:
            found = path.is_file() and path.stat().st_size == layout.size and note.is_file() and note.read_text() == stamp
            if not found:
                self._folder.mkdir(parents=True, exist_ok=True)
                note.unlink(missing_ok=True)
                with replaced(path) as beside, open(beside, "wb") as file:
                    for chunk in layout.chunks(load):
                        file.write(chunk)
                note.write_text(stamp)
        except OSError as error:
            raise ExportError(f"[export] {path} cannot be written: {error.strerror or error}. What was finished before is still in {self._folder}: "
                              "free some space and export again, or choose another work_dir.") from error
        self._names.add(name)
        writer.add_tensors(name, layout, lambda key: _read(path, layout, key))
        return found

    def remove(self) -> None:
        for name in self._names:
            for path in (self._folder / name, self._folder / f"{name}.json"):
                path.unlink(missing_ok=True)


def _read(path: Path, layout: SafetensorsLayout, name: str) -> np.ndarray:
    dtype, shape = layout.tensors[name]
    return np.fromfile(path, DTYPES[dtype], int(np.prod(shape, dtype=np.int64)), offset=layout.offsets[name]).reshape(shape)
