"""The frame before things are laid on it: a cut of a canvas, and for screens the plain areas that make it look like one."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .draw import PAINT, paint


def prepare(domain: str, canvases, canvas, rng, unit: float) -> np.ndarray:
    """canvas: (key, what) of Canvases -> a new (h, w, 3) uint8 frame"""
    key, what = canvas
    if domain == "ui" and rng.random() < 0.7:
        h, w = canvases.frame_px
        level = int(rng.integers(20, 60)) if rng.random() < 0.4 else int(rng.integers(205, 246))
        tint = np.clip(level + rng.integers(-8, 9, 3), 0, 255).astype(np.uint8)
        frame = np.tile(tint, (h, w, 1))
        screen(frame, rng, unit, tint)
        return frame
    frame = canvases.cut(rng, key, what)
    if domain in ("driving", "household"):
        clutter(frame, rng, unit)
    return frame


def screen(frame, rng, unit, ground):
    """Header, side bar and panels of a program, with grey bars in the place of its small print."""
    h, w = frame.shape[:2]
    step = -22 if ground.mean() > 128 else 22
    panel = np.clip(ground.astype(int) - step // 2, 0, 255).astype(np.uint8)
    bars = np.clip(ground.astype(int) + step * 3, 0, 255).astype(np.uint8)
    columns, rows = int(rng.integers(2, 5)), int(rng.integers(2, 4))
    side = int(w * rng.uniform(0.06, 0.14)) if rng.random() < 0.7 else 0
    head = int(h * rng.uniform(0.03, 0.07))
    gap = int(rng.uniform(10, 40) * unit)
    width, height = (w - side) // columns, (h - head) // rows
    for r in range(rows):
        for c in range(columns):
            y, x = head + r * height, side + c * width
            frame[y + gap:y + height - gap, x + gap:x + width - gap] = panel
            for k in range(int(rng.integers(0, 4))):
                top = y + gap + int((30 + 40 * k) * unit)
                frame[top:top + int(14 * unit), x + 2 * gap:x + 2 * gap + int(rng.uniform(60, 300) * unit)] = bars
    frame[:head] = paint(rng, PAINT[rng.integers(len(PAINT))]) if rng.random() < 0.3 else bars
    if side:
        frame[head:, :side] = np.clip(ground.astype(int) + step, 0, 255).astype(np.uint8)
        for k in range(int(rng.integers(3, 12))):
            top = head + int((60 + 90 * k) * unit)
            frame[top:top + int(16 * unit), side // 6:side // 6 + int(side * rng.uniform(0.3, 0.6))] = bars


def clutter(frame, rng, unit):
    """Posts and plain shapes in dull colours: things without a text."""
    h, w = frame.shape[:2]
    for _ in range(int(rng.integers(0, 4))):
        x, y = int(rng.uniform(0, 0.95) * w), int(rng.uniform(0.1, 0.8) * h)
        width, height = int(rng.uniform(8, 26) * unit), int(rng.uniform(200, 900) * unit)
        frame[y:y + height, x:x + width] = np.uint8(rng.integers(60, 190))
    for _ in range(int(rng.integers(0, 6))):
        side = int(rng.uniform(50, 260) * unit)
        x, y = int(rng.integers(0, w - side)), int(rng.integers(0, h - side))
        area = frame[y:y + side, x:x + int(side * rng.uniform(0.5, 1))]
        picture = Image.fromarray(area)
        colour = tuple(int(v) for v in rng.integers(40, 200) + rng.integers(-25, 26, 3))
        pen = ImageDraw.Draw(picture)
        (pen.rectangle, pen.ellipse)[rng.integers(2)]((0, 0, area.shape[1] - 1, side - 1), colour)
        area[...] = np.asarray(picture)
