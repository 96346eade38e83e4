"""How many patches of each high-res scale an ask may look at."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import _core
from .errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """looks: per look, patches per high-res scale (scales ascending) | notes: what was changed in what the user asked for | scales: the first ones alone, see plan."""
    looks: list[list[int]]
    notes: tuple[str, ...] = ()
    scales: int | None = None

    @property
    def num_patches(self) -> int:
        return sum(map(sum, self.looks))


def fitting(geometry: dict, most: int | None) -> dict:
    """The geometry with looks of at most so many patches, None for any number: an engine may be built for fewer than a full look of its model."""
    per_look = geometry["per_look"]
    if most is None or sum(per_look) <= most:
        return geometry
    return {**geometry, "per_look": [count * most // sum(per_look) for count in per_look]}


def plan(geometry: dict, tokens: int | None = None, looks: int | str | None = None, scales: int | None = None) -> Budget:
    """The reference's budget rules, for one frame.

    Args:
        geometry: the manifest's.
        tokens: high-res patches to look at, 0 for the low-res pass alone; a few less may be taken, since every scale's share
            is rounded down. Default: one look of the model's own size (2559 for the 4K models).
        looks: instead of tokens, how many full looks, or "all" for every patch of every scale.
        scales: look only at the first `scales` high-res scales, which then share the budget of all.
    Raises:
        BudgetError: negative, both given, or not whole numbers.
    Source: PS3 @ f7e3fd4, get_selection_maps and forward; zero looks and budgets too small for one patch are allowed here. With
        `scales` PS3 gives each scale left out one patch, and a token budget makes it fill up the last scale to a full look; its
        exact counts are plan_looks(first_scales=) of the core.
    """
    if tokens is not None and looks is not None:
        raise BudgetError("[budget] tokens and looks are both given; they are two ways to say the same. Pass one of them.")
    tokens, looks, scales = (int(value) if isinstance(value, np.integer) else value for value in (tokens, looks, scales))
    for name, value in (("tokens", tokens), ("looks", looks if looks != "all" else 0), ("scales", scales)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise BudgetError(f"[budget] {name} is {value!r}; it must be a whole number of at least 0{' or all' if name == 'looks' else ''}.")
    high = geometry["scales_px"][1:]
    if scales is not None and not 1 <= scales <= len(high):
        raise BudgetError(f"[budget] scales is {scales}; this model has {len(high)} high-res scales. Pass 1 to {len(high)}.")
    capacity = [(px // geometry["patch_px"]) ** 2 for px in high]
    per_look = geometry["per_look"]
    if scales is not None and sum(per_look[:scales]):
        per_look = [count * sum(per_look) // sum(per_look[:scales]) for count in per_look[:scales]]
        capacity = capacity[:scales]
    reachable, left_out = sum(capacity), [0] * (len(high) - len(capacity))
    notes = []
    if tokens is not None and tokens > reachable:
        notes.append(f"{tokens} patches were asked for; the model has no more than {reachable}")
        tokens, looks = None, "all"
    arguments = dict(num_tokens=tokens) if tokens is not None else dict(all=True) if looks == "all" else dict(num_looks=1 if looks is None else looks)
    planned = [look + left_out for look in _core.plan_looks(capacity, per_look, **arguments)]
    if tokens and not sum(map(sum, planned)):
        notes.append(f"{tokens} patches were asked for, too few for any scale's share: none was looked at")
    return Budget(planned, tuple(notes), scales)


def parts(geometry: dict, budget: Budget, size: int, most: int) -> list[Budget]:
    """A budget as equal ones of at least `size` patches, and less than twice that where these are not more than `most`; itself where it is less than two of them."""
    rounded = len(budget.looks[0]) if budget.looks else 0       # patches that it may fall short by
    count = min((budget.num_patches + rounded) // size, most)
    if count < 2:
        return [budget]
    part = plan(geometry, max(size, -(-budget.num_patches // count)), None, budget.scales)
    return [replace(part, notes=budget.notes)] * count
