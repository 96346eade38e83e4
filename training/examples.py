"""A scene and its questions as the tensors that a training step needs; windows, cells and labels in the grids of the model."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ps3_sdk import _core

from .nano import NOT_SEEN
from .reading import BASE_PX, CHARACTERS, GRID, MEAN, PATCH_PX, STD, slot_labels

SCALES = (756, 1512, 3780)
LOW_PX, VIEW_PX, VIEW_PATCH_PX, LOW_GRID = 378, 1512, 28, 27
CELL = GRID // LOW_GRID                 # 3780 px patches per side of a low-res place
WINDOW = (6, 18)                        # patches of 3780 px that hold any text of a scene


@dataclass
class Example:
    """low: (1, 729, 588) and view: (1, 2916, 2352) f32 normalised | windows: (w, 108, 588), their ids (w, 108) int64 and slot labels
    (w, 108, 2): those of the things asked about, then others; w may be 0 | asked: per question prompt, answer, window (None: nothing to see, or too
    many things) and the (27, 27) bool places its text lies in | signs: (27, 27) bool, places of every item's text | slots: (270, 540) uint8 labels of the whole frame."""
    low: Tensor
    view: Tensor
    windows: Tensor
    window_ids: Tensor
    labels: Tensor
    asked: list[tuple[str, str, int | None, Tensor]]
    signs: Tensor
    slots: np.ndarray
    frame: object


def normalised(frame, px: int, patch_px: int, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(_core.gather(frame, BASE_PX, px, patch_px, np.ascontiguousarray(ids, np.int32), MEAN, STD))


def places(box_px, size: tuple[int, int], share: float = 0.12) -> np.ndarray:
    """(27, 27) bool: places that hold at least `share` of the box, or that it covers by that much; never none."""
    h, w = size
    x0, y0, x1, y1 = (np.asarray(box_px, float) * [LOW_GRID / w, LOW_GRID / h, LOW_GRID / w, LOW_GRID / h])
    side = np.arange(LOW_GRID)
    across = np.clip(np.minimum(side + 1, x1) - np.maximum(side, x0), 0, None)
    down = np.clip(np.minimum(side + 1, y1) - np.maximum(side, y0), 0, None)
    area = down[:, None] * across[None]
    found = area >= share * min(max(area.sum(), 1e-9), 1.0)
    found[np.unravel_index(area.argmax(), area.shape)] = True
    return found


def make_example(slot, rng: np.random.Generator, windows: int = 8, questions: int | None = None) -> Example:
    """slot: anything with frame, items, questions (training.frames.Slot or a Scene). questions: how many of them at most."""
    h, w = slot.frame.shape[:2]
    frame = _core.Frame("RGB", [slot.frame], h, w)
    low = normalised(frame, LOW_PX, PATCH_PX, np.arange(LOW_GRID ** 2))[None]
    view = normalised(frame, VIEW_PX, VIEW_PATCH_PX, np.arange((VIEW_PX // VIEW_PATCH_PX) ** 2))[None]
    chosen = [slot.questions[i] for i in rng.permutation(len(slot.questions))][:questions]
    targets = list(dict.fromkeys(q.item for q in chosen if q.item is not None))
    shown = (targets + [int(i) for i in rng.permutation(len(slot.items)) if i not in targets])[:windows]
    boxes = [slot.items[i].text_box_px for i in shown]
    while len(boxes) < windows:                     # anywhere
        x, y = rng.uniform(0, w - 80), rng.uniform(0, h - 20)
        boxes.append((x, y, x + 80, y + 20))
    ids = np.array([window_around(box, (h, w), rng) for box in boxes], np.int32).reshape(windows, WINDOW[0] * WINDOW[1])
    patches = normalised(frame, BASE_PX, PATCH_PX, ids.ravel()).view(*ids.shape, 3 * PATCH_PX ** 2)
    labels = scene_labels(slot.items, (h, w))
    slots = np.stack([labels[ids // GRID, 2 * (ids % GRID)], labels[ids // GRID, 2 * (ids % GRID) + 1]], axis=-1)
    nowhere = torch.zeros(LOW_GRID, LOW_GRID, dtype=torch.bool)
    where = [nowhere if q.item is None else torch.from_numpy(places(slot.items[q.item].text_box_px, (h, w))) for q in chosen]
    asked = [(q.prompt, q.answer if q.item is not None else NOT_SEEN, shown.index(q.item) if q.item in shown else None, place) for q, place in zip(chosen, where)]
    signs = np.any([np.zeros((LOW_GRID, LOW_GRID), bool), *(places(item.text_box_px, (h, w)) for item in slot.items)], axis=0)
    return Example(low, view, patches, torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(slots.astype(np.int64)), asked, torch.from_numpy(signs), labels, frame)


def window_around(box_px, size: tuple[int, int], rng: np.random.Generator | None) -> np.ndarray:
    """(108,) ids of a window of 3780 px patches that holds the box, made of whole 2 x 2 blocks, somewhere around it."""
    h, w = size
    x0, y0, x1, y1 = np.asarray(box_px, float) * [GRID / w, GRID / h, GRID / w, GRID / h]
    start = []
    for low, high, length in ((y0, y1, WINDOW[0]), (x0, x1, WINDOW[1])):
        first, last = int(np.ceil(high)) - length, int(np.floor(low))          # any start between them holds the box
        middle = round((low + high - length) / 2)
        at = middle if rng is None or last < first else int(rng.integers(first, last + 1))
        start.append(int(np.clip(2 * round(at / 2), 0, GRID - length)))
    return ((start[0] + np.arange(WINDOW[0]))[:, None] * GRID + start[1] + np.arange(WINDOW[1])).ravel()


def scene_labels(items, size: tuple[int, int]) -> np.ndarray:
    codes, boxes = [], []
    for item in items:
        for character, box in zip(item.text, np.asarray(item.char_boxes_px, np.float32).reshape(-1, 4)):
            if character in CHARACTERS:
                codes.append(CHARACTERS.index(character) + 1)
                boxes.append(box)
    return slot_labels(np.array(codes, np.uint8), np.array(boxes, np.float32).reshape(-1, 4), size)
