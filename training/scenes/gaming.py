"""Things on a game's screen. Each function: (rng, colour name, line, unit) -> Plate with the line on it."""
from __future__ import annotations

import math

from .draw import Plate, ink_for, paint
from .driving import BLACK, WHITE, sizes


def counter(rng, colour, line, unit):
    """A dark or light panel with room for a pictogram of its height on the left -> (plate, colour of the pictogram, its width share)"""
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 250, 120, 0.46, 0.35)
    panel = (26, 28, 34) if rng.random() < 0.7 else (222, 222, 216)
    plate = Plate(width, height, panel)
    plate.box(0, 0, 1, 1, panel, (120, 120, 124), 0.03, radius=0.15)
    share = 0.95 * height / width
    ink = WHITE if panel[0] < 99 else BLACK
    if panel[0] < 99 and rng.random() < 0.3:
        ink = (255, 235, 150)
    plate.text(line, share + (0.96 - share) / 2, 0.5, ink)
    return plate, paint(rng, colour), share


def heart(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    points = []
    for k in range(24):
        t = 2 * math.pi * k / 24
        x, y = 16 * math.sin(t) ** 3, 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((s * (0.53 + x / 40), 0.47 - y / 38))
    plate.shape(points, fill)
    return plate


def ammo(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    for k in range(3):
        x = s * (0.18 + 0.27 * k)
        plate.box(x, 0.4, x + s * 0.19, 0.86, fill)
        plate.shape(((x, 0.36), (x + s * 0.19, 0.36), (x + s * 0.095, 0.12)), fill)
    return plate


def coin(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    plate.disc(s * 0.53, 0.5, 0.39, fill)
    plate.disc(s * 0.53, 0.5, 0.28, None, ink_for(rng, fill), 0.05)
    plate.shape(((s * 0.53, 0.36), (s * 0.65, 0.5), (s * 0.53, 0.64), (s * 0.41, 0.5)), ink_for(rng, fill))
    return plate


def shield(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    light = tuple(v + (255 - v) // 2 for v in fill)
    plate.shape(((s * 0.18, 0.14), (s * 0.53, 0.08), (s * 0.88, 0.14), (s * 0.85, 0.56), (s * 0.53, 0.92), (s * 0.21, 0.56)), fill)
    plate.shape(((s * 0.53, 0.18), (s * 0.78, 0.22), (s * 0.75, 0.52), (s * 0.53, 0.8)), light)
    return plate


def gem(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    light = tuple(v + (255 - v) // 2 for v in fill)
    plate.shape(((s * 0.32, 0.16), (s * 0.74, 0.16), (s * 0.92, 0.4), (s * 0.53, 0.9), (s * 0.14, 0.4)), fill)
    plate.shape(((s * 0.4, 0.4), (s * 0.66, 0.4), (s * 0.53, 0.84)), light)
    return plate


def hourglass(rng, colour, line, unit):
    plate, fill, s = counter(rng, colour, line, unit)
    for y in (0.08, 0.84):
        plate.box(s * 0.22, y, s * 0.84, y + 0.08, fill)
    plate.shape(((s * 0.27, 0.18), (s * 0.79, 0.18), (s * 0.27, 0.82), (s * 0.79, 0.82)), fill)
    return plate


def minimap(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.15), 210, 230, 0.8, 0.14)
    frame = paint(rng, colour)
    plate = Plate(width, height, frame)
    plate.box(0, 0, 1, 1, frame, radius=0.04)
    plate.box(0.06, 0.05, 0.94, 0.76, (196, 204, 178))
    for _ in range(3):
        a, b = rng.uniform(0.08, 0.74, 2)
        plate.stroke(((0.07, a), (0.93, b)), (250, 250, 245), 0.04)
        x, z = rng.uniform(0.1, 0.9, 2)
        plate.stroke(((x, 0.07), (z, 0.74)), (250, 250, 245), 0.04)
    plate.shape(((0.5, 0.32), (0.58, 0.5), (0.5, 0.45), (0.42, 0.5)), BLACK)
    plate.box(0.03, 0.78, 0.97, 0.97, (24, 26, 30))
    plate.text(line, 0.5, 0.875, WHITE)
    return plate


def player(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.15), 170, 270, 0.9, 0.12)
    suit = paint(rng, colour)
    dark = tuple(v // 2 for v in suit)
    plate = Plate(width, height, suit)
    plate.box(0, 0, 1, 0.17, (24, 26, 30), radius=0.03)
    plate.text(line, 0.5, 0.085, WHITE)
    r = 0.11
    plate.disc(0.5, 0.31, r, suit)
    plate.box(0.42, 0.28, 0.58, 0.33, (235, 240, 245), radius=0.02)
    plate.box(0.28, 0.42, 0.72, 0.74, suit, radius=0.06)
    plate.box(0.14, 0.44, 0.25, 0.7, dark, radius=0.03)
    plate.box(0.75, 0.44, 0.86, 0.7, dark, radius=0.03)
    plate.box(0.3, 0.74, 0.47, 1, dark)
    plate.box(0.53, 0.74, 0.7, 1, dark)
    return plate


def energy_bar(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 330, 80, 0.3, 0.5)
    fill = paint(rng, colour)
    plate = Plate(width, height, BLACK)
    plate.box(0, 0, 1, 1, (22, 24, 28), (130, 130, 134), 0.04, radius=0.2)
    full = rng.uniform(0.35, 0.6)
    steps = int(full * width / height / 0.42)
    for k in range(max(steps, 3)):
        x = 0.03 + k * 0.42 * height / width
        plate.shape(((x + 0.1 * height / width, 0.16), (x + 0.4 * height / width, 0.16), (x + 0.3 * height / width, 0.84), (x, 0.84)), fill)
    plate.text(line, 0.8, 0.5, WHITE)
    return plate
