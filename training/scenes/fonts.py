"""Type faces: which there are, which split may use them, and lines of text drawn with them.

`faces.txt` lists the faces that were found good (every character of CHARS has ink; no script, thin or small-caps style), one a
line: split group, family, file name. Faces of one group (a family and its look-alikes: Arimo and Liberation Sans) are never in two
splits. The Debian packages they come from are in `training/fonts.txt`.
"""
from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .splits import split_of

CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:%/-+"
FONT_FOLDERS = ("/usr/share/fonts", "/usr/share/texmf/fonts", "/usr/local/share/fonts")
FACES_LIST = Path(__file__).with_name("faces.txt")
MIN_FACES = 20          # fewer than this in a split is no training set


@dataclass
class Line:
    """A drawn line of text. mask (h, w) uint8 is ink coverage, cut to the ink; boxes (n, 4) float32 holds each character's ink
    box x0, y0, x1, y1 in mask pixels (a space has an empty box); cap_px is the height of a capital H."""
    text: str
    mask: np.ndarray
    boxes: np.ndarray
    cap_px: float


@dataclass
class Face:
    path: str
    family: str
    group: str = ""
    sizes: OrderedDict = field(default_factory=OrderedDict, repr=False)
    cap_ratio: float = 0.0

    def _open(self, size_px):
        return ImageFont.truetype(self.path, size_px, layout_engine=ImageFont.Layout.BASIC) if self.path else ImageFont.load_default(size_px)

    def glyphs(self, cap_px: float) -> "Glyphs":
        """The face at a cap height in pixels (rounded to 0.5)."""
        if not self.cap_ratio:
            _, top, _, bottom = self._open(200).getbbox("H", anchor="ls")
            self.cap_ratio = (bottom - top) / 200
        cap_px = round(cap_px * 2) / 2
        glyphs = self.sizes.get(cap_px)
        if glyphs is None:
            glyphs = self.sizes[cap_px] = Glyphs(self._open(cap_px / self.cap_ratio), cap_px)
            if len(self.sizes) > 2:
                self.sizes.popitem(last=False)
        return glyphs

    def line(self, text: str, cap_px: float, tracking_px: float = 0.0) -> Line:
        return self.glyphs(cap_px).line(text, tracking_px)


class Glyphs:
    """One face at one size: the ink of each character, drawn once."""

    def __init__(self, font, cap_px):
        self.font, self.cap_px, self.drawn = font, cap_px, {}

    def glyph(self, char):
        """(mask (h, w) uint8 cut to the ink, left, top relative to the pen on the base line, advance), pixels"""
        got = self.drawn.get(char)
        if got is None:
            x0, y0, x1, y1 = self.font.getbbox(char, anchor="ls")
            x0, y0, x1, y1 = int(x0) - 1, int(y0) - 1, int(x1) + 2, int(y1) + 2
            picture = Image.new("L", (x1 - x0, y1 - y0))
            ImageDraw.Draw(picture).text((-x0, -y0), char, fill=255, font=self.font, anchor="ls")
            mask = np.asarray(picture)
            least = min(40, int(mask.max()) // 2)
            rows, columns = np.flatnonzero(mask.max(1) > least), np.flatnonzero(mask.max(0) > least)
            if len(rows):
                mask = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
                x0, y0 = x0 + int(columns[0]), y0 + int(rows[0])
            else:
                mask = mask[:0, :0]
            got = self.drawn[char] = (mask, x0, y0, self.font.getlength(char))
        return got

    def line(self, text, tracking_px=0.0) -> Line:
        parts, pen = [], 0.0
        for char in text:
            mask, left, top, advance = self.glyph(char)
            parts.append((mask, round(pen) + left, top))
            pen += advance + tracking_px
        inked = [(x, y, x + mask.shape[1], y + mask.shape[0]) for mask, x, y in parts if mask.size]
        left, top = min(b[0] for b in inked), min(b[1] for b in inked)
        canvas = np.zeros((max(b[3] for b in inked) - top, max(b[2] for b in inked) - left), np.uint8)
        boxes = np.zeros((len(parts), 4), np.float32)
        for k, (mask, x, y) in enumerate(parts):
            h, w = mask.shape
            x, y = x - left, y - top
            boxes[k] = x, y, x + w, y + h
            if mask.size:
                target = canvas[y:y + h, x:x + w]
                np.maximum(target, mask, out=target)
        return Line(text, canvas, boxes, self.cap_px)


def installed_files(folders=FONT_FOLDERS) -> dict[str, str]:
    """file name -> path of every font file under `folders`"""
    found = {}
    for folder in folders:
        for directory, _, names in os.walk(folder):
            found.update((name, os.path.join(directory, name)) for name in names if name.lower().endswith((".ttf", ".otf")))
    return found


def load_faces(split: str, fallback: bool = False) -> list[Face]:
    """The faces of a split, in the order of faces.txt.

    With fallback=True a machine with fewer than MIN_FACES of them gets Pillow's own face instead: enough to try the code, not to
    train (it is the same in every split). Without it that is an error."""
    files, faces = installed_files(), []
    for line in FACES_LIST.read_text().splitlines():
        group, family, name = line.split("\t")
        if name in files and split_of("font", group) == split:
            faces.append(Face(files[name], family, group))
    if len(faces) >= MIN_FACES:
        return faces
    if fallback:
        return [Face("", "Pillow's own", "Pillow's own")]
    raise FileNotFoundError(f"[training.scenes fonts] {len(faces)} faces of split {split!r} are installed; at least {MIN_FACES} are needed. "
                            "Install the packages of training/fonts.txt (training/README.md says how) or pass fallback=True to try the code.")
