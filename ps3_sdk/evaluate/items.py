"""Item: one question about one frame, wherever it comes from; and what all sets of them have in common."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Callable

from ..errors import InputError
from ..picture import size_of_file


@dataclass(frozen=True, eq=False)
class Item:
    """One question about one frame.

    key: names it in its set | where: names it in errors | frame: gives what Frame.of takes | answer: "" where the frame cannot
    answer | choices: in the order in which they are shown, () where the answer is free | boxes_px: what must be seen, each
    (x0, y0, x1, y1) frame pixels | domain: results are also told by it, "" none | kind: "value", or why there is no answer | cap_px: height of
    its capitals in a 3840x2160 frame.
    """
    key: str
    where: str
    frame: Callable[[], object]
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    boxes_px: tuple[tuple[float, float, float, float], ...] = ()
    domain: str = ""
    kind: str = "value"
    cap_px: float | None = None


class ItemList(list):
    """Items in memory. name: of the set | settings: plain values that say which items these are; results are kept by them."""

    def __init__(self, items, name: str, settings: dict):
        super().__init__(items)
        self.name, self.settings = name, settings


def digest(*parts) -> str:
    """16 hex digits that differ where any of the parts (str or bytes) does."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else bytes(part)
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


def digest_of_file(path) -> str:
    """64 hex digits of what a file holds, read piece by piece."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def checked_boxes(value, where: str, wanted: str) -> tuple[tuple[float, float, float, float], ...]:
    """One box of four numbers, or a list of them, as boxes. Raises InputError that begins with `where`."""
    boxes = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) for box in boxes):
        raise InputError(f"{where} is {str(value)[:80]}; {wanted} is needed.")
    return tuple(tuple(map(float, box)) for box in boxes)


def check_frame(path, boxes_px, where: str) -> None:
    """Raises InputError that begins with `where`: no picture that is read, or a box that lies outside it."""
    try:
        height, width = size_of_file(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for x0, y0, x1, y1 in boxes_px:
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"{where}: the box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) lies outside of its frame of {width} x {height} pixels. Boxes are in pixels of the upright frame, "
                             "as large as it is in the file.")


def is_text(value) -> bool:
    """A str that can be written: JSON may hold halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9      # NaN is not below anything
