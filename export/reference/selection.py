"""select: how many patches each look takes of each scale, and which. Pure counting first, tensors after.

Source: PS3 @ f7e3fd4, forward and get_selection_maps. Different here: ties go to the lower id (torch.topk leaves them
open), and zero looks or budgets too small for a single patch give fewer patches where the reference stops with an error.
"""
from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor

from ps3_sdk.errors import BudgetError

Look = list[list[Tensor]]   # look[scale][image]: ascending int64 patch ids


def plan_looks(capacity: Sequence[int], per_look: Sequence[int], *, num_looks: int | str | None = None, num_tokens: int | None = None,
               first_scales: int | None = None, reach: int | None = None) -> list[list[int]]:
    """Patches to take, per look and high-res scale.

    Args:
        capacity: patches of each high-res scale.
        per_look: patches one full look takes of each.
        num_looks: how many looks, at most as many as it takes to see everything; "all" for that many. Default 1.
        num_tokens: instead, how many patches. The last look takes what is left, every scale its share rounded down.
        first_scales: look closely at the first n scales; the others get 1 patch, and the last scale what rounding left over.
        reach: how many scales count as "everything", default first_scales (a batch counts the largest of its images').
    Raises:
        BudgetError: negative, or num_looks and num_tokens both given, or first_scales outside 1..scales.
    What a scale cannot give any more, the next scale gives; what the last cannot give is lost. Empty looks are dropped.
    """
    if num_looks is not None and num_tokens is not None:
        raise BudgetError("[select] num_looks and num_tokens are both given; they are two ways to say the same. Pass one of them.")
    num_looks = 1 if num_looks is None and num_tokens is None else num_looks
    for name, value in (("num_looks", num_looks), ("num_tokens", num_tokens)):
        if value is not None and value != "all" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise BudgetError(f"[select] {name} is {value!r}; it must be a whole number of at least 0{' or all' if name == 'num_looks' else ''}.")
    if first_scales is not None and not 1 <= first_scales <= len(capacity):
        raise BudgetError(f"[select] first_scales is {first_scales}; this model has {len(capacity)} high-res scales. Pass 1 to {len(capacity)}.")
    full, everything = sum(per_look), sum(capacity[:reach or first_scales])
    most = math.ceil(everything / full)
    budgets: list[int | None]
    if num_tokens is not None and num_tokens != "all":
        num_tokens = min(num_tokens, everything)
        looks = math.ceil(num_tokens / full)
        budgets = [None] * (looks - 1) + [num_tokens % full or full] if looks else []
    else:
        budgets = [None] * (most if "all" in (num_looks, num_tokens) else min(num_looks, most))
    free = list(capacity)
    looks = [_take(free, _wanted(per_look, budget, first_scales)) for budget in budgets]
    return [look for look in looks if sum(look)]


def _wanted(per_look: Sequence[int], budget: int | None, first_scales: int | None) -> list[int]:
    full = sum(per_look)
    wanted = list(per_look) if budget is None else [int(count * budget / full) for count in per_look]
    if first_scales is not None and sum(wanted[:first_scales]):
        near, total = sum(wanted[:first_scales]), sum(wanted)
        wanted = [int(count / near * total) if i < first_scales else 1 for i, count in enumerate(wanted)]
        wanted[-1] = max(0, wanted[-1] + full - sum(wanted))    # also under a budget: the reference fills up to a full look
    return wanted


def _take(free: list[int], wanted: list[int]) -> list[int]:
    """What can be taken of `wanted`; lowers `free`."""
    for i in range(len(wanted)):
        if wanted[i] > free[i]:
            if i + 1 < len(wanted):
                wanted[i + 1] += wanted[i] - free[i]
            wanted[i] = free[i]
        free[i] -= wanted[i]
    return wanted


def select(prob: Tensor, count: int, taken: Tensor) -> Tensor:
    """The `count` most probable free patches of one map.

    Args:
        prob: (rows, cols) f32. taken: (rows * cols,) bool, marked with what is picked.
    Returns:
        (count,) int64, ascending. Ties: the lower id wins.
    """
    scores = prob.detach().flatten().masked_fill(taken, -1.0)
    ids = torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
    taken[ids] = True
    return ids


def pick_looks(maps: list[Tensor], plans: list[list[list[int]]]) -> list[Look]:
    """maps: per scale (batch, rows, cols); plans: per image, what plan_looks gave. Every image has the same number of looks."""
    taken = [torch.zeros_like(m, dtype=torch.bool).flatten(1) for m in maps]
    return [[[select(m[image], plans[image][look][scale], taken[scale][image]) for image in range(len(m))] for scale, m in enumerate(maps)]
            for look in range(len(plans[0]))]


def to_ids(maps: Sequence[Tensor]) -> Look:
    """Per scale (batch, rows, cols), nonzero = picked -> ids."""
    return [[torch.nonzero(image.flatten(), as_tuple=True)[0] for image in m] for m in maps]


def to_maps(looks: list[Look], sizes: list[tuple[int, int]], batch: int, device: torch.device) -> list[Tensor]:
    """The union of all looks: per scale (batch, rows, cols) bool."""
    maps = [torch.zeros(batch, rows * cols, dtype=torch.bool, device=device) for rows, cols in sizes]
    for look in looks:
        for m, scale in zip(maps, look):
            for image, ids in enumerate(scale):
                m[image, ids] = True
    return [m.unflatten(1, size) for m, size in zip(maps, sizes)]
