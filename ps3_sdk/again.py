"""A second look at the frame of an answer that is not sure, half a patch further on: each character lies otherwise in its patches, so what was misread once
is seldom misread again in the same way. The surer of both is the answer."""
from __future__ import annotations

from dataclasses import replace
from typing import Callable

from .answer import Answer
from .decode import Decoder
from .errors import InputError

KEPT = "again"      # in a Look's memory: its frame half a patch further on, for all its questions


def threshold(session, look_again: float | None, is_plain: bool) -> float:
    """Answers less sure than this are looked for again, 0: none. look_again: as in Session.ask | is_plain: nothing was said of where or how much to look."""
    if look_again is not None:
        if isinstance(look_again, bool) or not isinstance(look_again, (int, float)) or not 0 <= look_again <= 1:
            raise InputError(f"[ask] look_again is {look_again!r}; a confidence from 0 (never) to 1 (always) is needed.")
        if look_again and session.language is None:
            raise InputError(f"[ask] look_again is {look_again!r}; {session.bundle.path} has no language model, and what it answers is not looked for again. Leave it out.")
        return float(look_again)
    language = session.language
    return language.spec.get("confidence", {}).get("again", 0.0) if is_plain and language is not None and isinstance(language.decoder, Decoder) else 0.0


def is_due(answer: Answer, least: float) -> bool:
    """Whether this answer is to be looked for again: it is not sure, that nothing is there neither, ended by itself, and was read from some patches."""
    return answer.confidence is not None and how_sure(answer) < least and any(map(len, answer.picked.values()))


def how_sure(answer: Answer) -> float:
    """Its confidence, of an answer that nothing is there too: that of there being nothing."""
    return answer.confidence if answer.found else 1 - answer.confidence


def half_a_patch(frame_size: tuple[int, int], grid: int) -> tuple[int, int]:
    """Rows and columns of a frame of (h, w) pixels in half a patch of a grid x grid scale, the finest one."""
    return round(frame_size[0] / (2 * grid)), round(frame_size[1] / (2 * grid))


def half_a_patch_on(look):
    """The look at this frame without its first rows and columns, half a patch, made once; None of a frame too small for that."""
    if KEPT not in look.memory:
        frame = look.frame
        rows, columns = half_a_patch((frame.height, frame.width), look.session.base_px // look.session.patch_px)
        look.memory[KEPT] = look.session.look(frame.without(rows, columns)) if rows and columns else None
    return look.memory[KEPT]


def surer(first: Answer, second: Answer) -> Answer:
    """Of two answers to one question, the second of half_a_patch_on, the surer one, in the first one's frame; the other one is its `other`."""
    (height, width), (h, w) = first.frame_size, second.frame_size
    x, y = width - w, height - h
    moved = [replace(region, box_px=tuple(a + b for a, b in zip(region.box_px, (x, y, x, y)))) for region in second.regions]
    second = replace(second, regions=moved, frame=first.frame, frame_size=first.frame_size, origin_px=(x, y))
    is_better = second.confidence is not None and second.found and (not first.found or second.confidence > first.confidence)
    chosen, other = (second, first) if is_better else (first, second)
    sure = chosen.confidence if other.confidence is None or other.text != chosen.text else max(chosen.confidence, other.confidence)
    return replace(chosen, confidence=sure, timing=first.timing + second.timing, other=other,
                   notes=chosen.notes + (f"looked again half a patch further on, since the answer was {how_sure(first):.2f} sure",))


class Held:
    """Pieces of an answer's text, told once it is known which answer it is. tell: where to, or None."""

    def __init__(self, tell: Callable[[str], None] | None):
        if tell is not None and not callable(tell):
            raise InputError(f"[decode] on_text is {type(tell).__name__}; a function that takes a piece of text is needed.")
        self._tell, self._pieces = tell, []

    def __call__(self, piece: str) -> None:
        self._pieces.append(piece)

    def release(self) -> None:
        for piece in self._pieces if self._tell is not None else ():
            self._tell(piece)
