"""What VILA-HD's steps hand on."""
from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..outputs import Low
from ..selection import Look
from .sequence import Prefilled


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame looked at once. pixels: (1, 3, S, S) | rows: (m * m, width of the language model), its low-res rows |
    original_size: (rows, cols) that dynamic sizes go by, None to look at every scale."""
    pixels: Tensor
    low: Low
    rows: Tensor
    original_size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Picked:
    """Where to look closely. probs: per high-res scale (rows, cols) | looks: per look and scale [ids], ids (K,) int64 ascending."""
    probs: list[Tensor]
    looks: list[Look]


@dataclass(frozen=True, eq=False)
class High:
    """A frame looked at closely. tokens: (N, vision width), scale by scale, row-major, all looks together | ids: per high-res scale,
    ascending, of these tokens | blocks: per high-res scale, ids of the complete blocks | rows: (K, width of the language model),
    one per block; where no block is complete, the frame's first low-res row."""
    tokens: Tensor
    ids: list[Tensor]
    blocks: list[Tensor]
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Asked:
    """What a question makes of what was seen. vector: (1, vision width), None for the prior | hidden: (width,) it was made of |
    position, row: of the user turn's last token, in the ids and in the rows."""
    vector: Tensor | None
    hidden: Tensor | None = None
    position: int | None = None
    row: int | None = None
    known: Prefilled | None = None


@dataclass(frozen=True, eq=False)
class Generated:
    """text: the answer | ids: its tokens, without the one that ended it | stopped: whether one did | logprob: of all of them, that one, too | num_rows: of the prompt |
    known: pass it to the next question, whose equal leading rows are then not read again."""
    text: str
    ids: list[int]
    stopped: bool
    logprob: float
    num_rows: int
    picked: list[Picked] = field(repr=False)
    high: list[High] = field(repr=False)
    known: Prefilled = field(repr=False)
