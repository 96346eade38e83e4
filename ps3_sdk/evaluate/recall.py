"""Which patches a budget picks out of a probability map, and how much of a box they cover. No network runs here."""
from __future__ import annotations

from typing import Sequence

import numpy as np

from .. import blocks
from ..budget import Budget
from ..encoding import block_side
from ..session import Session


def choose(session: Session, prob: np.ndarray, budget: Budget, rule: str | None = None) -> list[dict[int, np.ndarray]]:
    """What an ask would pick by this (g, g) map: per look {scale px: ascending int32 patch ids}."""
    scales_px, r = session.geometry["scales_px"][1:], block_side(session, rule)
    taken = {px: np.zeros((px // session.patch_px) ** 2, np.uint8) for px in scales_px}
    looks = budget.looks if r == 1 else blocks.plan_blocks(budget.looks, list(map(len, taken.values())), r * r)
    return [{px: session.select(prob, px, count, taken[px], r) for px, count in zip(scales_px, counts)} for counts in looks]


def coverage(box_px: Sequence[float], ids: np.ndarray, grid: int, frame_size: tuple[int, int]) -> float:
    """Share of a box's area in the frame inside the picked patches of a grid x grid scale; 0 for a box outside the frame or without area."""
    height, width = frame_size
    x0, y0, x1, y1 = box_px
    edges = np.arange(grid + 1)
    across = _overlap(edges * width / grid, x0, x1)
    down = _overlap(edges * height / grid, y0, y1)
    area = down.sum() * across.sum()
    if not area > 0:
        return 0.0
    row, col = np.divmod(np.asarray(ids, np.int64), grid)
    return float((down[row] * across[col]).sum() / area)


def _overlap(edges, low, high):
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)


def selection_recall(session: Session, prob: np.ndarray, boxes_px, frame_size: tuple[int, int], budgets: Sequence[int], scales: int | None = None,
                     anywhere: bool = True) -> dict[str, float]:
    """{budget: share of the boxes that finest-scale patches cover, mean over the boxes}; budgets beyond all patches are left out.

    prob: (g, g) f32 | anywhere: False means as the session's own asks pick by it, in all the glances that a budget holds.
    """
    px, found = _finest_px(session, scales), {}
    for tokens in budgets:
        budget = session.budget(tokens=tokens, scales=scales)
        if budget.notes:
            continue
        picked = [look[px] for n, part in enumerate(session.glances(budget, anywhere)) for look in choose(session, session.aimed(prob, anywhere, n), part)]
        ids = np.unique(np.concatenate([np.empty(0, np.int32), *picked]))
        found[str(tokens)] = _mean_coverage(session, px, ids, boxes_px, frame_size)
    return found


def share_seen(session: Session, picked: dict[int, np.ndarray], boxes_px, frame_size: tuple[int, int], scales: int | None = None) -> float:
    """Share of the boxes that an answer's finest-scale patches cover, mean over the boxes. picked: as in Answer."""
    px = _finest_px(session, scales)
    return _mean_coverage(session, px, picked[px], boxes_px, frame_size)


def _finest_px(session: Session, scales: int | None) -> int:
    return session.geometry["scales_px"][1:][-1 if scales is None else scales - 1]


def _mean_coverage(session: Session, px: int, ids: np.ndarray, boxes_px, frame_size: tuple[int, int]) -> float:
    return round(float(np.mean([coverage(box, ids, px // session.patch_px, frame_size) for box in boxes_px])), 6)
