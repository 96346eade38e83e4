"""A scene and its questions as the tensors that a training step needs: pixels, places and labels in the grids of the model."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ps3_sdk import _core

from .nano import NOT_SEEN
from .reading import BASE_PX, CHARACTERS, MEAN, ORDERS, PATCH_PX, STD, slot_labels

SCALES = (756, 1512, 3780)
LOW_PX, VIEW_PX, VIEW_PATCH_PX, LOW_GRID = 378, 1512, 28, 27


@dataclass
class Example:
    """low: (1, 729, 588) and view: (1, 2916, 2352) f32 normalised | asked: per question prompt, answer and the (27, 27) bool places its text lies in, none where
    there is nothing to see | signs: (27, 27) bool, places of every item's text | slots: (2, 270, 540) uint8, characters and orders of the whole frame."""
    low: Tensor
    view: Tensor
    asked: list[tuple[str, str, Tensor]]
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


def make_example(slot, rng: np.random.Generator, questions: int | None = None) -> Example:
    """slot: anything with frame, items, questions (training.frames.Slot or a Scene). questions: how many of them at most."""
    h, w = slot.frame.shape[:2]
    frame = _core.Frame("RGB", [slot.frame], h, w)
    low = normalised(frame, LOW_PX, PATCH_PX, np.arange(LOW_GRID ** 2))[None]
    view = normalised(frame, VIEW_PX, VIEW_PATCH_PX, np.arange((VIEW_PX // VIEW_PATCH_PX) ** 2))[None]
    chosen = [slot.questions[i] for i in rng.permutation(len(slot.questions))][:questions]
    nowhere = torch.zeros(LOW_GRID, LOW_GRID, dtype=torch.bool)
    where = [nowhere if q.item is None else torch.from_numpy(places(slot.items[q.item].text_box_px, (h, w))) for q in chosen]
    asked = [(q.prompt, q.answer if q.item is not None else NOT_SEEN, place) for q, place in zip(chosen, where)]
    signs = np.any([np.zeros((LOW_GRID, LOW_GRID), bool), *(places(item.text_box_px, (h, w)) for item in slot.items)], axis=0)
    return Example(low, view, asked, torch.from_numpy(signs), scene_labels(slot.items, (h, w)), frame)


def scene_labels(items, size: tuple[int, int]) -> np.ndarray:
    """(2, 270, 540) uint8: which character each half of each 3780 px patch shows, and which of its text's characters that is."""
    codes, orders, boxes = [], [], []
    for item in items:
        for order, (character, box) in enumerate(zip(item.text, np.asarray(item.char_boxes_px, np.float32).reshape(-1, 4)), 1):
            if character in CHARACTERS:
                codes.append(CHARACTERS.index(character) + 1)
                orders.append(min(order, ORDERS - 1))
                boxes.append(box)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return np.stack([slot_labels(np.array(values, np.uint8), boxes, size) for values in (codes, orders)])
