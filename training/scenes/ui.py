"""Things on a computer's screen. Each function: (rng, colour name, line, unit) -> Plate with the line on it."""
from __future__ import annotations

from .draw import Plate, ink_for, paint
from .driving import BLACK, sizes

CARD, GREY = (250, 250, 252), (206, 210, 216)


def card(rng, width, height):
    """A light or dark card -> (plate, its colour, the grey of what is not filled)"""
    dark = rng.random() < 0.35
    fill = (34, 37, 44) if dark else CARD
    plate = Plate(width, height, fill)
    plate.box(0, 0, 1, 1, fill, (90, 94, 102) if dark else (170, 174, 182), 0.012, radius=0.05)
    return plate, fill, (74, 78, 88) if dark else GREY


def button(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.25), 220, 84, 0.78, 0.45)
    fill = paint(rng, colour)
    plate = Plate(width, height, fill)
    plate.box(0, 0, 1, 1, tuple(v * 3 // 5 for v in fill), radius=0.35)
    plate.box(0, 0, 1, 0.93, fill, radius=0.35)
    plate.text(line, 0.5, 0.47, ink_for(rng, fill))
    return plate


def gauge(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 240, 165, 0.7, 0.2)
    plate, fill, grey = card(rng, width, height)
    r = min(0.58, 0.46 * width / height)
    level = rng.uniform(220, 330)
    plate.arc(0.5, 0.68, r, 180, 360, grey, 0.17)
    plate.arc(0.5, 0.68, r, 180, level, paint(rng, colour), 0.17)
    plate.text(line, 0.5, 0.83, ink_for(rng, fill))
    return plate


def search_field(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 360, 84, 0.6, 0.42)
    plate = Plate(width, height, CARD)
    plate.box(0, 0, 1, 1, CARD, (110, 114, 122), 0.03, radius=0.1)
    fill = paint(rng, colour)
    ink = ink_for(rng, fill)
    s = height / width
    plate.box(0, 0, 1.05 * s, 1, fill, radius=0.1)
    plate.disc(0.45 * s, 0.42, 0.2, None, ink, 0.08)
    plate.stroke(((0.6 * s, 0.58), (0.82 * s, 0.82)), ink, 0.1)
    h, w = line.mask.shape
    plate.text(line, 1.3 * s + w / 2 / width, 0.5, ink_for(rng, CARD))
    return plate


def table(rng, colour, line, unit):
    """Four rows; the asked line stands in the marked one, grey bars stand for the text of the others."""
    width, height = sizes(line, unit * rng.uniform(0.9, 1.15), 330, 250, 0.45, 0.1)
    plate, fill, grey = card(rng, width, height)
    head = paint(rng, colour)
    plate.box(0, 0, 1, 0.2, head, radius=0.04)
    marked = int(rng.integers(4))
    for k in range(4):
        y = 0.21 + 0.195 * k
        if k == marked:
            plate.box(0.01, y, 0.99, y + 0.185, (255, 236, 150))
            plate.text(line, 0.7, y + 0.0925, BLACK)
            plate.box(0.06, y + 0.06, 0.3, y + 0.12, (150, 140, 90))
        else:
            plate.box(0.06, y + 0.06, rng.uniform(0.2, 0.4), y + 0.12, grey)
            plate.box(0.6, y + 0.06, rng.uniform(0.7, 0.9), y + 0.12, grey)
    return plate


def donut(rng, colour, line, unit):
    side, _ = sizes(line, unit * rng.uniform(0.9, 1.2), 200, 200, 0.5, 0.2)
    plate, fill, grey = card(rng, side, side)
    start = int(rng.integers(360))
    plate.disc(0.5, 0.5, 0.45, grey)
    plate.arc(0.5, 0.5, 0.45, start, start + int(rng.integers(150, 300)), paint(rng, colour), 0.15)
    plate.disc(0.5, 0.5, 0.3, fill)
    plate.text(line, 0.5, 0.5, ink_for(rng, fill))
    return plate


def progress_bar(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 380, 80, 0.24, 0.5)
    plate, fill, grey = card(rng, width, height)
    plate.box(0.04, 0.3, 0.68, 0.7, grey, radius=0.2)
    plate.box(0.04, 0.3, 0.04 + 0.64 * rng.uniform(0.4, 0.95), 0.7, paint(rng, colour), radius=0.2)
    plate.text(line, 0.84, 0.5, ink_for(rng, fill))
    return plate


def bar_chart(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 220, 200, 0.8, 0.15)
    plate, fill, grey = card(rng, width, height)
    bar = paint(rng, colour)
    for k in range(5):
        plate.box(0.09 + 0.17 * k, rng.uniform(0.34, 0.75), 0.22 + 0.17 * k, 0.93, bar)
    plate.box(0.05, 0.93, 0.95, 0.945, grey)
    plate.text(line, 0.5, 0.17, ink_for(rng, fill))
    return plate


def window(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 300, 210, 0.8, 0.16)
    plate, fill, grey = card(rng, width, height)
    head = paint(rng, colour)
    plate.box(0, 0, 1, 0.24, head, radius=0.05)
    for k in range(3):
        plate.disc(0.08 + 0.11 * height / width * 1.2 * k, 0.12, 0.05, ink_for(rng, head))
    plate.text(line, 0.5, 0.5, ink_for(rng, fill))
    for k in range(2):
        plate.box(0.24 + 0.3 * k, 0.75, 0.46 + 0.3 * k, 0.9, grey, radius=0.04)
    return plate
