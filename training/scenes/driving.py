"""Things on a road. Each function: (rng, colour name, line, unit) -> Plate with the line on it."""
from __future__ import annotations

from .draw import Plate, ink_for, paint

WHITE, BLACK = (240, 240, 238), (22, 22, 24)


def sizes(line, unit, width, height, share_w, share_h):
    """A plate of about (width, height) x unit pixels in which the line fills no more than the given shares of either side."""
    h, w = line.mask.shape
    grow = max(1.0, w / share_w / (width * unit), h / share_h / (height * unit))
    return width * unit * grow, height * unit * grow


def speed_sign(rng, colour, line, unit):
    side, _ = sizes(line, unit * rng.uniform(0.9, 1.3), 130, 130, 0.55, 0.3)
    ring = paint(rng, colour)
    plate = Plate(side, side, ring)
    plate.disc(0.5, 0.5, 0.5, ring)
    plate.disc(0.5, 0.5, rng.uniform(0.33, 0.37), WHITE)
    plate.text(line, 0.5, 0.5, BLACK)
    return plate


def exit_sign(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.25), 230, 110, 0.5, 0.35)
    board = paint(rng, colour)
    ink = ink_for(rng, board)
    plate = Plate(width, height, WHITE)
    plate.box(0, 0, 1, 1, WHITE, radius=0.08)
    plate.box(0.025, 0.05, 0.975, 0.95, board, radius=0.06)
    right = 0.25 * height / width * 1.7
    plate.stroke(((0.06, 0.8), (0.06 + right, 0.25)), ink, 0.12)
    plate.shape(((0.06 + 1.25 * right, 0.1), (0.06 + 0.45 * right, 0.18), (0.06 + 1.2 * right, 0.58)), ink)
    plate.text(line, 0.66, 0.5, ink)
    return plate


def diamond_sign(rng, colour, line, unit):
    side, _ = sizes(line, unit * rng.uniform(0.9, 1.2), 190, 190, 0.62, 0.2)
    board = paint(rng, colour)
    ink = ink_for(rng, board)
    plate = Plate(side, side, ink)
    plate.shape(((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)), ink)
    plate.shape(((0.5, 0.05), (0.95, 0.5), (0.5, 0.95), (0.05, 0.5)), board)
    plate.shape(((0.46, 0.14), (0.54, 0.14), (0.52, 0.31), (0.48, 0.31)), ink)
    plate.disc(0.5, 0.36, 0.03, ink)
    plate.text(line, 0.5, 0.53, ink)
    plate.box(0.34, 0.68, 0.66, 0.71, ink)
    return plate


def car(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.95, 1.25), 250, 190, 0.45, 0.15)
    body = paint(rng, colour)
    glass = (40, 52, 62)
    plate = Plate(width, height, body)
    plate.box(0.06, 0.82, 0.22, 1, BLACK, radius=0.05)
    plate.box(0.78, 0.82, 0.94, 1, BLACK, radius=0.05)
    plate.shape(((0.2, 0), (0.8, 0), (0.93, 0.42), (0.07, 0.42)), body)
    plate.shape(((0.25, 0.07), (0.75, 0.07), (0.85, 0.38), (0.15, 0.38)), glass)
    plate.box(0, 0.38, 1, 0.9, body, radius=0.12)
    for x in (0.03, 0.83):
        plate.box(x, 0.46, x + 0.14, 0.6, (250, 225, 150), radius=0.03)
    h, w = line.mask.shape
    half_w, half_h = (w / 2 + 0.6 * h) / width, h * 0.85 / height
    board = WHITE if rng.random() < 0.7 else (245, 205, 60)
    plate.box(0.5 - half_w, 0.71 - half_h, 0.5 + half_w, 0.71 + half_h, board, BLACK, 0.01)
    plate.text(line, 0.5, 0.71, BLACK)
    return plate


def traffic_light(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.9, 1.2), 90, 260, 0.8, 0.15)
    width = max(width, height * 0.36)
    plate = Plate(width, height, BLACK)
    plate.box(0, 0, 1, 1, BLACK, (90, 90, 92), 0.012, radius=0.05)
    lit = {"red": 0, "yellow": 1, "green": 2}[colour]
    for k in range(3):
        plate.disc(0.5, 0.14 + 0.23 * k, 0.105, paint(rng, colour) if k == lit else (52, 54, 56))
    plate.text(line, 0.5, 0.86, (250, 240, 225))
    return plate


def bus(rng, colour, line, unit):
    width, height = sizes(line, unit * rng.uniform(0.95, 1.2), 330, 190, 0.5, 0.16)
    body = paint(rng, colour)
    plate = Plate(width, height, body)
    for x in (0.2, 0.78):
        plate.disc(x, 0.89, 0.11, BLACK)
    plate.box(0, 0, 1, 0.9, body, radius=0.08)
    for k in range(4):
        plate.box(0.06 + 0.23 * k, 0.36, 0.24 + 0.23 * k, 0.62, (200, 222, 232), radius=0.02)
    for x in (0.2, 0.78):
        plate.disc(x, 0.89, 0.1, BLACK)
        plate.disc(x, 0.89, 0.045, (150, 150, 150))
    plate.box(0.2, 0.07, 0.8, 0.29, BLACK)
    plate.text(line, 0.5, 0.18, (255, 205, 90) if rng.random() < 0.6 else WHITE)
    return plate


def octagon_sign(rng, colour, line, unit):
    side, _ = sizes(line, unit * rng.uniform(0.9, 1.2), 150, 150, 0.72, 0.25)
    board = paint(rng, colour)
    ink = ink_for(rng, board)
    plate = Plate(side, side, WHITE)
    for inset, fill in ((0.0, WHITE), (0.05, board)):
        a, b, low, high = 0.29 + 0.02 * (inset > 0), 0.71 - 0.02 * (inset > 0), inset, 1 - inset
        plate.shape(((a, low), (b, low), (high, a), (high, b), (b, high), (a, high), (low, b), (low, a)), fill)
    plate.text(line, 0.5, 0.5, ink)
    for y in (0.24, 0.76):
        plate.box(0.36, y - 0.02, 0.64, y + 0.02, ink)
    return plate
