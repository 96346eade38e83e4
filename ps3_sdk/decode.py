"""decode: the token loop over a language model's network. Rows go in, keys and values stay outside, tokens come out.

    decoder = Decoder(network, spec)
    seen = decoder.prefill(rows_of_the_frame)                       # once a frame
    asked = decoder.prefill(rows_of_the_question, seen)             # once a question; `seen` is untouched and can be continued again
    for token in decoder.generate(asked, embed, stop_ids={2}, max_tokens=256):
        text += stream.push(token.id)                               # stream = TextStream(tokenizer), see text_stream.py

The network is one that onnxruntime-genai's builder makes (export/llm.py), run by any adapter of runtimes/: inputs inputs_embeds,
attention_mask and past_key_values.<layer>.key|value, outputs hidden_states, logits of the last row and present.<layer>.key|value.
Where the adapter can bind a network to arrays, past and present are the same ones (the graph's GroupQueryAttention writes the new rows
into them), and a token costs no copy of what was read before; else what comes out goes in again.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterable

import numpy as np

from .errors import InputError, RuntimeFailedError
from .kv_cache import KvCache
from .sampling import Sampling
from .tensors import from_bfloat16
from .text_stream import TextStream  # noqa: F401  (part of this module's words)

CHUNK_ROWS = 512        # rows per run of a prefill: attention holds heads x rows x all rows floats at once
SPARE_ROWS = 256        # of new arrays: room for that many tokens, or an eighth of what is read where that is more, before they are copied again
STOPPED = ("stop id", "max tokens", "context length", "cancelled", "failed")
_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class DecoderSpec:
    """width: of a row | vocabulary: ids that exist; logits beyond them are cut | context_length: rows of prompt and answer together |
    dtype: of rows, keys and values in the network, float32 or float16."""
    width: int
    num_layers: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_length: int
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("width", "num_layers", "kv_heads", "head_width", "vocabulary", "context_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"[decode] {name} is {value!r}; it must be a whole number of at least 1.")
        if self.dtype not in _DTYPES:
            raise InputError(f"[decode] dtype is {self.dtype!r}; one of {', '.join(_DTYPES)} is needed.")


@dataclass(frozen=True, eq=False)
class State:
    """What the model has read. It never changes: any number of continuations may start from it.

    length: rows read | hidden: (width,) f32, the last row after the final norm | logits: (vocabulary,) f32 behind the last row;
    both None before the first row and where only keys and values are known | cache: holds the keys and values, and maybe those of
    later rows, which this state does not know of.
    """
    length: int
    hidden: np.ndarray | None
    logits: np.ndarray | None
    cache: KvCache = field(repr=False)

    @property
    def kv(self) -> dict[str, np.ndarray]:
        """past_key_values.<layer>.key|value -> (1, kv_heads, length, head_width), read-only views."""
        return self.cache.view(self.length)

    def upto(self, length: int) -> "State":
        """What was known after the first rows, at least 0 and at most all. Nothing is copied."""
        return self if length == self.length else State(length, None, None, self.cache)


@dataclass(frozen=True)
class Token:
    """id: in 0..vocabulary-1 | logprob: its log probability by the model, before temperature and top_p."""
    id: int
    logprob: float


class TokenEmbedding:
    """Token ids -> rows, looked up in a (vocabulary, width) table, f32, f16, or bfloat16 by its bits as uint16, which may be a mapped file."""

    def __init__(self, table: np.ndarray):
        if getattr(table, "ndim", 0) != 2 or table.dtype.name not in (*_DTYPES, "uint16"):
            raise InputError(f"[decode] the embedding table is {_kind(table)}; (vocabulary, width) float32, float16 or uint16 (bfloat16) is needed.")
        self.table = table

    def __call__(self, ids) -> np.ndarray:
        """(n,) integer ids -> (n, width) f32. Raises: InputError for an id outside the table."""
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(f"[decode] token ids are {ids.dtype} {ids.shape}; a row of whole numbers is needed.")
        wrong = np.flatnonzero((ids < 0) | (ids >= len(self.table)))
        if wrong.size:
            raise InputError(f"[decode] id[{wrong[0]}] is {ids[wrong[0]]}; the vocabulary has ids 0..{len(self.table) - 1}. Use the bundle's own tokenizer.")
        rows = self.table[ids.astype(np.int64)]
        if rows.dtype.name == "uint16":
            rows = from_bfloat16(rows)
        return np.asarray(rows, np.float32)


class Decoder:
    """A language model's network and the sizes it was made with. Holds no text and no state; safe to use from several threads.

    network: a runtimes Network | chunk_rows: rows per run of a prefill; fewer take less memory. The results of different chunks differ
    by rounding only.
    """

    def __init__(self, network, spec: DecoderSpec, chunk_rows: int = CHUNK_ROWS):
        if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
            raise InputError(f"[decode] chunk_rows is {chunk_rows!r}; it must be a whole number of at least 1.")
        self.network, self.spec, self.chunk_rows = network, spec, chunk_rows
        layers = [f"{i}.{kind}" for i in range(spec.num_layers) for kind in ("key", "value")]
        self._past, self._present = [f"past_key_values.{name}" for name in layers], [f"present.{name}" for name in layers]
        none = np.empty((1, spec.kv_heads, 0, spec.head_width), spec.dtype)
        self.empty = State(0, None, None, KvCache(dict.fromkeys(self._past, none), 0))

    def prefill(self, embeds: np.ndarray, state: State | None = None) -> State:
        """Read rows behind those of `state` (default: none).

        Args:
            embeds: (rows, width) f32 or f16; 0 rows give `state` back.
        Raises:
            InputError: another shape or dtype, NaN or infinite values, or more rows than the context has room for.
        """
        state = self.empty if state is None else state
        rows = self._checked(embeds, state.length)
        for start in range(0, len(rows), self.chunk_rows):
            state = self._run(rows[start:start + self.chunk_rows], state, state.length + len(rows) - start)
        return state

    def generate(self, state: State, embed: Callable[[np.ndarray], np.ndarray], *, stop_ids: Iterable[int], max_tokens: int,
                 sampling: Sampling | None = None, cancel=None, seldom: tuple[int, float] | None = None) -> "Generation":
        """Continue a state, one token at a time.

        Args:
            embed: (n,) int64 ids -> (n, width) rows, usually a TokenEmbedding.
            stop_ids: ids that end the answer; they are not part of it.
            max_tokens: tokens at most, at least 0.
            sampling: default greedy, the most probable token each time; ties go to the lower id.
            cancel: a threading.Event or a function without arguments, looked at before every token.
            seldom: an id that an answer begins with from this probability on alone; else what is most probable besides. Greedy answers only.
        Returns:
            A Generation: iterate over its Tokens; `.stopped` then says why it ended.
        Raises:
            InputError: a state without rows, an argument of the wrong kind. While iterating also RuntimeFailedError.
        """
        if state.logits is None:
            raise InputError("[decode] the state has no rows, so nothing can follow them. Prefill the prompt first.")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 0:
            raise InputError(f"[decode] max_tokens is {max_tokens!r}; it must be a whole number of at least 0.")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(f"[decode] sampling is {type(sampling).__name__}; a Sampling, or None for greedy, is needed.")
        return Generation(self, state, embed, frozenset(int(i) for i in stop_ids), max_tokens, sampling, cancelled(cancel), seldom if sampling is None else None)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _checked(self, embeds, length: int) -> np.ndarray:
        """The rows in the network's dtype, contiguous."""
        spec = self.spec
        if getattr(embeds, "ndim", 0) != 2 or embeds.shape[1] != spec.width or embeds.dtype.name not in _DTYPES:
            raise InputError(f"[decode] the rows are {_kind(embeds)}; (rows, {spec.width}) float32 or float16 is needed.")
        if length + len(embeds) > spec.context_length:
            raise InputError(f"[decode] {len(embeds)} rows behind {length} make {length + len(embeds)}; this model's context holds {spec.context_length}. "
                             "Look at fewer patches or frames, or shorten the prompt.")
        bad = int((~np.isfinite(embeds)).sum())
        if bad:
            raise InputError(f"[decode] the rows hold {bad} NaN or infinite values. Check what made them.")
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(embeds, spec.dtype)
        if rows.dtype != embeds.dtype and not np.isfinite(rows).all():
            raise InputError(f"[decode] the rows reach {np.abs(embeds).max():.3g}, beyond float16, in which this network computes. Use an fp32 bundle.")
        return rows

    def _run(self, rows: np.ndarray, state: State, end: int) -> State:
        """Read one chunk. end: rows there will be after the whole prefill, for which room is made at once."""
        length = state.length + len(rows)
        inputs = {"inputs_embeds": rows[None], "attention_mask": np.ones((1, length), np.int64)}
        if hasattr(self.network, "bound"):
            cache = state.cache if state.cache.claim(state.length, length) else self._room(state, length, end)
            out = cache.network.run(inputs, ["hidden_states", "logits"])
        else:
            out = self.network.run(inputs | state.kv, ["hidden_states", "logits", *self._present])
            cache = KvCache({past: out[present] for past, present in zip(self._past, self._present)}, length)
        # copies, so that a state does not keep the hidden states of a whole chunk
        hidden, logits = out["hidden_states"][0, -1].astype(np.float32), out["logits"][0, -1, :self.spec.vocabulary].astype(np.float32)
        hidden.flags.writeable = logits.flags.writeable = False
        if not np.isfinite(logits.max()):
            raise RuntimeFailedError(f"[decode] the logits behind row {length} hold NaN or infinite values. "
                                     + ("Values went beyond float16: use an fp32 bundle." if self.spec.dtype == "float16" else "Export the bundle again."))
        return State(length, hidden, logits, cache)

    def _room(self, state: State, length: int, end: int) -> KvCache:
        """New arrays that begin with the state's rows, up to `length` claimed. Their spare room takes no memory before it is written."""
        spec = self.spec
        capacity = min(end + max(SPARE_ROWS, end // 8), max(spec.context_length, end))
        arrays = {name: np.empty((1, spec.kv_heads, capacity, spec.head_width), spec.dtype) for name in self._past}
        for name, known in state.kv.items():
            arrays[name][:, :, :state.length] = known
        both = arrays | {present: arrays[past] for past, present in zip(self._past, self._present)}
        return KvCache(arrays, length, self.network.bound(both))


class Generation:
    """An answer being made: an iterator of Token.

    logprob: of all tokens so far together and of the one that ended it, by the model | stopped: None while tokens may follow, then one of STOPPED | ids: of the tokens so far | stop_id: the id that ended it, else None |
    notes: what the user should know | state: what the model has read, which is everything but the last token: continue a
    conversation by prefilling that token and the next turn.
    """

    def __init__(self, decoder: Decoder, state: State, embed, stop_ids: frozenset[int], max_tokens: int, sampling: Sampling | None, cancelled,
                 seldom: tuple[int, float] | None = None):
        self.state, self.ids, self.stopped, self.stop_id, self.notes, self.logprob = state, [], None, None, (), 0.0
        self._decoder, self._embed, self._stop_ids, self._max_tokens, self._cancelled = decoder, embed, stop_ids, max_tokens, cancelled
        self._draw = sampling.start() if sampling is not None else lambda logits: int(logits.argmax())
        self._seldom = seldom
        self._room = decoder.spec.context_length - state.length     # tokens that fit behind the prompt

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> Token:
        if self.stopped is None:
            self._stop_if_due()
        if self.stopped is not None:
            raise StopIteration
        if self.ids:
            try:
                self.state = self._decoder.prefill(self._embed(np.array(self.ids[-1:], np.int64)), self.state)
            except BaseException:
                self.stopped = "failed"
                raise
        logits = self.state.logits
        chosen, top = self._draw(logits), float(logits.max())
        whole = top + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
        if self._seldom is not None and not self.ids and chosen == self._seldom[0] and float(logits[chosen]) - whole < np.log(self._seldom[1]):
            chosen = int(np.where(np.arange(len(logits)) == chosen, -np.inf, logits).argmax())
        logprob = float(logits[chosen]) - whole
        self.logprob += logprob
        if chosen in self._stop_ids:
            self.stopped, self.stop_id = "stop id", chosen
            raise StopIteration
        self.ids.append(chosen)
        return Token(chosen, logprob)

    def _stop_if_due(self) -> None:
        if self._cancelled():
            self.stopped = "cancelled"
        elif len(self.ids) >= self._max_tokens:
            self.stopped = "max tokens"
        elif len(self.ids) >= self._room:
            self.stopped = "context length"
            self.notes += (f"the answer was cut: prompt and answer fill the model's context of {self._decoder.spec.context_length} rows",)


def cancelled(cancel) -> Callable[[], bool]:
    if cancel is None:
        return lambda: False
    if callable(getattr(cancel, "is_set", None)):
        return cancel.is_set
    if callable(cancel):
        return cancel
    raise InputError(f"[decode] cancel is {type(cancel).__name__}; a threading.Event or a function is needed.")


def _kind(value) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
