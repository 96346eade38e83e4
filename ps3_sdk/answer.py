"""Answer: what was seen, where, and how long it took; as text, as JSON, as a picture."""
from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from .errors import InputError
from .timing import Timing, Timings  # noqa: F401  (Timings is part of this module's words)


class Choice(NamedTuple):
    """One of the texts given as choices. similarity: cosine in [-1, 1] | prob: what the bundle's contrast makes of it, None without."""
    text: str
    similarity: float
    prob: float | None = None


@dataclass(frozen=True)
class Region:
    """Touching places of the frame that were picked together.

    box_px: (x0, y0, x1, y1) frame pixels, x1 and y1 exclusive, tight around the picked patches | prob: the best inside |
    scale_px: the finest scale picked inside | num_patches: patches of all scales inside.
    """
    box_px: tuple[int, int, int, int]
    prob: float
    scale_px: int
    num_patches: int


def regions_from_map(prob: np.ndarray, picked: dict[int, np.ndarray], frame_size: tuple[int, int], *, patch_px: int, limit: int = 5) -> list[Region]:
    """The picked places as regions: cells of the map that hold a picked patch, joined with their 8 neighbours.

    Args:
        prob: (rows, cols) f32, the map that picked.  picked: {scale px: int32 patch ids of its (px // patch_px)^2 grid}.
        frame_size: (h, w) pixels. The frame is squashed to a square, so row r of n covers pixels r*h/n to (r+1)*h/n.
        limit: regions at most.
    Returns:
        Regions, best probability first; then the larger sum of probabilities; then the one that comes first row by row.
    A patch belongs to the cell that holds its centre.
    """
    rows, cols = prob.shape
    height, width = frame_size
    patches = [_centres(ids, px, patch_px, rows, cols) for px, ids in sorted(picked.items()) if len(ids)]
    if not patches:
        return []
    px, n, row, col, cell = (np.concatenate(part) for part in zip(*patches))
    label = _components(np.unique(cell), cols)
    found = []
    for first, cells in label.items():
        own = np.isin(cell, cells)
        box = (int((col[own] * width // n[own]).min()), int((row[own] * height // n[own]).min()),
               int((-(-(col[own] + 1) * width // n[own])).max()), int((-(-(row[own] + 1) * height // n[own])).max()))
        values = prob.reshape(-1)[cells].astype(np.float64)
        region = Region(box, float(values.max()), int(px[own].max()), int(own.sum()))
        found.append((-region.prob, -float(values.sum()), first, region))
    return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:3])[:limit]]


def _centres(ids, px, patch_px, rows, cols):
    """Per patch: its scale, its grid, its row, its column, and the map cell of its centre."""
    n = px // patch_px
    row, col = np.divmod(np.asarray(ids, np.int64), n)
    cell = (2 * row + 1) * rows // (2 * n) * cols + (2 * col + 1) * cols // (2 * n)
    return np.full(len(row), px), np.full(len(row), n), row, col, cell


def _components(cells, cols) -> dict[int, list[int]]:
    """Lowest cell id -> ids, for each set of cells that touch by side or corner."""
    free, found = set(cells.tolist()), {}
    for first in cells.tolist():
        if first not in free:
            continue
        free.remove(first)
        found[first] = [first]
        for cell in found[first]:
            row, col = divmod(cell, cols)
            for neighbour in ((row + dy) * cols + col + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if 0 <= col + dx < cols):
                if neighbour in free:
                    free.remove(neighbour)
                    found[first].append(neighbour)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """One question about one frame, answered.

    It holds the frame it is about, whose memory is the caller's: what is drawn later is what lies there then. Pickled and copied it has none, and
    without_frame() has none: keep such ones, a 4K frame is 25 MB.

    prompt: the text, "" for bottom-up | text: the language model's answer, or the best choice, None without either | confidence: in [0, 1], the model's
    probability of that text, or how probably it is right where the bundle is calibrated (language.confidence); of an answer that says that nothing was found, of there being one after all;
    None where the model has none, the text is empty or the answer was cut |
    found: False where a language model says that it cannot see what was asked | choices: best first | regions: what the answer was read from, best first |
    picked: all that was looked at, {scale px: ascending int32 patch ids} | prob: (rows, cols) f32 in [0, 1], how much the prompt cares about each place | timing: ms per stage, that of the look's low-res pass in each of its answers | frame_size: (h, w) pixels | notes: what the user should know |
    other: where the frame was looked at again since the first answer was not sure, the other answer | part_px: (x0, y0, x1, y1) frame pixels that picked and prob are of, of a second look;
    None: all.
    """
    prompt: str
    text: str | None
    choices: list[Choice]
    regions: list[Region]
    picked: dict[int, np.ndarray]
    prob: np.ndarray
    timing: Timing
    frame_size: tuple[int, int]
    patch_px: int
    notes: tuple[str, ...] = ()
    confidence: float | None = None
    found: bool = True
    frame: object = field(default=None, repr=False)      # ps3_sdk.Frame, to draw on; its memory is the caller's
    part_px: tuple[int, int, int, int] | None = None
    other: "Answer | None" = field(default=None, repr=False)

    def save_overlay(self, path, frame=None) -> None:
        """Draw the map, the picked patches, the regions and a caption on the frame; the suffix gives the format (.jpg .png .webp ...).

        Args:
            frame: anything Frame.of takes; default: the frame that was asked about.
        Raises:
            InputError: unknown suffix, no frame, a frame of another size, or a place that cannot be written; what was there stays.
        """
        from . import draw      # here, so that asking without drawing loads no fonts

        draw.save(self, path, frame)

    def without_frame(self) -> "Answer":
        """The same answer, holding no frame. save_overlay() is given one then."""
        return replace(self, frame=None, other=None if self.other is None else self.other.without_frame())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "frame": None}

    def __repr__(self) -> str:
        sure = "" if self.confidence is None else f", confidence={self.confidence:.2f}"
        return f"Answer({self.text!r}{sure}, found={self.found}, {len(self.regions)} regions, {sum(map(len, self.picked.values()))} patches, {self.timing.total_ms:.0f} ms)"

    def said(self) -> str:
        """Choices or text with how sure the model is of it, "" without either."""
        if self.choices:
            return ", ".join(choice_text(choice) for choice in self.choices[:3])
        if self.text is None:
            return ""
        return self.text if self.confidence is None else f"{self.text} (confidence {self.confidence if self.found else 1 - self.confidence:.2f})"

    def to_dict(self) -> dict:
        """Plain dicts, lists, str, int and float, the keys in fixed order. Scale sizes become str keys, as JSON wants them."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "confidence": None if self.confidence is None else _plain(self.confidence),
            "found": self.found,
            "choices": [{"text": c.text, "similarity": _plain(c.similarity), "prob": None if c.prob is None else _plain(c.prob)}
                        for c in self.choices],
            "regions": [{"box_px": [int(v) for v in r.box_px], "prob": _plain(r.prob), "scale_px": int(r.scale_px),
                         "num_patches": int(r.num_patches)} for r in self.regions],
            "frame_size": [int(v) for v in self.frame_size],
            "patch_px": int(self.patch_px),
            "picked": {str(px): [int(v) for v in ids] for px, ids in self.picked.items()},
            "prob": [[_plain(v) for v in row] for row in self.prob],
            "timing_ms": {name: round(ms, 3) for name, ms in [*self.timing.stages_ms.items(), ("total", self.timing.total_ms)]},
            "notes": list(self.notes),
            "part_px": None if self.part_px is None else [int(v) for v in self.part_px],
            "other": None if self.other is None else {"text": self.other.text, "confidence": None if self.other.confidence is None else _plain(self.other.confidence), "found": self.other.found},
        }

    def to_json(self, indent: int | None = None) -> str:
        """to_dict() as JSON text. Raises InputError rather than write NaN, which is not JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def headline(self) -> str:
        """One line: what, where, how sure; and that the weights are random, when they are."""
        what = (self.said() if not self.choices else self.text) or short(self.prompt, 60) or "most salient"
        where = (place(self.regions[0]) if self.confidence is None else box_text(self.regions[0])) if self.regions else "no high-res patch was looked at"
        return f"{what}: {where}" + (" [random weights]" if self.is_random else "")

    @property
    def is_random(self) -> bool:
        """Whether a note says that the weights are random, so that the answer means nothing."""
        return any("weights are random" in note or "random weights" in note for note in self.notes)

    @property
    def by_saliency(self) -> bool:
        """Whether patches were picked by saliency, whatever the prompt; a note says why."""
        return any("by saliency" in note for note in self.notes)

    def __str__(self) -> str:
        height, width = self.frame_size
        picked = ", ".join(f"{len(ids)} at {px} px" for px, ids in self.picked.items()) or "none"
        stages = ", ".join(f"{name} {ms:.0f}" for name, ms in self.timing.stages_ms.items() if ms >= 0.5)
        lines = [f"prompt   {short(self.prompt, 100) or ('(none: by saliency)' if self.by_saliency else '(none)')}"]
        if self.choices or self.text is not None:
            lines.append(f"answer   {self.said()}")
        lines.append("where    " + ("; ".join(place(region) for region in self.regions[:3]) or "low-res only"))
        again = "" if self.other is None else f", and at {sum(map(len, self.other.picked.values()))} in {'the first' if self.part_px is not None else 'a second'} look"
        lines.append(f"looked   {picked} of a {width}x{height} frame{again}")
        lines.append(f"took     {self.timing.total_ms:.0f} ms" + (f" ({stages})" if stages else ""))
        if self.notes:
            lines.append("note     " + "; ".join(self.notes))
        return "\n".join(lines)


def short(text: str, limit: int) -> str:
    """The text on one line, cut to `limit` characters."""
    line = " ".join(text[:limit * 4].split())
    return line if len(line) <= limit and len(text) <= limit * 4 else line[:limit - 3].rstrip() + "..."


def box_text(region: Region) -> str:
    x0, y0, x1, y1 = region.box_px
    return f"({x0}, {y0})-({x1}, {y1})"


def place(region: Region) -> str:
    return f"{box_text(region)} prob {region.prob:.2f}"


def choice_text(choice: Choice) -> str:
    return f"{short(choice.text, 40)} " + (f"cosine {choice.similarity:.3f}" if choice.prob is None else f"{choice.prob:.2f}")


def _plain(value) -> float:
    """A float as short as float32 carries. Raises InputError for NaN and infinities."""
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"[answer] a value is {number}; JSON holds finite numbers. Check the frame, the prompt embedding and the bundle.")
    return float(f"{number:.7g}")
