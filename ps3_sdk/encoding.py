"""Looking closely: what is picked for a prompt, encoded, and what comes of it. The four stages from score to encode_high."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from . import _core, blocks
from .answer import Timing
from .budget import Budget
from .errors import InputError
from .probability import certain, enlarged, smoothed
from .prompt import Prompt
from .timing import shared


@dataclass(frozen=True)
class Encoding:
    """PS3's own output for one frame and prompt.

    tokens: (num_low + num_high, width) f32, low-res tokens row-major, then the picked patches scale by scale, row-major
        inside a scale; before the trunk's final norm, as the public model returns them.
    prob: (g, g) f32 in [0, 1], how much the prompt cares about each place; g is the low-res grid's, or the first high-res grid's where
        the map was smoothed or places were certain | picked: {scale px: ascending int32 patch ids}.
    """
    tokens: np.ndarray
    num_low: int
    prob: np.ndarray
    picked: dict[int, np.ndarray]
    patch_px: int
    timing: Timing
    notes: tuple[str, ...] = ()

    @property
    def high_tokens(self) -> np.ndarray:
        """(num_high, width) f32"""
        return self.tokens[self.num_low:]

    def prob_at(self, scale_px: int) -> np.ndarray:
        """(rows, cols) f32: the probability map enlarged by nearest to the grid of a scale."""
        return enlarged(self.prob, scale_px // self.patch_px)

    @property
    def best_seen(self) -> float:
        """How probable the best place is that was picked: where looks went to other places before, not the best one of all. Of all where nothing was picked."""
        return max((float(self.prob_at(px).reshape(-1)[ids].max()) for px, ids in self.picked.items() if len(ids)), default=float(self.prob.max()))

    def feature_maps(self) -> dict[int, np.ndarray]:
        """{scale px: (width, rows, cols) f32} for every scale, zeros where nothing was picked. 0.4 GB at full 4K size."""
        g = round(self.num_low ** 0.5)
        maps = {g * self.patch_px: _core.scatter(self.tokens[:self.num_low], np.arange(g * g, dtype=np.int32), g, g)}
        start = self.num_low
        for px, ids in self.picked.items():
            n = px // self.patch_px
            maps[px] = _core.scatter(self.tokens[start:start + len(ids)], ids, n, n)
            start += len(ids)
        return maps


@dataclass(frozen=True, eq=False)
class Aim:
    """One thing to look closely at. look: a Look | query: what for | box_px: (x0, y0, x1, y1) frame pixels that are certain to matter |
    passed: glances at the most probable places before this one, of models that look around one of them; it is elsewhere."""
    look: object
    query: Prompt
    box_px: tuple[float, float, float, float] | None = None
    passed: int = 0


def look_closely(aims: Sequence[Aim], budget: Budget, timings: Sequence[Timing], *, rule: str | None = None, smooth: bool = False,
                 batch: int = 1) -> list[Encoding]:
    """An Encoding for each aim, all of one session, `batch` of them in a run of the network. timings: one each, the stages are added."""
    check_batch(batch)
    if not isinstance(smooth, bool):
        raise InputError(f"[select] smooth is {smooth!r}; True or False is needed.")
    for aim in aims if smooth else ():
        aim.look.session.check_smooth(aim.query.anywhere)
    found: list[Encoding] = []
    for start in range(0, len(aims), batch):
        found += _together(aims[start:start + batch], budget, timings[start:start + batch], rule, smooth)
    return found


def check_batch(batch: int) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"[session] batch is {batch!r}; it must be a whole number of at least 1.")


def _together(aims: Sequence[Aim], budget: Budget, timings: Sequence[Timing], rule: str | None, smooth: bool) -> list[Encoding]:
    session = aims[0].look.session
    scales_px, patch_px, r = session.geometry["scales_px"][1:], session.patch_px, block_side(session, rule)
    maps, wanted, own = [], [], [Timing() for _ in aims]
    for aim, timing in zip(aims, own):
        with timing.stage("score"):
            maps.append(_map(session, aim, scales_px[0] // patch_px, smooth))
            wanted.append(maps[-1] if smooth or aim.box_px is not None else session.aimed(maps[-1], aim.query.anywhere, aim.passed))
    taken = [{px: np.zeros((px // patch_px) ** 2, np.uint8) for px in scales_px} for _ in aims]
    found = [{px: [] for px in scales_px} for _ in aims]        # per aim and scale, per look: (ids, tokens)
    looks, whole = budget.looks if r == 1 else planned_blocks(session, budget, r), None
    for counts in looks:
        picks = []
        for prob, used, timing in zip(wanted, taken, own):
            with timing.stage("select"):
                picks.append({px: session.select(prob, px, count, used[px], r) for px, count in zip(scales_px, counts)})
        with shared(own, "gather"):
            gathered = session.gather_many([aim.look.placed or aim.look.frame for aim in aims], picks)
        with shared(own, "encode_high"):
            if len(looks) == len(aims) == 1:        # the encoding's own array is where its tokens are written
                low = aims[0].look.tokens
                whole = np.empty((len(low) + gathered[0].shape[1], low.shape[1]), np.float32)
                whole[:len(low)] = low
            high = session.encode_high_many(*gathered, [aim.look.kv for aim in aims], into=None if whole is None else whole[len(low):])
        for each, tokens, parts, timing in zip(picks, high, found, own):
            ends = np.cumsum([len(ids) for ids in each.values()])
            for px, part in zip(scales_px, np.split(tokens, ends[:-1])):
                parts[px].append((each[px], part))
    encodings, notes = [], budget.notes
    if r > 1 and budget.num_patches and not sum(map(sum, looks)):
        notes += (f"so few patches make no whole block of {r} x {r} at any scale, as the language model reads them: none was looked at",)
    for aim, prob, parts, timing, before in zip(aims, maps, found, own, timings):
        picked, tokens = _joined(parts)
        encodings.append(Encoding(np.concatenate([aim.look.tokens, *tokens]) if whole is None else whole, len(aim.look.tokens), prob, picked, patch_px,
                                  aim.look.timing + before + timing, notes + aim.query.notes))
        for name, ms in timing.stages_ms.items():
            before.add(name, ms)
    return encodings


def _map(session, aim: Aim, n: int, smooth: bool) -> np.ndarray:
    prob = session.score(aim.look, aim.query)
    if aim.box_px is not None:
        prob = certain(prob, n, aim.box_px, (aim.look.frame.height, aim.look.frame.width))
    return smoothed(prob, n) if smooth else prob


def _joined(found: dict[int, list]) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
    """Looks joined scale by scale, row-major inside a scale: picked ids, tokens."""
    picked, tokens = {}, []
    for px, rounds in found.items():
        ids = np.concatenate([np.empty(0, np.int32)] + [ids for ids, _ in rounds])
        order = np.argsort(ids, kind="stable")
        picked[px] = ids[order]
        if len(rounds) == 1:
            tokens.append(rounds[0][1])
        elif rounds:
            tokens.append(np.concatenate([part for _, part in rounds])[order])
    return picked, tokens


def planned_blocks(session, budget: Budget, r: int) -> list[list[int]]:
    """The budget in patches of whole r x r blocks, per look and high-res scale."""
    return blocks.plan_blocks(budget.looks, [(px // session.patch_px) ** 2 for px in session.geometry["scales_px"][1:]], r * r)


def block_side(session, rule: str | None) -> int:
    """Side of the blocks to select by, 1 for single patches."""
    if rule is not None and rule not in blocks.RULES:
        raise InputError(f"[select] rule is {rule!r}; {' or '.join(blocks.RULES)} is needed.")
    if session.language is None or rule == "patches":
        return 1
    grids = [px // session.patch_px for px in session.geometry["scales_px"]]
    return session.language.r if rule == "blocks" or blocks.is_tie_rule(grids[1:], grids[0], session.language.r) else 1
