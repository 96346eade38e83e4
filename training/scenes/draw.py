"""Drawing one thing on a small picture of its own, bending and blurring it, and laying it on a frame."""
from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .fonts import Line

# hue ranges of the colour names of prompts; white, black: grey levels
HUES = {"red": (-6, 6), "orange": (24, 32), "yellow": (49, 57), "green": (105, 145), "blue": (203, 225), "purple": (275, 292)}
PAINT = tuple(HUES)
ALL_COLOURS = (*PAINT, "white", "black")
EDGE_PX = 3                                              # transparent rim of a plate, so that bending has something to fade into


def paint(rng, name: str) -> tuple[int, int, int]:
    """A colour that everyone calls `name`, with jitter."""
    if name == "white":
        level = int(rng.integers(225, 250))
        return level, level, level
    if name == "black":
        level = int(rng.integers(12, 38))
        return level, level, level
    low, high = HUES[name]
    value = {"green": (0.5, 0.8), "purple": (0.55, 0.8), "orange": (0.92, 1), "yellow": (0.9, 1)}.get(name, (0.72, 1))
    rgb = colorsys.hsv_to_rgb(rng.uniform(low, high) / 360 % 1, rng.uniform(0.84, 1), rng.uniform(*value))
    return tuple(int(255 * part) for part in rgb)


def luma(colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def ink_for(rng, colour) -> tuple[int, int, int]:
    """A near-black or near-white ink that stands out from `colour`, sometimes tinted; luminance differs by 90 or more."""
    light = luma(colour)
    if light < 165 if light > 110 and rng.random() < 0.5 else light < 130:
        base = np.array([255, 255, 255]) - rng.integers(0, 18 if light > 90 else 50, 3)
    else:
        base = rng.integers(0, 12 if light < 170 else 60, 3)
    return tuple(int(v) for v in base)


class Plate:
    """A thing being drawn: an RGBA picture of (height, width) pixels, and the one text that is asked for."""

    def __init__(self, width, height, edge):
        """edge: colour of the rim, which shows where the outline is softened"""
        self.width, self.height = int(round(width)), int(round(height))
        self.picture = Image.new("RGBA", (self.width + 2 * EDGE_PX, self.height + 2 * EDGE_PX), (*edge, 0))
        self.pen = ImageDraw.Draw(self.picture)
        self.text_box = self.char_boxes = None

    def _points(self, points):
        return [(x * self.width + EDGE_PX, y * self.height + EDGE_PX) for x, y in points]

    # all places below are shares of the plate's width and height
    def box(self, x0, y0, x1, y1, fill=None, outline=None, line=0.0, radius=0.0):
        corners = self._points(((x0, y0), (x1, y1)))
        width = max(1, round(line * self.height)) if outline else 0
        self.pen.rounded_rectangle(corners, radius * self.height, fill, outline, width)

    def disc(self, cx, cy, radius, fill=None, outline=None, line=0.0):
        """a circle in pixels: radius and line are shares of the height"""
        x, y, r = cx * self.width + EDGE_PX, cy * self.height + EDGE_PX, radius * self.height
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill, outline, max(1, round(line * self.height)) if outline else 0)

    def arc(self, cx, cy, radius, start, end, fill, line):
        x, y, r = cx * self.width + EDGE_PX, cy * self.height + EDGE_PX, radius * self.height
        self.pen.arc((x - r, y - r, x + r, y + r), start, end, fill, max(1, round(line * self.height)))

    def shape(self, points, fill):
        self.pen.polygon(self._points(points), fill)

    def stroke(self, points, fill, line):
        self.pen.line(self._points(points), fill, max(1, round(line * self.height)), joint="curve")

    def text(self, line: Line, cx, cy, ink, asked=True):
        """Writes a line centred on (cx, cy); the asked one is remembered."""
        h, w = line.mask.shape
        x, y = round(cx * self.width + EDGE_PX - w / 2), round(cy * self.height + EDGE_PX - h / 2)
        self.picture.paste(ink, (x, y), Image.fromarray(line.mask))
        if asked:
            self.text_box = np.array([[x, y, x + w, y + h]], np.float32)
            self.char_boxes = line.boxes + np.array([x, y, x, y], np.float32)


@dataclass
class Look:
    """How a frame was taken: the same for all its things, as shares of 1 or in pixels."""
    bend: float = 0.0          # corner displacement / side
    turn_degrees: float = 0.0
    blur: float = 0.0          # sigma / cap height, the most a thing gets
    noise: float = 0.0         # sigma in grey levels
    gain: float = 1.0
    jpeg: int = 0              # quality, 0: none


