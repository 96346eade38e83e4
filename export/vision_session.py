"""A session whose language model is not opened: it sees as always, and what is measured on its vision networks needs no more."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ps3_sdk.errors import ExportError
from ps3_sdk.session import Session


def open_vision(path: str | Path, manifest: dict) -> Session:
    """Of the bundle at `path`, whose manifest is given. Its hashes are not compared."""
    return Session(path, verify=False, language_model=_Silent() if manifest.get("language") else None)


class _Silent:
    """Stands in a session's place for a language model, see ps3_sdk.language_model."""
    empty = SimpleNamespace(length=0, hidden=None, upto=lambda length: _Silent.empty)

    def prefill(self, *_, **__):
        raise ExportError("[build] the language model is asked where only the vision networks are open. Report it.")

    generate = prefill
