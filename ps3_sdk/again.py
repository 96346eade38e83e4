"""A second look at the frame of an answer that is not sure, part of a patch further on: each character lies otherwise in its patches, so what was misread
once is seldom misread again in the same way.

Some rows and columns are left out, SHIFT of a patch of the finest scale, at the edges nearest to the place that was looked at. What is left fills the
same grid, so that place has moved by between half of that, in the middle of the frame, and all of it, at the edge.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Callable, NamedTuple

from .answer import Answer
from .decode import Decoder
from .errors import InputError

KEPT = "again"      # in a Look's memory: looks at its frame without the rows and columns of one corner each, for all its questions
SHIFT = 0.75        # of a patch. Of 584 questions of split val 89.6 % were right with 0.5, 91.1 % with this, 90.6 % with 1, 87.7 % without a second look


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
    return answer.confidence is not None and bool(answer.regions) and (how_sure(answer) < least or least == 1)


def how_sure(answer: Answer) -> float:
    """Its confidence, of an answer that nothing is there too: that of there being nothing."""
    return answer.confidence if answer.found else 1 - answer.confidence


def cut(frame_size: tuple[int, int], grid: int, place: tuple[float, float]) -> tuple[int, int, int, int]:
    """Rows and columns to leave out at the top, left, bottom and right of a frame of (h, w) pixels. grid: patches a side of the finest scale | place: (y, x) pixels that was looked at."""
    (height, width), (y, x) = frame_size, place
    rows, columns, low, right = round(SHIFT * height / grid), round(SHIFT * width / grid), y > height / 2, x > width / 2
    return rows * (not low), columns * (not right), rows * low, columns * right


def edges_of(look, answer: Answer) -> tuple[int, int, int, int] | None:
    """What cut() says for the answer's place; None of a frame too small for that."""
    x0, y0, x1, y1 = answer.regions[0].box_px
    top, left, bottom, right = edges = cut(answer.frame_size, look.session.base_px // look.session.patch_px, ((y0 + y1) / 2, (x0 + x1) / 2))
    return edges if top + bottom and left + right else None


class Beside(NamedTuple):
    """look: at a part of a frame | part_px: (x0, y0, x1, y1) of it."""
    look: object
    part_px: tuple[int, int, int, int]


def beside(look, edges: tuple[int, int, int, int]) -> Beside:
    """The look at a look's frame without so much at its edges, made once."""
    kept = look.memory.setdefault(KEPT, {})
    if edges not in kept:
        frame, (top, left, *_) = look.frame.without(*edges), edges
        x, y = (look.frame.width - frame.width) * bool(left), (look.frame.height - frame.height) * bool(top)
        kept[edges] = Beside(look.session.look(frame), (x, y, x + frame.width, y + frame.height))
    return kept[edges]


def is_better(first: float, second: float | None, found: bool) -> bool:
    """Whether a second answer is given in place of the first one, by their confidences; found: whether it gives a value."""
    return found and second is not None and second > first


def better(first: Answer, second: Answer, part_px: tuple[int, int, int, int]) -> Answer:
    """Of two answers to one question, the second one of that part of the frame: the second where it gives a value with more confidence, which in an answer that nothing is there is that of
    there being something after all; else the first. In pixels of the frame; the answer that is not given is its `other`."""
    x, y, *_ = part_px
    moved = [replace(region, box_px=tuple(a + b for a, b in zip(region.box_px, (x, y, x, y)))) for region in second.regions]
    second = replace(second, regions=moved, frame=first.frame, frame_size=first.frame_size, part_px=part_px)
    given, other = (second, first) if is_better(first.confidence, second.confidence, second.found) else (first, second)
    sure = given.confidence if other.confidence is None or other.text != given.text else max(given.confidence, other.confidence)
    return replace(given, confidence=sure, timing=first.timing + second.timing, other=other,
                   notes=given.notes + (f"looked again part of a patch further on: the first answer was {how_sure(first):.2f} sure",))


class Held:
    """Pieces of an answer's text, told once it is known which answer it is. tell: where to, or None."""

    def __init__(self, tell: Callable[[str], None] | None):
        self._tell, self._pieces = tell, []

    def __call__(self, piece: str) -> None:
        self._pieces.append(piece)

    def release(self) -> None:
        for piece in self._pieces if self._tell is not None else ():
            self._tell(piece)