def random_look(rng, screen: bool) -> Look:
    if screen:
        return Look(noise=rng.uniform(0, 3) if rng.random() < 0.2 else 0, blur=0.05 if rng.random() < 0.3 else 0, jpeg=int(rng.integers(55, 95)) if rng.random() < 0.3 else 0)
    return Look(rng.uniform(0, 0.07), rng.uniform(0, 5), rng.uniform(0, 0.08) if rng.random() < 0.6 else 0, rng.uniform(1, 9) if rng.random() < 0.6 else 0,
                rng.uniform(0.6, 1.1), int(rng.integers(45, 92)) if rng.random() < 0.35 else 0)


def _homography(source, target):
    """3x3 matrix that takes the four source points to the target points"""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1).reshape(3, 3)


def _move_boxes(matrix, boxes):
    """(n, 4) boxes -> the boxes around their bent corners"""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    points = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], 2) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    return np.concatenate([points.min(1), points.max(1)], 1).astype(np.float32)


@dataclass
class Cut:
    """A finished thing: picture (h, w) RGBA; boxes in its pixels; text_scale: bent height of the text / drawn height."""
    picture: Image.Image
    box: np.ndarray
    text_box: np.ndarray
    char_boxes: np.ndarray
    text_scale: float


def bend(plate: Plate, rng, look: Look) -> Cut:
    picture, text_box, char_boxes, text_scale = plate.picture, plate.text_box, plate.char_boxes, 1.0
    w, h = picture.size
    box = np.array([[EDGE_PX, EDGE_PX, w - EDGE_PX, h - EDGE_PX]], np.float32)
    if look.bend or look.turn_degrees:
        corners = np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float64)
        angle = np.deg2rad(rng.uniform(-1, 1) * look.turn_degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = (corners - (w / 2, h / 2)) @ turn.T + rng.uniform(-look.bend, look.bend, (4, 2)) * (w, h) / 2
        moved -= moved.min(0) - rng.uniform(0, 1, 2)
        new_w, new_h = (int(np.ceil(side)) + 1 for side in moved.max(0))
        forward = _homography(corners, moved)
        back = np.linalg.inv(forward)
        picture = picture.transform((new_w, new_h), Image.Transform.PERSPECTIVE, (back / back[2, 2]).ravel()[:8], Image.Resampling.BICUBIC)
        x, y = (text_box[0, 0] + text_box[0, 2]) / 2, (text_box[0, 1] + text_box[0, 3]) / 2
        ends = _move_boxes(forward, np.array([[x, y - 5, x, y - 5], [x, y + 5, x, y + 5]]))
        text_scale = float(np.hypot(*(ends[1, :2] - ends[0, :2]))) / 10
        box, text_box, char_boxes = _move_boxes(forward, box), _move_boxes(forward, text_box), _move_boxes(forward, char_boxes)
    return Cut(picture, box[0], text_box[0], char_boxes, text_scale)


def weather(picture: Image.Image, rng, look: Look, cap_px: float, grain: np.ndarray) -> Image.Image:
    """Blur, exposure, noise and JPEG of a finished thing. grain: (n, n) int16 noise of standard deviation 64."""
    if look.blur:
        sigma = rng.uniform(0, look.blur) * cap_px
        if sigma > 0.3:
            picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    if look.gain == 1.0 and not look.noise and not look.jpeg:
        return picture
    pixels = np.asarray(picture)
    colour, (h, w) = pixels[..., :3], pixels.shape[:2]
    if look.gain != 1.0 or look.noise:
        values = (colour.astype(np.int16) * int(look.gain * 64)) >> 6
        if look.noise:
            top, left = rng.integers(0, max(grain.shape[0] - h, 1)), rng.integers(0, max(grain.shape[1] - w, 1))
            piece = grain[top:top + h, left:left + w] if h <= grain.shape[0] and w <= grain.shape[1] else np.resize(grain, (h, w))
            values += ((piece * int(look.noise * 4)) >> 8)[..., None]
        colour = np.clip(values, 0, 255).astype(np.uint8)
    if look.jpeg:
        colour = jpeg(colour, look.jpeg)
    return Image.fromarray(np.dstack([colour, pixels[..., 3]]))


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(h, w, 3) uint8 compressed and read back"""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def lay(frame: np.ndarray, picture: Image.Image, left: int, top: int):
    """Lays an RGBA picture on frame (h, w, 3) uint8, which changes in place; it must lie inside."""
    w, h = picture.size
    target = frame[top:top + h, left:left + w]
    under = Image.fromarray(target)
    under.paste(picture, (0, 0), picture)
    target[...] = np.asarray(under)
