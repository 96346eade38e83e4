"""Blocks of r x r patches, the language model's tokens: which are complete, and how to select whole ones.

The public model selects patches one by one and then drops every block that is not complete: patches at the edge of what was
selected are encoded for nothing. select_blocks spends the same budget on whole blocks. Where the cells of the probability map
hold whole blocks (r = 2) it differs from patch by patch selection in the last, partly taken cell alone, where all patches are
equally probable: a tie rule. Where blocks straddle cells (r = 3) a block counts as probable as its patches on average, and other
patches than the public model's are picked.
"""
from __future__ import annotations

import torch
from torch import Tensor


def cells_of(grid: int, r: int, device: torch.device | None = None) -> Tensor:
    """(m * m, r * r) int64: the patch ids of every block of a grid x grid scale, m = grid / r; blocks and cells row-major."""
    ids = torch.arange(grid * grid, device=device).reshape(grid // r, r, grid // r, r)
    return ids.transpose(1, 2).reshape(-1, r * r)


def complete_blocks(ids: Tensor, grid: int, r: int) -> tuple[Tensor, Tensor]:
    """Which blocks hold picked patches only.

    Args:
        ids: (K,) int64, the picked patches of a scale.
    Returns:
        (B,) int64 ascending block ids; (B, r * r) int64, where in `ids` each cell of these blocks is.
    """
    place = torch.full((grid * grid,), -1, device=ids.device)
    place[ids] = torch.arange(len(ids), device=ids.device)
    cells = place[cells_of(grid, r, ids.device)]
    blocks = torch.nonzero((cells >= 0).all(dim=1), as_tuple=True)[0]
    return blocks, cells[blocks]


def select_blocks(prob: Tensor, count: int, taken: Tensor, r: int) -> Tensor:
    """The count / r^2 most probable blocks of one square map of which no patch is taken.

    Args:
        prob: (grid, grid) f32. taken: (grid * grid,) bool, marked with what is picked.
    Returns:
        (count,) int64 patch ids, ascending. Ties: the lower block id wins. Fewer where fewer blocks are free.
    """
    cells = cells_of(prob.shape[0], r, prob.device)
    scores = prob.detach().flatten().double()[cells].mean(dim=1)     # double: means of equal values stay equal, of others ordered
    scores[taken[cells].any(dim=1)] = -1.0
    order = torch.sort(scores, descending=True, stable=True).indices[:count // (r * r)]
    ids = cells[order[scores[order] >= 0]].flatten().sort().values
    taken[ids] = True
    return ids
