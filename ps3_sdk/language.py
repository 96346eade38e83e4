"""The language side of a VILA-HD bundle: what the model reads, what a question looks for, and the answer it gives.

A prompt is a sequence of rows, each with a name; rows of equal names are equal. A frame stands for its low-res rows, its
high-res rows and a line break. What was read before is not read again: the prompt pass and the answer pass share every row up
to the first high-res one, two questions about one frame the system text and the frame's low-res rows.
Source: NVlabs/VILA @ b760c34; the PyTorch reference in export/reference/vila.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Hashable, Sequence

import numpy as np

from .decode import Decoder, DecoderSpec, Generation, TextStream, TokenEmbedding
from .errors import BundleError, InputError
from .language_model import LanguageModel, ReadState
from .manifest import most_in_a_run
from .probability import enlarged, pooled
from .prompt import tokenizers

IMAGE, VIDEO = "<image>", "<vila/video>"


@dataclass(frozen=True, eq=False)
class Rows:
    """embeds: (rows, width) f32 | names: per row | starts: where each id's rows begin."""
    embeds: np.ndarray
    names: tuple[Hashable, ...]
    starts: tuple[int, ...]

    def upto(self, end: int) -> "Rows":
        return Rows(self.embeds[:end], self.names[:end], tuple(start for start in self.starts if start < end))


@dataclass(frozen=True, eq=False)
class Read:
    """What the language model has read: its state, and the names of the rows it stands for."""
    names: tuple[Hashable, ...]
    state: ReadState

    def shared(self, rows: Rows, empty: ReadState) -> ReadState:
        """The state after the leading rows that both know; of `rows` at least the last is left to be read, for its hidden state."""
        pairs = zip(self.names, rows.names)
        num = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.names), len(rows.names)))
        num = min(num, len(rows.names) - 1)
        if not num:
            return empty
        return self.state if num == self.state.length else self.state.upto(num)


