"""Results as they come: a JSONL file per settings, continued after an interruption."""
from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import InputError
from .items import digest


class Results:
    """Records by key, each on disk before the next question is asked.

    folder: where `results-<hash of the settings>.jsonl` lies; None keeps them in memory. The first line holds the settings. A last
    line that was cut off is dropped; other settings (bundle, machine, questions, budget) have a file of their own.
    Raises InputError: the folder cannot be written, or a line that is not the last is no record.
    """

    def __init__(self, folder, settings: dict):
        self.settings, self.hash = settings, digest(json.dumps(settings, sort_keys=True))
        self.records: dict[str, dict] = {}
        self.path, self._file = None, None
        if folder is None:
            return
        self.path = Path(folder) / f"results-{self.hash}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
            self._read()
        except OSError as error:
            raise InputError(f"[evaluate] {self.path} cannot be written: {error.strerror or error}. Choose a writable folder with room.") from error

    def _read(self) -> None:
        self._file.seek(0)
        lines, whole = self._file.read().split(b"\n"), 0
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line) if number < len(lines) else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or ("settings" if number == 1 else "key") not in entry:
                if number < len(lines) - 1:
                    raise InputError(f"[evaluate] {self.path} line {number} is no record; it was changed by hand. Delete the file, or that line.")
                break
            if number > 1:
                self.records[entry["key"]] = entry
            whole += len(line) + 1
        self._file.truncate(whole)
        if not whole:
            self._write({"settings": self.settings})

    def add(self, record: dict) -> None:
        self.records[record["key"]] = record
        if self._file is not None:
            self._write(record)

    def _write(self, entry: dict) -> None:
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"[evaluate] {self.path} cannot be written: {error.strerror or error}. Make room and start again: it continues there.") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_) -> None:
        self.close()
