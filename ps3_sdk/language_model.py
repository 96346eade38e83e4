"""What Session needs of a language model that runs elsewhere, in a serving engine for example, instead of in the bundle's own network.

    session = ps3_sdk.Session("engine.plan", language_model=mine)

docs/language_model.md says which rows go over, in which order, and what must come back. ps3_sdk.decode.Decoder is one of these.
"""
from __future__ import annotations

from typing import Callable, Iterable, Iterator, Protocol

import numpy as np

from .errors import InputError
from .sampling import Sampling


class ReadState(Protocol):
    """What the model has read. It never changes, and may be continued many times.

    length: rows read | hidden: (width,) f32, the last row after the final norm; what the prompt head looks for is made of it. It may be
    None after upto(), and always in models that look by saliency.
    """
    length: int
    hidden: np.ndarray | None

    def upto(self, length: int) -> "ReadState":
        """What was known after the first `length` rows, or after fewer, if the model cannot go back there: those are read again."""


class Answering(Iterator, Protocol):
    """An answer being made: an iterator of objects with `id`, the token's.

    stopped: "stop id", "max tokens", "context length", "cancelled" or "failed" when it has ended | notes: what the user should know.
    """
    stopped: str | None
    notes: tuple[str, ...]


class LanguageModel(Protocol):
    empty: ReadState    # nothing read, length 0

    def prefill(self, embeds: np.ndarray, state: ReadState | None = None) -> ReadState:
        """Read rows, (rows, width) f32, behind those of `state` (default: none). Positions count from 0, attention is causal."""

    def generate(self, state: ReadState, embed: Callable[[np.ndarray], np.ndarray], *, stop_ids: Iterable[int], max_tokens: int,
                 sampling: Sampling | None = None, cancel=None) -> Answering:
        """Continue a state, greedily without `sampling`.

        embed: (n,) int64 ids -> (n, width) f32 rows, for models that have no embedding table of their own | stop_ids: they end the answer
        and are no part of it | cancel: None, or anything with is_set(), or a function; to be looked at before every token.
        """


def checked(model) -> LanguageModel:
    """The model, if it has what a LanguageModel has. Raises InputError that names what is missing."""
    missing = [name for name, kind in (("prefill", callable), ("generate", callable), ("empty", lambda value: value is not None)) if not kind(getattr(model, name, None))]
    missing += [f"empty.{name}" for name in ("length", "upto") if "empty" not in missing and not hasattr(model.empty, name)]
    if missing:
        raise InputError(f"[session] language_model is {type(model).__name__} and has no {', '.join(missing)}. See ps3_sdk.language_model.LanguageModel.")
    return model
