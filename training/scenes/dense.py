"""Pieces of frames full of text, for learning to read before learning to look."""
from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from .draw import jpeg, luma
from .words import VALUES, make_value

TYPES = tuple(VALUES)
APART = 0.3         # share of the blocks whose words stand apart, as they do on things


def _text(rng, words, least, blanks=1):
    """words, values and random strings, parted by so many blanks: at least `least` characters"""
    parts, length = [], 0
    while length < least:
        draw = rng.random()
        if draw < 0.4:
            part = words[rng.integers(len(words))]
        elif draw < 0.75:
            part = make_value(rng, TYPES[rng.integers(len(TYPES))], words)
        else:
            part = "".join("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789.:%/-+"[k] for k in rng.integers(0, 40, int(rng.integers(1, 9))))
        parts.append(part)
        length += len(part) + blanks
    return (" " * blanks).join(parts)


def _colours(rng, behind):
    """(plate or None, ink): they differ by 70 or more in luminance. behind: (n, 3) pixels of what is there; too uneven, it gets a plate"""
    under = behind.mean(0)
    plate = rng.integers(0, 256, 3) if rng.random() < 0.7 or behind.mean(1).std() > 22 else None
    if plate is not None and rng.random() < 0.4:
        plate = np.clip(plate.mean() + rng.integers(-12, 13, 3), 0, 255).astype(int)
    ground = under if plate is None else plate
    while True:
        ink = rng.integers(0, 256, 3)
        if rng.random() < 0.5:
            ink = np.full(3, 255 if luma(ground) < 128 else 0) + rng.integers(0, 40, 3) * (1 if luma(ground) >= 128 else -1)
        if abs(luma(ink) - luma(ground)) > 70:
            return plate, ink


def make_dense(rng, frame, types, words, grain):
    """frame (h, w, 3) uint8 is written on in place, in some of types (list of Glyphs) -> (frame, code (n,) uint8, boxes (n, 4) float32, word (n,) int32)"""
    h, w = frame.shape[:2]
    codes, boxes, numbers = [], [], [0]
    x = 0
    while x < w - 60:
        width = min(int(rng.integers(180, 480)), w - x)
        width = w - x if w - x - width < 120 else width
        y = 0
        while y < h - 16:
            y = _block(rng, frame, x, y, width, types, words, codes, boxes, numbers)
        x += width
    frame = _weather(rng, frame, grain)
    return frame, np.frombuffer("".join(codes).encode(), np.uint8), np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32), np.array(numbers[1:], np.int32)


def _block(rng, frame, x, y, width, types, words, codes, boxes, numbers):
    """A few lines of one face on one plate at (x, y) -> y below it. numbers: the last word's, then each character's."""
    glyphs = types[rng.integers(len(types))]
    cap = glyphs.cap_px
    apart = rng.random() < APART
    pitch = cap * (rng.uniform(2.2, 3.4) if apart else rng.uniform(1.5, 2.2))
    lines = min(int(rng.integers(1, 6)), int((frame.shape[0] - y) / pitch))
    if lines < 1:
        return frame.shape[0]
    bottom = int(y + lines * pitch)
    area = frame[y:bottom, x:x + width]
    plate, ink = _colours(rng, area.reshape(-1, 3)[::97])
    if plate is not None:
        area[...] = plate.astype(np.uint8)
    mask = np.zeros(area.shape[:2], np.uint8)
    text = _text(rng, words, int(lines * width / cap) + 1, int(rng.integers(3, 9)) if apart else 1)
    tracking = rng.uniform(0, 0.15) * cap if rng.random() < 0.3 else 0.0
    place, indent = 0, rng.uniform(2, 14)
    for k in range(lines):
        base, pen = round((k + 0.5) * pitch + cap / 2), indent
        found = []
        numbers[0] += 1
        while place < len(text):
            char = text[place]
            glyph, left, top, advance = glyphs.glyph(char)
            gx, gy = round(pen) + left, base + top
            gh, gw = glyph.shape
            if gx + gw + 2 > width:
                break
            place += 1
            pen += advance + tracking
            if gh and gy >= 0 and gx >= 0 and gy + gh <= mask.shape[0]:
                spot = mask[gy:gy + gh, gx:gx + gw]
                np.maximum(spot, glyph, out=spot)
                codes.append(char)
                numbers.append(numbers[0])
                found.append((x + gx, y + gy, x + gx + gw, y + gy + gh))
            else:               # a blank, or a character that is not drawn: what follows is another word
                numbers[0] += 1
        if found:
            boxes.append(np.array(found, np.float32))
    under = Image.fromarray(area)
    under.paste(tuple(int(v) for v in ink), (0, 0), Image.fromarray(mask))
    area[...] = np.asarray(under)
    return bottom


def _weather(rng, frame, grain):
    """blur, contrast, noise and JPEG of the whole piece, each on some of them"""
    if rng.random() < 0.35:
        frame = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9))))
    if rng.random() < 0.4:
        gain, lift = rng.uniform(0.55, 1.1), rng.uniform(0, 25)
        frame = np.asarray(Image.fromarray(frame).point(np.tile(np.clip(np.arange(256) * gain + lift, 0, 255).astype(np.uint8), 3).tolist()))
    if rng.random() < 0.4:
        h, w = frame.shape[:2]
        sigma = int(rng.uniform(4, 40))
        noise = np.tile((grain * sigma) >> 8, (h // grain.shape[0] + 1, w // grain.shape[1] + 1))[:h, :w, None]
        frame = np.clip(frame.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        frame = jpeg(frame, int(rng.integers(45, 92)))
    return np.ascontiguousarray(frame)
