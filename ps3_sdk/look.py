"""Look: what one frame costs once and every question about it shares."""
from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .answer import Answer, Timing
from .ask import ask_each, ask_together, look_for
from .encoding import Aim, Encoding, look_closely
from .frame import Frame
from .similarity import Similarity, compare_regions


@dataclass(frozen=True, eq=False, repr=False)
class Look:
    """One frame seen once at low resolution. Made by Session.look; ask it as many questions as you like.

    The frame's memory is not copied, but to a GPU where patches are cut there: leave it unchanged while the look is in use.
    """
    session: "Session"      # noqa: F821  (session.py imports this module)
    frame: Frame
    tokens: np.ndarray                     # (low-res tokens, width) f32
    kv: dict[str, np.ndarray]              # past_key_i, past_value_i: (1, heads, low-res tokens, head_width) f32; of engines on the device
    low_features: np.ndarray               # (low-res tokens, width) f32, what score() compares prompts with; on the GPU where ops run there, as are
    view_features: np.ndarray | None       # (view places, view_width) f32
    timing: Timing = field(repr=False)
    rows: np.ndarray | None = None         # (low-res rows, language width) f32, what a language model sees of the frame
    memory: dict = field(default_factory=dict, repr=False)     # "read": what the language model has read, kept for the next question
    placed: Frame | None = field(default=None, repr=False)     # the frame in the GPU's memory, where patches are cut there
    name: object = field(default_factory=object, repr=False)   # of its rows in what a language model has read: were it the look, its memory would hold itself

    def __repr__(self) -> str:
        return f"Look({self.frame!r}, {self.timing.total_ms:.0f} ms)"

    def ask(self, prompt: str = "", **options) -> Answer:
        """Answer one question about this frame; arguments as in Session.ask. The low-res pass is not repeated, but a second look (look_again) has one of its own; its time is in every answer's."""
        return ask_together([self], prompt, **options)[0]

    def ask_many(self, prompts: list[str], *, batch: int = 1, **options) -> list[Answer]:
        """Answer several questions about this frame, in their order, as ask() would one by one, to rounding.

        Args:
            prompts: at least one; the texts that an encoder bundle has not read before go through its text tower together.
            batch: questions whose patches are encoded in one run of the network. On two CPU cores 2 to 4 gained between nothing
                and a half (benchmarks/batching.py measures it) and take memory for each; it is meant for devices that one question does not fill.
            options: as in Session.ask, but prompt_embedding, on_text and format.
        """
        return ask_each(self, prompts, batch=batch, **options)

    def encode(self, prompt: str = "", *, prompt_embedding=None, tokens: int | None = None, looks: int | str | None = None, scales: int | None = None,
               rule: str | None = None, selection: str | None = None, smooth: bool = False) -> Encoding:
        """PS3's own output for this frame; arguments as in Session.ask."""
        timing = Timing()
        with self.session.running():
            budget = self.session.budget(tokens, looks, scales)
            _, query, read = look_for([self], prompt, prompt_embedding, timing, selection)
            self.memory["read"] = read
            return look_closely([Aim(self, query)], budget, [timing], rule=rule, smooth=smooth)[0]

    def similarity(self, texts: str | list[str], prompt: str = "", *, boxes: list | None = None, tokens: int | None = None,
                   looks: int | str | None = None, scales: int | None = None, batch: int = 1) -> Similarity:
        """How much regions of this frame are what texts say, by cosine in PS3's contrastive space (bundles with a text tower).

        Args:
            texts: a text or several.
            prompt: what to look for; empty means bottom-up (of an encoder).
            boxes: (x0, y0, x1, y1) in frame pixels, each looked at closely by itself: its patches are picked first, as in PS3's training.
                Default: the regions that are picked for the prompt, at most 5, all from one pass.
            tokens, looks, scales: as in Session.ask, for each box | batch: boxes in one run of the network, see ask_many.
        Returns:
            Similarity: regions, cosines, probabilities, features.
        A region's feature is the attention pool of the picked patches that touch it. Source: see similarity.py.
        """
        return compare_regions(self, texts, prompt, boxes=boxes, tokens=tokens, looks=looks, scales=scales, batch=batch)
