"""Drawn places: a road, a room, a game's map. Each: (height, width, rng) -> (height, width, 3) uint8 canvas."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def _dull(rng, low, high, spread=22):
    """a colour of little saturation with levels between low and high"""
    return tuple(int(v) for v in np.clip(rng.integers(low, high) + rng.integers(-spread, spread + 1, 3), 0, 255))


def _finish(picture, height, width, rng):
    """enlarged, with grain"""
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(np.int16)
    grain = (rng.standard_normal((256, 256)) * rng.uniform(1, 6)).astype(np.int16)
    pixels += np.tile(grain, (height // 256 + 1, width // 256 + 1))[:height, :width, None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _start(height, width, top, bottom):
    """a quarter-size picture shaded from one colour down to another"""
    column = np.linspace(0, 1, height // 4)[:, None, None]
    shade = np.array(top) * (1 - column) + np.array(bottom) * column
    picture = Image.fromarray(np.broadcast_to(shade, (height // 4, width // 4, 3)).astype(np.uint8).copy())
    return picture, ImageDraw.Draw(picture), *picture.size


def road(height, width, rng):
    sky = _dull(rng, 90, 230)
    picture, pen, w, h = _start(height, width, sky, tuple(min(v + 25, 255) for v in sky))
    horizon = h * rng.uniform(0.35, 0.6)
    for _ in range(int(rng.integers(2, 14))):
        x, b = rng.uniform(-0.1, 1) * w, rng.uniform(0.05, 0.25) * w
        top = horizon - rng.uniform(0.03, 0.4) * h
        if rng.random() < 0.6:
            pen.rectangle((x, top, x + b, horizon), _dull(rng, 60, 190))
            for k in range(int(rng.integers(0, 5))):
                y = top + (k + 0.4) * (horizon - top) / 6
                pen.rectangle((x + b * 0.1, y, x + b * 0.9, y + (horizon - top) / 14), _dull(rng, 40, 210))
        else:
            pen.ellipse((x, top, x + b, horizon + b / 2), _dull(rng, 50, 120, 30))
    pen.rectangle((0, horizon, w, h), _dull(rng, 60, 150))
    middle, spread = rng.uniform(0.3, 0.7) * w, rng.uniform(0.3, 0.8) * w
    grey = _dull(rng, 55, 120, 6)
    pen.polygon(((middle - 0.02 * w, horizon), (middle + 0.02 * w, horizon), (middle + spread, h), (middle - spread, h)), grey)
    lanes = int(rng.integers(1, 4))
    for lane in range(lanes):
        slant = (lane + 1) / (lanes + 1) * 2 - 1
        for k in range(7):
            y0, y1 = (horizon + (h - horizon) * ((k + part) / 7) ** 2 for part in (0.1, 0.6))
            x0, x1 = (middle + slant * spread * (y - horizon) / (h - horizon) for y in (y0, y1))
            pen.line((x0, y0, x1, y1), (225, 225, 220), max(1, int(8 * (y1 - horizon) / (h - horizon))))
    return _finish(picture, height, width, rng)


def room(height, width, rng):
    wall = _dull(rng, 120, 235)
    picture, pen, w, h = _start(height, width, wall, tuple(v * 4 // 5 for v in wall))
    if rng.random() < 0.5:
        period = rng.uniform(0.02, 0.08) * w
        for k in range(int(w / period) + 1):
            pen.rectangle((k * period, 0, k * period + period * 0.4, h), tuple(min(v + 8, 255) for v in wall))
    wood = _dull(rng, 60, 170, 30)
    floor = h * rng.uniform(0.7, 0.9)
    pen.rectangle((0, floor, w, h), wood)
    for k in range(9):
        y = floor + (h - floor) * k / 9
        pen.line((0, y, w, y), tuple(v * 4 // 5 for v in wood), 2)
    for _ in range(int(rng.integers(1, 5))):
        x, y, b = rng.uniform(-0.1, 0.8) * w, rng.uniform(0.1, 0.7) * h, rng.uniform(0.2, 0.6) * w
        board = _dull(rng, 60, 200)
        pen.rectangle((x, y, x + b, y + 0.018 * h), board)
        for side in (0.1, 0.85):
            pen.rectangle((x + b * side, y + 0.018 * h, x + b * side + 0.006 * w, y + 0.06 * h), board)
    for _ in range(int(rng.integers(1, 5))):
        x, y, b, t = rng.uniform(0, 0.8) * w, rng.uniform(0, 0.7) * h, rng.uniform(0.06, 0.25) * w, rng.uniform(0.1, 0.4) * h
        pen.rectangle((x, y, x + b, y + t), _dull(rng, 50, 230), _dull(rng, 30, 120), 4)
    return _finish(picture, height, width, rng)


def game_map(height, width, rng):
    picture, pen, w, h = _start(height, width, (0, 0, 0), (0, 0, 0))
    tiles = [_dull(rng, 50, 190, 45) for _ in range(4)]
    rows = int(rng.integers(8, 22))
    side = h / rows
    heights = rng.normal(0, 1, (rows // 3 + 2, int(w / side) // 3 + 2)).astype(np.float32)
    heights = np.asarray(Image.fromarray(heights).resize((int(w / side) + 1, rows + 1), Image.Resampling.BICUBIC))
    for r in range(rows + 1):
        for c in range(heights.shape[1]):
            tile = tiles[int(np.clip(heights[r, c] * 1.5 + 2, 0, 3))]
            shift = int(rng.integers(-8, 9))
            pen.rectangle((c * side, r * side, (c + 1) * side, (r + 1) * side), tuple(min(max(v + shift, 0), 255) for v in tile))
    for _ in range(int(rng.integers(4, 20))):
        x, y, b = rng.uniform(0, 1) * w, rng.uniform(0, 1) * h, rng.uniform(0.4, 1.4) * side
        pen.ellipse((x, y, x + b, y + b), _dull(rng, 40, 160, 40))
        pen.rectangle((x + b * 0.4, y + b * 0.8, x + b * 0.6, y + b * 1.4), _dull(rng, 40, 110))
    return _finish(picture, height, width, rng)


PLACES = {"driving": road, "household": room, "gaming": game_map}
