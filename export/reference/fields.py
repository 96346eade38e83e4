"""Typed reading of a JSON object: every wrong value is an ExportError that names the file, the key and what is needed."""
from __future__ import annotations

import json
from pathlib import Path

from ps3_sdk.errors import ExportError


class Fields:
    """One JSON object of `file`; `path` is where it stands inside, e.g. "vision_config".

    Each reader takes the key and the value used when the key is absent; a stored null counts as absent where None is the default.
    """

    def __init__(self, values: object, file: str, path: str = ""):
        self.file, self.path = file, path
        if not isinstance(values, dict):
            raise ExportError(f"[config] {path or 'the top level'} of {file} is {_kind(values)}; a JSON object is needed. Restore the file as published.")
        self.values = values

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Raises ExportError: no such file, not UTF-8, not JSON, not an object."""
        try:
            return cls(json.loads(path.read_text("utf-8")), path.name)
        except FileNotFoundError:
            raise ExportError(f"[config] {path} does not exist; a checkpoint folder has a {path.name}. Pass the folder that holds it.") from None
        except OSError as error:
            raise ExportError(f"[config] {path} cannot be read ({error}); a readable file is needed. Check its permissions.") from error
        except (ValueError, RecursionError) as error:
            raise ExportError(f"[config] {path} is not JSON ({error}); the checkpoint's own {path.name} is needed. Download it again.") from error

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def refuse(self, key: str, needed: str, todo: str) -> ExportError:
        """The error for the value stored under `key`."""
        name = f"{self.path}.{key}" if self.path else key
        got = json.dumps(self.values[key]) if key in self.values else "absent"
        return ExportError(f"[config] {name} of {self.file} is {got[:120]}; {needed}. {todo}")

    def section(self, key: str) -> "Fields":
        return Fields(self.values.get(key), self.file, f"{self.path}.{key}" if self.path else key)

    def count(self, key: str, default: int | None, low: int = 1) -> int | None:
        """An integer of at least `low`."""
        value = self.values.get(key, default)
        if value is None and default is None:
            return None
        if not _is_int(value) or value < low:
            raise self.refuse(key, f"an integer of at least {low} is needed", "Correct the file.")
        return value

    def counts(self, key: str, default: tuple[int, ...] | None, low: int = 1) -> tuple[int, ...] | None:
        """A list of integers, each at least `low`."""
        value = self.values.get(key, default)
        if value is None and default is None:
            return None
        if not isinstance(value, (list, tuple)) or not value or not all(_is_int(item) and item >= low for item in value):
            raise self.refuse(key, f"a list of integers of at least {low} is needed", "Correct the file.")
        return tuple(value)

    def number(self, key: str, default: float | None, above: float = 0, below: float = float("inf")) -> float | None:
        """A number between `above` and `below`."""
        value = self.values.get(key, default)
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < below:
            raise self.refuse(key, f"a number above {above:g}" + (f" and below {below:g}" if below < float("inf") else "") + " is needed", "Correct the file.")
        return float(value)

    def flag(self, key: str, default: bool | None) -> bool | None:
        value = self.values.get(key, default)
        if value is None and default is None:
            return None
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false is needed", "Correct the file.")
        return value

    def text(self, key: str, default: str | None) -> str | None:
        value = self.values.get(key, default)
        if value is None and default is None:
            return None
        if not isinstance(value, str):
            raise self.refuse(key, "a string is needed", "Correct the file.")
        return value

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.values.get(key, default)
        if value not in choices:
            raise self.refuse(key, f"one of {', '.join(choices)} is needed", "Correct the file, or use a model of this family.")
        return value

    def only(self, *known: str) -> None:
        """Refuse keys that would be ignored."""
        unknown = sorted(set(self.values) - set(known))
        if unknown:
            raise self.refuse(unknown[0], f"{self.path or self.file} may hold only {', '.join(known)}", "Remove the key.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return "absent" if value is None else f"a {type(value).__name__}"
