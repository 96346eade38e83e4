"""Selecting whole blocks of r x r patches, the language model's tokens, so that no patch is encoded for nothing.

Patch by patch selection leaves blocks incomplete at the edge of what it took, and an incomplete block is never read. Where the
cells of the probability map hold whole blocks this is a tie rule: other patches of the last, partly taken cell, all equally
probable. Elsewhere (r = 3) a block counts as probable as its patches on average, and other patches than PS3's are picked.
"""
from __future__ import annotations

from functools import reduce
from typing import Sequence

import numpy as np

from . import _core

RULES = ("patches", "blocks")


def is_tie_rule(grids: Sequence[int], g: int, r: int) -> bool:
    """Whether every cell of a g x g map holds whole r x r blocks of every high-res grid."""
    return all(n % g == 0 and n // g % r == 0 for n in grids)


def plan_blocks(looks: Sequence[Sequence[int]], capacity: Sequence[int], size: int) -> list[list[int]]:
    """A plan in patches as one in whole blocks of `size` patches, never more patches up to any look.

    What does not fill a block at one scale is offered to the next, what the last cannot fill to the next look, so that a plan of all
    patches stays one; what the last look cannot fill is saved. Empty looks are dropped.
    """
    free, planned, spare = [n // size for n in capacity], [], 0
    for wanted in looks:
        look = []
        for i, count in enumerate(wanted):
            blocks = min((count + spare) // size, free[i])
            spare += count - blocks * size
            free[i] -= blocks
            look.append(blocks * size)
        planned.append(look)
    return [look for look in planned if sum(look)]


def select_blocks(prob: np.ndarray, n: int, count: int, taken: np.ndarray, r: int) -> np.ndarray:
    """The count / r^2 most probable free blocks of an n x n grid.

    Args:
        prob: (g, g) f32, enlarged by nearest | taken: (n * n,) uint8, marked with what is picked.
    Returns:
        ascending int32 patch ids, `count` of them, fewer where fewer blocks are free. Ties: the lower block id wins.
    """
    m = n // r
    rows_of = reduce(np.bitwise_or, (taken.reshape(n, n)[i::r] for i in range(r)))
    used = reduce(np.bitwise_or, (rows_of[:, i::r] for i in range(r))).reshape(-1) != 0
    wanted = min(count // (r * r), m * m - int(np.count_nonzero(used)))
    if is_tie_rule([n], len(prob), r):      # a block is as probable as its cell
        best = _core.select(prob, m, m, wanted, used.view(np.uint8))
    else:
        index = np.arange(n) * len(prob) // n
        scores = prob[np.ix_(index, index)].astype(np.float64).reshape(m, r, m, r).transpose(0, 2, 1, 3).reshape(m * m, r * r).mean(axis=1)
        scores[used] = -1                   # double: means of equal values stay equal
        best = np.argsort(-scores, kind="stable")[:wanted]
    rows, cols = np.divmod(best.astype(np.int32), np.int32(m))
    side = np.arange(r, dtype=np.int32)
    ids = np.sort((((rows * r)[:, None] + side)[:, :, None] * np.int32(n) + ((cols * r)[:, None] + side)[:, None, :]).reshape(-1))
    taken[ids] = 1
    return ids