class Language:
    """networks: decode, project and (where the checkpoint has one) prompt_head | spec: the manifest's `language` |
    model: reads rows and answers instead of the decode network, which may be absent then."""

    def __init__(self, bundle, networks, tables, model: LanguageModel | None = None):
        self.spec = bundle.manifest["language"]
        self.geometry = bundle.manifest["geometry"]
        self._networks, self._tables = networks, tables
        library = tokenizers()
        try:
            self._tokenizer = library.Tokenizer.from_str(bytes(bundle.member(self.spec["tokenizer"])).decode())
        except Exception as error:      # the library raises plain Exception
            raise BundleError(f"[prompt] {bundle.path} holds a tokenizer that cannot be read: {error}. Export the bundle again.") from error
        self.decoder: LanguageModel = model if model is not None else Decoder(networks["decode"], DecoderSpec(**{name: self.spec[name] for name in (
            "width", "num_layers", "kv_heads", "head_width", "vocabulary", "context_length", "dtype")}))
        self.embed = TokenEmbedding(tables["token_embedding"])
        self.stop_ids = frozenset(self.spec["stop_ids"])
        self.r = self.spec["downsample"]
        self._most_blocks = most_in_a_run(bundle.manifest, "project", "blocks")

    def close(self) -> None:
        """Let go of networks and tables: whoever holds the session, or a look of it, holds this."""
        self._networks, self._tables, self.embed, self.decoder = {}, {}, None, None

    @property
    def looks_by_prompt(self) -> bool:
        """Whether a question says where to look (look_close_mode after_prompt), rather than the model's prior (after_image)."""
        return "prompt_head" in self._networks

    # -- text -----------------------------------------------------------------------------------------------------

    def message(self, parts: Sequence[object]) -> str:
        """Strings and frames (anything else) joined by nothing; control words for frames are deleted from strings."""
        read = str.lower if self.spec.get("lower_case") else str
        text = "".join(_clean(read(_checked(part))) if isinstance(part, str) else IMAGE for part in parts)
        num_frames = sum(not isinstance(part, str) for part in parts)
        if text.count(IMAGE) != num_frames or VIDEO in text:
            raise InputError(f"[encode_prompt] two texts together read {IMAGE} or {VIDEO}; only frames may. Pass the text as one part.")
        return text.strip()

    def ids(self, parts: Sequence[object]) -> list[int]:
        """Token ids of one user turn in the chat template; each frame is one id."""
        message = self.message(parts)
        message = message.strip() if self.spec["trim"] else message
        return self._tokenizer.encode(self.spec["before"] + message + self.spec["after"]).ids

    def prompt_end(self, ids: Sequence[int]) -> int:
        """Index of the user turn's last token: the one before the first end of a turn; the last of all where there is none."""
        end = self.spec["prompt_end_ids"]
        return next((i for i in range(len(ids) - len(end) + 1) if list(ids[i:i + len(end)]) == end), len(ids)) - 1

    def stream(self) -> TextStream:
        return TextStream(self._tokenizer)

    # -- rows -----------------------------------------------------------------------------------------------------

    def low_rows(self, tokens: np.ndarray) -> np.ndarray:
        """All low-res tokens (g * g, vision width) -> (m * m, width), m = ceil(g / r); zeros beyond the right and lower edge."""
        g, r = round(len(tokens) ** 0.5), self.r
        m = -(-g // r)
        full = np.zeros((m * r, m * r, tokens.shape[1]), np.float32)
        full[:g, :g] = tokens.reshape(g, g, -1)
        blocks = full.reshape(m, r, m, r, -1).transpose(0, 2, 1, 3, 4).reshape(m * m, -1)
        return self._project(blocks, 0, np.arange(m * m), m)

    def high_rows(self, high_tokens: np.ndarray, picked: dict[int, np.ndarray], prob: np.ndarray | None = None) -> np.ndarray:
        """Tokens of picked patches, scale by scale -> a row for each block of r x r of them that is complete: (K, width).

        prob: (g, g) f32 map they were picked by, for models whose rows are told how probable their place is.
        """
        rows, start, r = [np.empty((0, self.spec["width"]), np.float32)], 0, self.r
        for scale, (px, ids) in enumerate(picked.items(), 1):
            n = px // self.geometry["patch_px"]
            place = np.full(n * n, -1)
            place[ids] = np.arange(start, start + len(ids))
            cells = place.reshape(n // r, r, n // r, r).transpose(0, 2, 1, 3).reshape(-1, r * r)
            complete = np.flatnonzero((cells >= 0).all(axis=1))
            rows.append(self._project(high_tokens[cells[complete]].reshape(len(complete), r * r * high_tokens.shape[1]), scale, complete, n // r))
            if prob is not None and "row_prob" in self._tables:
                of_blocks = enlarged(prob, n).reshape(n // r, r, n // r, r).mean(axis=(1, 3)).reshape(-1)
                rows[-1] = rows[-1] + of_blocks[complete, None] * self._tables["row_prob"]
            start += len(ids)
        return np.concatenate(rows)

    def _project(self, blocks: np.ndarray, scale: int, ids: np.ndarray, grid: int) -> np.ndarray:
        if not len(blocks):
            return np.empty((0, self.spec["width"]), np.float32)
        pieces = [blocks] if self._most_blocks is None else np.split(blocks, range(self._most_blocks, len(blocks), self._most_blocks))
        rows = np.concatenate([self._networks["project"].run({"blocks": np.ascontiguousarray(piece)[None]}, ["rows"])["rows"][0] for piece in pieces])
        if "row_position" not in self._tables:
            return rows
        return rows + pooled(self._tables["row_position"], grid, ids) + self._tables["row_scale"][scale]

    def assemble(self, ids: Sequence[int], frames: Sequence[Sequence[tuple[Hashable, np.ndarray]]]) -> Rows:
        """Ids -> rows; in the place of the n-th frame's id stand the blocks (name, rows) of frames[n], then the line break."""
        image, newline = self.spec["image_id"], self.spec["newline_ids"]
        if sum(i == image for i in ids) != len(frames):
            raise InputError(f"[encode_prompt] the text names {sum(i == image for i in ids)} frames and {len(frames)} are given; the numbers must be equal.")
        text, line = self.embed(np.array([newline[0] if i == image else i for i in ids], np.int64)), self.embed(np.array(newline, np.int64))
        embeds, names, starts, left = [], [], [], list(frames)
        for i, row in zip(ids, text):
            starts.append(len(names))
            if i != image:
                embeds.append(row[None])
                names.append(("id", i))
                continue
            for source, rows in left.pop(0):
                embeds.append(rows)
                names += [(source, n) for n in range(len(rows))]
            embeds.append(line)
            names += [("id", i) for i in newline]
        return Rows(np.concatenate(embeds), tuple(names), tuple(starts))

    # -- reading and answering --------------------------------------------------------------------------------------

    def read(self, rows: Rows, known: Read | None = None) -> Read:
        """Read rows, those apart that `known` shares. Raises InputError where they are more than the context holds."""
        self.check_room(len(rows.names))
        state = known.shared(rows, self.decoder.empty) if known is not None else self.decoder.empty
        return Read(rows.names, self.decoder.prefill(rows.embeds[state.length:], state))

    def ask(self, ids: Sequence[int], low: Sequence[tuple[Hashable, np.ndarray]], known: Read | None) -> tuple[np.ndarray | None, Read | None]:
        """The vector a question looks for, (vision width,), after reading low-res rows and the user's text; None means the prior.

        low: per frame its name and low-res rows.
        """
        if not self.looks_by_prompt or not low:
            return None, known
        rows = self.assemble(ids, [[frame] for frame in low])
        end = (*rows.starts, len(rows.names))[self.prompt_end(ids) + 1]
        known = self.read(rows.upto(end), known)
        return self._networks["prompt_head"].run({"hidden": known.state.hidden[None]}, ["prompt"])["prompt"][0], known

    def answer(self, read: Read, *, max_tokens: int | None = None, sampling=None, cancel=None) -> Generation:
        """The answer behind what was read, token by token. Raises InputError where the context has no room for one."""
        limit = self.spec["context_length"]
        self.check_room(len(read.names) + 1)
        unseen = self.spec.get("confidence", {}).get("unseen")      # of the bundle's own language model
        seldom = {"seldom": (self._tokenizer.encode(self.spec["not_seen"]).ids[0], unseen)} if unseen and "not_seen" in self.spec and isinstance(self.decoder, Decoder) else {}
        return self.decoder.generate(read.state, self.embed, stop_ids=self.stop_ids, max_tokens=self.spec.get("answer_tokens", limit) if max_tokens is None else max_tokens,
                                     sampling=sampling, cancel=cancel, **seldom)

    def check_room(self, needed: int) -> None:
        """Raises InputError: so many rows are more than the context holds."""
        limit = self.spec["context_length"]
        if needed > limit:
            raise InputError(f"[decode] the prompt and the first token of an answer take {needed} rows or more; the model's context holds {limit}. "
                             "Pass fewer tokens=, fewer frames or a shorter text.")


def _clean(text: str) -> str:
    for word in (IMAGE, VIDEO):
        while word in text:         # once is not enough: <ima<image>ge>
            text = text.replace(word, "").strip()
    return _clean(text) if IMAGE in text else text


def _checked(text: str) -> str:
    """The text. Raises InputError: it holds half of a character, as the command line makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"[encode_prompt] the text holds {text[error.start]!r} at {error.start}, half of a character; whole ones are needed. Write it in UTF-8.") from error
    return text
