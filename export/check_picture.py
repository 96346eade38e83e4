"""The picture that stages are measured on: one from a file, or one drawn from a seed."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ps3_sdk.frame import Frame


def sample_picture(height: int = 720, width: int = 1280, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: soft shapes, edges, fine print and sensor noise, the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(seed))
    small = rng.integers(0, 256, (9, 16, 3), np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for i in range(60):
        x, y, side = (int(v) for v in rng.integers(0, (width, height, 60)))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.rectangle((x, y, x + side, y + side // 2), fill=colour) if i % 2 else draw.text((x, y), f"EXIT {i}", fill=colour)
    return np.clip(np.asarray(picture, np.int16) + rng.integers(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8)


def read_picture(path) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a picture file, upright as an ask sees it. Raises InputError when it cannot be read."""
    return np.array(Frame.of(path).picture())
