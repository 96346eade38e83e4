"""The rows the language model reads: text, frames and line breaks as embeddings, each row with a name.

Rows of equal names are equal rows, so two sequences share the keys and values of their leading rows of equal names: the prompt
pass and the answer pass share everything up to the first high-res row, two questions about one frame the system text and the
frame's low-res rows.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Hashable, Sequence

import torch
from torch import Tensor

from ps3_sdk.errors import InputError

from ..trunk import KeyValue
from .llm import Decoder

Block = tuple[Hashable, Tensor]     # what the rows come from, and the rows (K, width)


@dataclass(frozen=True, eq=False)
class Rows:
    """embeds: (rows, width) f32 | names: per row, what it is | starts: where each id's rows begin (an image id's: its first)."""
    embeds: Tensor
    names: tuple[Hashable, ...]
    starts: tuple[int, ...]

    def upto(self, end: int) -> "Rows":
        return Rows(self.embeds[:end], self.names[:end], tuple(start for start in self.starts if start < end))


@dataclass(frozen=True, eq=False)
class Prefilled:
    """What the language model knows after reading rows: kv per layer, each (1, num_kv_heads, rows, head_width); hidden: (width,),
    of the last row after the final norm | num_reused: rows that were not computed again."""
    names: tuple[Hashable, ...]
    kv: list[KeyValue]
    hidden: Tensor
    num_reused: int

    def shared(self, rows: Rows) -> int:
        """How many leading rows are known already."""
        pairs = zip(self.names, rows.names)
        return next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.names), len(rows.names)))


def assemble(llm: Decoder, ids: Sequence[int], image_id: int, newline_ids: Sequence[int], images: Sequence[Sequence[Block]]) -> Rows:
    """Ids -> rows; in the place of the n-th image id stand the blocks of images[n], then the line break.

    Raises InputError: another number of images than image ids; an id that the checkpoint has no embedding for.
    """
    if sum(i == image_id for i in ids) != len(images):
        raise InputError(f"[encode_prompt] the ids hold {sum(i == image_id for i in ids)} frames and {len(images)} are given; the numbers must be equal.")
    device = llm.model.embed_tokens.weight.device
    unknown = [i for i in (*ids, *newline_ids) if i != image_id and not 0 <= i < llm.vocabulary]
    if unknown:
        raise InputError(f"[encode_prompt] id {unknown[0]} has no embedding, this checkpoint has {llm.vocabulary}. Leave the control token out of the text.")
    line = [("id", i) for i in newline_ids]
    embeds, names, starts, left = [], [], [], list(images)
    text = llm.embed(torch.tensor([0 if i == image_id else i for i in ids], dtype=torch.int64, device=device))
    newline = llm.embed(torch.tensor(list(newline_ids), dtype=torch.int64, device=device))
    for i, row in zip(ids, text):
        starts.append(len(names))
        if i != image_id:
            embeds.append(row[None])
            names.append(("id", i))
            continue
        for source, rows in left.pop(0):
            embeds.append(rows)
            names += [(source, n) for n in range(len(rows))]
        embeds.append(newline)
        names += line
    return Rows(torch.cat(embeds) if embeds else text, tuple(names), tuple(starts))


def prefill(llm: Decoder, rows: Rows, known: Prefilled | None = None) -> Prefilled:
    """Read rows; those that `known` shares are taken from it. At least the last row is read anew, for its hidden state."""
    if not rows.names:
        raise InputError("[decode] there are no rows to read; at least one is needed.")
    start = min(known.shared(rows), len(rows.names) - 1) if known is not None else 0
    past = [(key[:, :, :start], value[:, :, :start]) for key, value in known.kv] if start else None
    hidden, kv = llm(rows.embeds[start:][None], past)
    return Prefilled(rows.names, kv, hidden[0, -1], start)
