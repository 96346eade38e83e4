"""Things in a home or a shop. Each function: (rng, colour name, line, unit) -> Plate with the line on it."""
from __future__ import annotations

from .draw import Plate, ink_for, paint
from .driving import BLACK, sizes

PAPER = (246, 242, 228)


def price_tag(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 210, 110, 0.58, 0.4)
    board = paint(rng, colour)
    ink = ink_for(rng, board)
    plate = Plate(width, height, board)
    plate.shape(((0, 0.5), (0.24, 0), (1, 0), (1, 1), (0.24, 1)), board)
    plate.disc(0.15, 0.5, 0.1, PAPER, ink, 0.03)
    plate.text(line, 0.62, 0.5, ink)
    return plate


def bottle(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.15), 120, 290, 0.84, 0.12)
    glass = paint(rng, colour)
    plate = Plate(width, height, glass)
    plate.box(0.36, 0, 0.64, 0.1, (70, 66, 62))
    plate.box(0.38, 0.09, 0.62, 0.36, glass)
    plate.shape(((0.38, 0.28), (0.62, 0.28), (1, 0.44), (0, 0.44)), glass)
    plate.box(0, 0.42, 1, 1, glass, radius=0.03)
    plate.box(0, 0.52, 1, 0.84, PAPER)
    plate.box(0, 0.52, 1, 0.545, BLACK)
    plate.text(line, 0.5, 0.69, ink_for(rng, PAPER))
    return plate


def clock(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.25), 220, 125, 0.62, 0.36)
    case = paint(rng, colour)
    plate = Plate(width, height, case)
    plate.shape(((0.1, 0.85), (0.24, 0.85), (0.17, 1)), case)
    plate.shape(((0.76, 0.85), (0.9, 0.85), (0.83, 1)), case)
    plate.box(0, 0.06, 1, 0.92, case, radius=0.2)
    plate.box(0.36, 0, 0.64, 0.08, (200, 200, 200))
    plate.box(0.12, 0.2, 0.88, 0.78, (14, 16, 18), radius=0.06)
    glow = ((110, 255, 130), (255, 120, 100), (120, 220, 255), (255, 200, 80), (240, 240, 240))[rng.integers(5)]
    plate.text(line, 0.5, 0.49, glow)
    return plate


def thermostat(rng, colour, line, unit):
    side, _ = sizes(line, unit * rng.uniform(0.9, 1.2), 150, 150, 0.5, 0.26)
    ring = paint(rng, colour)
    plate = Plate(side, side, (205, 205, 205))
    plate.disc(0.5, 0.5, 0.5, (212, 212, 210))
    plate.arc(0.5, 0.5, 0.47, 130, 410, ring, 0.13)
    plate.disc(0.5, 0.5, 0.31, (24, 26, 30))
    plate.shape(((0.47, 0.97), (0.53, 0.97), (0.5, 0.86)), BLACK)
    plate.text(line, 0.5, 0.5, (245, 245, 240))
    return plate


def book(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 150, 220, 0.74, 0.15)
    cover = paint(rng, colour)
    plate = Plate(width, height, cover)
    plate.box(0.04, 0.03, 1, 1, (236, 230, 212))
    plate.box(0, 0, 0.95, 0.96, cover)
    plate.box(0, 0, 0.09, 0.96, tuple(v // 2 for v in cover))
    plate.box(0.16, 0.2, 0.9, 0.45, PAPER)
    plate.text(line, 0.53, 0.325, ink_for(rng, PAPER))
    plate.disc(0.53, 0.7, 0.1, PAPER)
    return plate


def calendar(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 160, 170, 0.7, 0.25)
    head = paint(rng, colour)
    plate = Plate(width, height, (225, 225, 222))
    plate.box(0, 0.06, 1, 1, (244, 244, 240), (120, 120, 120), 0.012)
    plate.box(0, 0.06, 1, 0.36, head)
    for x in (0.25, 0.75):
        plate.box(x - 0.035, 0, x + 0.035, 0.18, (70, 70, 72))
    plate.text(line, 0.5, 0.62, ink_for(rng, (244, 244, 240)))
    for k in range(5):
        plate.box(0.12 + 0.16 * k, 0.85, 0.2 + 0.16 * k, 0.91, (165, 165, 165))
    return plate


def mug(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 190, 160, 0.62, 0.25)
    clay = paint(rng, colour)
    ink = ink_for(rng, clay)
    plate = Plate(width, height, clay)
    plate.disc(0.76, 0.5, 0.28, None, clay, 0.09)
    plate.box(0, 0.04, 0.76, 1, clay, radius=0.12)
    plate.box(0.02, 0, 0.74, 0.1, tuple(v // 2 for v in clay), radius=0.05)
    plate.text(line, 0.38, 0.52, ink)
    return plate


def washing_machine(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.15), 190, 230, 0.5, 0.13)
    body = paint(rng, colour)
    plate = Plate(width, height, body)
    plate.box(0, 0, 1, 1, body, radius=0.03)
    plate.disc(0.5, 0.64, 0.27, (225, 228, 230))
    plate.disc(0.5, 0.64, 0.2, (58, 74, 90))
    plate.box(0.36, 0.05, 0.94, 0.22, (16, 18, 20))
    plate.disc(0.17, 0.14, 0.08, (225, 228, 230))
    plate.text(line, 0.65, 0.135, ((255, 120, 90), (130, 230, 255), (240, 240, 240))[rng.integers(3)])
    plate.box(0, 0.27, 1, 0.285, tuple(v // 2 for v in body))
    return plate
