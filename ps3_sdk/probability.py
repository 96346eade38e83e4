"""What may be done to a map of probabilities before patches are picked by it: places made certain, neighbours first, smoothing; and how sure an answer is.

Source: PS3 @ f7e3fd4, get_selection_probs (gt_selection_maps, smooth_selection_prob) and forward_high_res (pool_gt_token_only).
"""
from __future__ import annotations

import math

import numpy as np

SMOOTH_GRID = 6


def touched(box_px: tuple[float, float, float, float], frame_size: tuple[int, int], n: int) -> np.ndarray:
    """(n, n) bool: cells of an n x n grid over the frame that share some area with a box (x0, y0, x1, y1) in frame pixels."""
    (x0, y0, x1, y1), (height, width), i = box_px, frame_size, np.arange(n)
    inside = lambda low, high, size: (i + 1 > low * n / size) & (i < high * n / size)
    return inside(y0, y1, height)[:, None] & inside(x0, x1, width)[None]


def enlarged(prob: np.ndarray, n: int) -> np.ndarray:
    """(g, g) -> (n, n) by nearest: cell i takes from floor(i g / n)."""
    index = np.arange(n) * len(prob) // n
    return prob[np.ix_(index, index)]


def certain(prob: np.ndarray, n: int, box_px, frame_size: tuple[int, int]) -> np.ndarray:
    """The map on the n x n grid of the first high-res scale, 1 in every cell that the box touches."""
    return np.where(touched(box_px, frame_size, n), np.float32(1), enlarged(prob, n))


def around(prob: np.ndarray, radius: int, passed: int = 0) -> np.ndarray:
    """(g, g) -> the same with 1 added within `radius` places of the most probable one (the first of several), so that these are picked first: what is
    asked for is one thing, and what lies elsewhere is taken for it. passed: so many such neighbourhoods, the most probable one first, are passed over, of probability 0."""
    for _ in range(passed):
        prob = np.where(nearby(prob, radius), np.float32(0), prob)
    return prob + nearby(prob, radius)


def nearby(prob: np.ndarray, radius: int) -> np.ndarray:
    """(g, g) bool: within `radius` places of the most probable one, diagonals too."""
    side = np.arange(len(prob))
    near = [np.abs(side - at) <= radius for at in divmod(int(prob.argmax()), len(prob))]
    return near[0][:, None] & near[1][None]


def smoothed(prob: np.ndarray, n: int) -> np.ndarray:
    """The map on the n x n grid of the first high-res scale, averaged over 6 x 6 areas; maps of finer scales would average to the same."""
    weights = pooling_weights(n, SMOOTH_GRID).astype(np.float64)
    return enlarged((weights @ enlarged(prob, n) @ weights.T).astype(np.float32), n)


def calibrated(text: float, place: float, weights: dict[str, float]) -> float:
    """How probably an answer is right, from the language model's probability of its text and score's of the place it was looked for in: both are too sure
    by themselves, the one of what it reads, the other of where. weights: bias, text and place of a logistic regression on questions that no training saw."""
    logit = lambda share: math.log(min(max(share, 1e-6), 1 - 1e-6)) - math.log(1 - min(max(share, 1e-6), 1 - 1e-6))
    sure = weights["bias"] + weights["text"] * logit(text) + weights["place"] * logit(place)
    return 1 / (1 + math.exp(-min(max(sure, -500), 500)))


def pooled(table: np.ndarray, grid: int, ids: np.ndarray) -> np.ndarray:
    """(len(ids), width) f32: places `ids` of a grid x grid map that a table of (n * n, width) is pooled to, as by pooling_weights(n, grid) both ways.

    Summed cell by cell of a place's window: a product of matrices would wake the BLAS's threads, which go on turning after it and take the cores from the networks: an ask of the
    embedded model took a third longer on 2 cores.
    """
    n = round(len(table) ** 0.5)
    windows = [(i * n // grid, -(-(i + 1) * n // grid) - i * n // grid) for i in np.divmod(ids, grid)]
    (top, height), (left, width) = windows
    found = np.zeros((len(ids), table.shape[1]), np.float32)
    for y in range(height.max(initial=0)):
        for x in range(width.max(initial=0)):
            inside = np.flatnonzero((y < height) & (x < width))
            found[inside] += table[(top + y)[inside] * n + (left + x)[inside]]
    return found / (height * width).astype(np.float32)[:, None]


def pooling_weights(old: int, new: int) -> np.ndarray:
    """(new, old) f32: adaptive area mean. Output i averages inputs floor(i old / new) to ceil((i + 1) old / new) - 1, also when enlarging."""
    i, j = np.arange(new)[:, None], np.arange(old)
    inside = (j >= i * old // new) & (j < -(-(i + 1) * old // new))
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
