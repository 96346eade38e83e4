"""What is behind the things: photographs of the machine's wallpapers and procedural pictures, as canvases a little larger than a
frame. A frame is a random cut of a canvas, so that one decoded picture serves many frames at the price of a copy."""
from __future__ import annotations

import os
from collections import OrderedDict

import numpy as np
from PIL import Image

from .places import PLACES
from .splits import split_of

PHOTO_FOLDERS = ("/usr/share/wallpapers", "/usr/share/backgrounds")
MIN_LONG_SIDE_PX = 2560
WITH_TEXT = ("focal-ubuntukylin", "greentock_by_Peter_Nerlich", "firstgeneration")      # writing of their own
MARGIN = 1.12                                                                          # canvas side / frame side


def find_photos(split: str, folders=PHOTO_FOLDERS) -> list[str]:
    """Paths of the wallpapers of a split, sorted by name; light, dark and differently sized versions of one count as one."""
    best = {}
    for folder in folders:
        for directory, _, names in os.walk(folder):
            for name in names:
                if not name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")) or name.startswith("screenshot"):
                    continue
                path = os.path.realpath(os.path.join(directory, name))
                stem = os.path.splitext(os.path.basename(path))[0]
                inner = os.path.relpath(path, folder).split(os.sep)
                title = inner[0] if "contents" in inner else stem[:-2] if stem.endswith(("-d", "-l")) else stem.split("_3840")[0].split("_5640")[0]
                if title in WITH_TEXT or split_of("photo", title) != split:
                    continue
                try:
                    with Image.open(path) as picture:
                        size = picture.size
                except OSError:
                    continue
                if max(size) >= MIN_LONG_SIDE_PX:
                    key = (title, "dark" in path or stem.endswith("-d"))
                    if key not in best or size > best[key][0]:
                        best[key] = (size, path)
    return [best[key][1] for key in sorted(best)]


def _expose(pixels: np.ndarray, rng) -> Image.Image:
    """random gain, gamma and colour cast: (h, w, 3) uint8 -> picture"""
    picture = Image.fromarray(pixels)
    gamma, gain = rng.uniform(0.75, 1.3), rng.uniform(0.65, 1.15)
    steps = np.arange(256) / 255
    table = [np.clip(255 * gain * cast * steps ** gamma, 0, 255).astype(np.uint8) for cast in rng.uniform(0.92, 1.08, 3)]
    return picture.point(np.concatenate(table).tolist())


def photo_canvas(path: str, height: int, width: int, rng) -> np.ndarray:
    """A random cut of a photograph, turned or not, resampled to (height, width, 3) uint8."""
    with Image.open(path) as picture:
        picture.draft("RGB", (width, height))
        picture = picture.convert("RGB")
    w, h = picture.size
    scale = min(w / width, h / height) * rng.uniform(0.7, 1.0)
    cut_w, cut_h = width * scale, height * scale
    left, top = rng.uniform(0, w - cut_w), rng.uniform(0, h - cut_h)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + cut_w, top + cut_h))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(_expose(np.asarray(picture), rng))


def procedural_canvas(height: int, width: int, rng) -> np.ndarray:
    """Smooth colour fields with cloudy noise, hard-edged fields, stripes or tiles, and fine grain: (height, width, 3) uint8."""
    style = rng.integers(4)
    colours = rng.integers(20, 235, (2, 2, 3)).astype(np.float32)
    if rng.random() < 0.5:
        colours = colours * 0.4 + colours.mean(2, keepdims=True) * 0.6
    h, w = height // 4, width // 4
    fields = np.asarray(Image.fromarray(colours.astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC), np.float32)
    for cells, strength in ((3, 50), (9, 30), (40, 16)):
        noise = rng.normal(0, strength, (cells, cells * 16 // 9, 1)).astype(np.float32)
        fields = fields + np.asarray(Image.fromarray(noise[..., 0]).resize((w, h), Image.Resampling.BICUBIC))[..., None] * rng.uniform(0, 1)
    if style == 1:
        fields = np.round(fields / 40) * 40
    elif style == 2:
        period, slope = rng.uniform(12, 120), rng.uniform(-1, 1)
        wave = ((np.arange(w)[None] + slope * np.arange(h)[:, None]) / period) % 1 < 0.5
        fields = fields + wave[..., None] * rng.uniform(-60, 60)
    elif style == 3:
        size = int(rng.integers(10, 80))
        tiles = rng.uniform(-40, 40, (h // size + 1, w // size + 1)).astype(np.float32)
        fields = fields + np.repeat(np.repeat(tiles, size, 0), size, 1)[:h, :w, None]
    picture = Image.fromarray(np.clip(fields, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).astype(np.int16)
    grain = (rng.standard_normal((256, 256)) * rng.uniform(1, 7)).astype(np.int16)
    grain = np.tile(grain, (height // 256 + 1, width // 256 + 1))[:height, :width, None]
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


class Canvases:
    """Canvases by name, made when first asked for; the `keep` last ones stay in memory (about 31 MB each at 3840x2160)."""

    def __init__(self, split: str, seed: int, frame_px, photos: list[str], keep: int = 8):
        self.key = (split, seed)
        self.photos, self.keep, self.made = photos, keep, OrderedDict()
        self.size = tuple(int(side * MARGIN) for side in frame_px)
        self.frame_px = tuple(frame_px)

    def canvas(self, key: tuple[int, ...], what: str) -> np.ndarray:
        """The canvas of a tuple of integers: the same for the same key, on this machine's photographs. what: "photo", "pattern" or a
        place of places.PLACES."""
        name = (*key, what)
        if name not in self.made:
            rng = np.random.default_rng([*key, 7])
            if what == "photo" and self.photos:
                made = photo_canvas(self.photos[rng.integers(len(self.photos))], *self.size, rng)
            elif what in PLACES:
                made = np.asarray(_expose(PLACES[what](*self.size, rng), rng))
            else:
                made = procedural_canvas(*self.size, rng)
            self.made[name] = made
            if len(self.made) > self.keep:
                self.made.popitem(last=False)
        self.made.move_to_end(name)
        return self.made[name]

    def cut(self, rng, key, what, size=None) -> np.ndarray:
        """A new array: a random (h, w, 3) cut of a canvas."""
        canvas = self.canvas(key, what)
        h, w = size or self.frame_px
        top, left = rng.integers(0, canvas.shape[0] - h + 1), rng.integers(0, canvas.shape[1] - w + 1)
        return canvas[top:top + h, left:left + w].copy()
