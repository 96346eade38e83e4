"""Look: what one frame costs once and every question about it shares. The stages of a question, one line each."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import _core, blocks
from .answer import Answer, Timing, regions_from_map
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
    _read: dict = field(default_factory=dict, repr=False)      # what the language model has read of this frame, kept for the next question

    def ask(self, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, choices=None, rule=None, max_tokens=None,
            sampling=None, cancel=None, on_text=None) -> Answer:
        """Answer one question about this frame; arguments as in Session.ask. The low-res pass is not repeated."""
        timing, session = Timing(), self.session
        session._open()
        budget = session.budget(tokens, looks, scales)
        choices = self._checked(choices) if choices is not None else None
        ids, query, read = self._query(prompt, prompt_embedding, timing)
        encoding = self._encode(query, budget, timing, rule)
        ranked, text, notes = session.rank(choices, encoding, timing) if choices is not None else [], None, ()
        if ranked:
            text = ranked[0].text
        elif ids is not None:
            with timing.stage("decode"):
                text, notes = self._words(ids, encoding, read, max_tokens, sampling, cancel, on_text)
        return Answer(
            prompt=query.text, text=text, choices=ranked,
            regions=regions_from_map(encoding.prob, encoding.picked, (self.frame.height, self.frame.width), patch_px=encoding.patch_px),
            picked=encoding.picked, prob=encoding.prob, timing=self.timing + timing, frame_size=(self.frame.height, self.frame.width),
            notes=encoding.notes + notes + session.notes, patch_px=encoding.patch_px, frame=self.frame)

    def _query(self, prompt: str, embedding, timing: Timing):
        """Token ids (None without a language model), what to look for, and what the language model has read to know it."""
        session, language = self.session, self.session.language
        if language is None:
            return None, session.encode_prompt(prompt, embedding, timing), None
        if not isinstance(prompt, str):
            raise InputError(f"[encode_prompt] the prompt is {type(prompt).__name__}; it must be a str.")
        with timing.stage("encode_prompt"):
            ids = language.ids([self, prompt])
            if embedding is not None:
                return ids, session.encode_prompt(prompt, embedding), self._read.get("last")
            vector, read = language.ask(ids, [((self, "low"), self.rows)], self._read.get("last"))
            query = Prompt(prompt, vector, None) if vector is not None else session.prior(prompt, "this model looks by saliency")
        return ids, query, read

    def _words(self, ids: list[int], encoding: Encoding, read, max_tokens, sampling, cancel, on_text) -> tuple[str, tuple[str, ...]]:
        """The language model's answer. What it read is kept: the next question shares the system text and the low-res rows."""
        language = self.session.language
        high = language.high_rows(encoding.high_tokens, encoding.picked)
        high = high if len(high) else self.rows[:1]             # the public model's stand-in where no block is complete
        rows = language.assemble(ids, [[((self, "low"), self.rows), (object(), high)]])
        read = language.read(rows, read)
        self._read["last"] = read
        stream, generation = language.stream(), language.answer(read, max_tokens=max_tokens, sampling=sampling, cancel=cancel)
        for token in generation:
            piece = stream.push(token.id)
            if piece and on_text is not None:
                on_text(piece)
        piece = stream.finish()
        if piece and on_text is not None:
            on_text(piece)
        notes = generation.notes + ((f"the answer ended by {generation.stopped}",) if generation.stopped != "stop id" else ())
        return stream.text.strip(), notes

    def encode(self, prompt: str = "", *, prompt_embedding=None, tokens=None, looks=None, scales=None, rule=None) -> Encoding:
        """PS3's own output for this frame; arguments as in Session.ask."""
        timing = Timing()
        self.session._open()
        budget = self.session.budget(tokens, looks, scales)
        _, query, read = self._query(prompt, prompt_embedding, timing)
        self._read.setdefault("last", read)
        return self._encode(query, budget, timing, rule)

    def _encode(self, query: Prompt, budget: Budget, timing: Timing, rule: str | None) -> Encoding:
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

    @staticmethod
    def _checked(choices) -> list[str]:
        if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise InputError(f"[decode] choices is {choices!r}; it must be a list of texts, at least one and none empty. Pass choices=[\"red\", \"green\"].")
        return list(choices)
