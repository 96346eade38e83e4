"""Look: what one frame costs once and every question about it shares. The stages of a question, one line each."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import _core, blocks
from .answer import Answer, Timing
from .ask import ask_together, look_for
from .budget import Budget
from .errors import InputError
from .frame import Frame
from .prompt import Prompt


@dataclass(frozen=True)
class Encoding:
    """PS3's own output for one frame and prompt.

    tokens: (num_low + num_high, width) f32, low-res tokens row-major, then the picked patches scale by scale, row-major
        inside a scale; before the trunk's final norm, as the public model returns them.
    prob: (g, g) f32 in (0, 1), how much the prompt cares about each place | picked: {scale px: ascending int32 patch ids}.
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
        n, g = scale_px // self.patch_px, len(self.prob)
        index = np.arange(n) * g // n
        return self.prob[np.ix_(index, index)]

    def feature_maps(self) -> dict[int, np.ndarray]:
        """{scale px: (width, rows, cols) f32} for every scale, zeros where nothing was picked. 0.4 GB at full 4K size."""
        g = len(self.prob)
        maps = {g * self.patch_px: _core.scatter(self.tokens[:self.num_low], np.arange(g * g, dtype=np.int32), g, g)}
        start = self.num_low
        for px, ids in self.picked.items():
            n = px // self.patch_px
            maps[px] = _core.scatter(self.tokens[start:start + len(ids)], ids, n, n)
            start += len(ids)
        return maps


@dataclass(frozen=True, eq=False)
class Look:
    """One frame seen once at low resolution. Made by Session.look; ask it as many questions as you like.

    The frame's memory is not copied: leave it unchanged while the look is in use.
    """
    session: "Session"      # noqa: F821  (session.py imports this module)
    frame: Frame
    tokens: np.ndarray                     # (low-res tokens, width) f32
    kv: dict[str, np.ndarray]              # past_key_i, past_value_i: (1, heads, low-res tokens, head_width) f32
    low_features: np.ndarray               # (low-res tokens, width) f32, what score() compares prompts with
    view_features: np.ndarray | None       # (view places, view_width) f32
    timing: Timing = field(repr=False)
    rows: np.ndarray | None = None         # (low-res rows, language width) f32, what a language model sees of the frame
    memory: dict = field(default_factory=dict, repr=False)     # "read": what the language model has read, kept for the next question

    def ask(self, prompt: str = "", **options) -> Answer:
        """Answer one question about this frame; arguments as in Session.ask. The low-res pass is not repeated."""
        return ask_together([self], prompt, **options)[0]

    def encode(self, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, rule=None) -> Encoding:
        """PS3's own output for this frame; arguments as in Session.ask."""
        timing = Timing()
        self.session._open()
        budget = self.session.budget(tokens, looks, scales)
        _, query, read = look_for([self], prompt, prompt_embedding, timing)
        self.memory["read"] = read
        return self.encode_for(query, budget, timing, rule)

    def encode_for(self, query: Prompt, budget: Budget, timing: Timing, rule: str | None) -> Encoding:
        """Score, select, gather and encode_high for a prompt vector; see encode."""
        session, scales_px = self.session, self.session.geometry["scales_px"][1:]
        r = self._block_side(rule)
        with timing.stage("score"):
            prob = session.score(self, query)
        taken = {px: np.zeros((px // session.patch_px) ** 2, np.uint8) for px in scales_px}
        found = {px: [] for px in scales_px}                    # per scale, per look: (ids, tokens)
        for counts in budget.looks if r == 1 else blocks.plan_blocks(budget.looks, list(map(len, taken.values())), r * r):
            with timing.stage("select"):
                picks = {px: session.select(prob, px, count, taken[px], r) for px, count in zip(scales_px, counts)}
            with timing.stage("gather"):
                patches, position = session.gather(self.frame, picks)
            with timing.stage("encode_high"):
                high = session.encode_high(patches, position, self.kv)
            ends = np.cumsum([len(ids) for ids in picks.values()])
            for px, part in zip(scales_px, np.split(high, ends[:-1])):
                found[px].append((picks[px], part))
        picked, parts = {}, [self.tokens]
        for px, rounds in found.items():                        # looks are joined scale by scale, row-major inside a scale
            ids = np.concatenate([np.empty(0, np.int32)] + [ids for ids, _ in rounds])
            order = np.argsort(ids, kind="stable")
            picked[px] = ids[order]
            if len(rounds) == 1:
                parts.append(rounds[0][1])
            elif rounds:
                parts.append(np.concatenate([part for _, part in rounds])[order])
        return Encoding(np.concatenate(parts), len(self.tokens), prob, picked, session.patch_px, self.timing + timing, budget.notes + query.notes)

    def _block_side(self, rule: str | None) -> int:
        """Side of the blocks to select by, 1 for single patches."""
        session, language = self.session, self.session.language
        if rule is not None and rule not in blocks.RULES:
            raise InputError(f"[select] rule is {rule!r}; {' or '.join(blocks.RULES)} is needed.")
        if language is None or rule == "patches":
            return 1
        grids = [px // session.patch_px for px in session.geometry["scales_px"]]
        return language.r if rule == "blocks" or blocks.is_tie_rule(grids[1:], grids[0], language.r) else 1
