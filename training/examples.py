"""Scenes and their questions as the tensors that a training step needs: pixels, places and labels in the grids of the model."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ps3_sdk import _core
from ps3_sdk.errors import RuntimeMissingError

from .nano import NOT_SEEN
from .reading import BASE_PX, CHARACTERS, MEAN, ORDERS, PATCH_PX, STD, slot_labels

SCALES = (756, 1512, 3780)
LOW_PX, VIEW_PX, VIEW_PATCH_PX, LOW_GRID = 378, 1512, 28, 27
Part = tuple[int, int, np.ndarray]      # of a frame: side of the scale and of a patch in pixels, ids


@dataclass
class Example:
    """low: (729, 588) and view: (2916, 2352) f32 normalised, where training runs | asked: per question prompt and answer | where: (q, 729) bool, the places its
    text lies in, none where there is nothing to see | signs: (729,) bool, places of every item's text | slots: (2, 270, 540) uint8, characters and orders of the
    whole frame | frame: for more patches of it | captions: per thing words for it and a name that things like it share | boxes: (things, 729) bool, the places
    that its box covers | extents: (things, 4) f32, x0 y0 x1 y1 of these boxes as shares of the frame."""
    low: Tensor
    view: Tensor
    asked: list[tuple[str, str]]
    where: Tensor
    signs: Tensor
    slots: np.ndarray
    frame: object
    captions: list[tuple[str, str]] = field(default_factory=list)
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, LOW_GRID ** 2, dtype=torch.bool))
    extents: Tensor = field(default_factory=lambda: torch.zeros(0, 4))


class Cutter:
    """Cuts patches out of frames as the SDK does, where training runs: on a GPU the core's kernels do it, of frames that were copied there once;
    a core without kernels cuts on the processor and patches are copied."""

    def __init__(self, device: str | torch.device = "cpu"):
        self.device, self.cuda = torch.device(device), None
        if self.device.type == "cuda":
            try:
                self.cuda = _core.Cuda(torch.cuda.current_stream(self.device).cuda_stream, self.device.index or 0)
                self._copying = torch.cuda.Stream(self.device)      # a copy need not wait for the networks
            except RuntimeMissingError as error:
                print(f"patches are cut on the processor: {error}", flush=True)

    def frame(self, pixels: np.ndarray, into: Tensor | None = None):
        """(h, w, 3) uint8 -> what patches() takes. On a GPU it is a copy, in `into` where that is given; else pixels must stay as they are."""
        plane = pixels
        if self.cuda is not None:
            plane = torch.empty(pixels.shape, dtype=torch.uint8, device=self.device) if into is None else into
            if into is None:
                torch.cuda.current_stream(self.device).synchronize()        # what had that memory before may still be read
            with torch.cuda.stream(self._copying):
                plane.copy_(torch.from_numpy(pixels), non_blocking=True)
            self._copying.synchronize()
        return _core.Frame("RGB", [plane], *pixels.shape[:2])

    def room(self, count: int, frame_px: tuple[int, int]) -> list[Tensor | None]:
        """Memory of the GPU for so many frames."""
        return list(torch.empty((count, *frame_px, 3), dtype=torch.uint8, device=self.device)) if self.cuda is not None else [None] * count

    def pin(self, array: np.ndarray) -> None:
        """Memory that frames are copied from often: a GPU reads it faster when it stays where it is."""
        if self.cuda is not None:
            torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)

    def patches(self, frame, parts: Sequence[Part]) -> list[Tensor]:
        """Per part (K, 3 * patch_px^2) f32, normalised."""
        if self.cuda is None:
            outs = [np.empty((len(ids), 3 * patch_px ** 2), np.float32) for _, patch_px, ids in parts]
            _core.gather_parts(frame, BASE_PX, [(px, patch_px, np.ascontiguousarray(ids, np.int32), out) for (px, patch_px, ids), out in zip(parts, outs)], MEAN, STD)
            return [torch.from_numpy(out).to(self.device) for out in outs]
        every = torch.from_numpy(np.concatenate([ids for *_, ids in parts]).astype(np.int32)).to(self.device).split([len(ids) for *_, ids in parts])
        outs = [torch.empty(len(ids), 3 * patch_px ** 2, device=self.device) for _, patch_px, ids in parts]
        self.cuda.gather(frame, BASE_PX, [(px, patch_px, ids, out) for (px, patch_px, _), ids, out in zip(parts, every, outs)], MEAN, STD)
        return outs


INPUTS = [(LOW_PX, PATCH_PX, np.arange(LOW_GRID ** 2)), (VIEW_PX, VIEW_PATCH_PX, np.arange((VIEW_PX // VIEW_PATCH_PX) ** 2))]


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


def asked_of(questions, items, size: tuple[int, int]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Prompt and answer of each question, and where its text is: (q, 729) bool."""
    nowhere = np.zeros((LOW_GRID, LOW_GRID), bool)
    where = [nowhere if q.item is None else places(items[q.item].text_box_px, size) for q in questions]
    return [(q.prompt, q.answer if q.item is not None else NOT_SEEN) for q in questions], np.array(where).reshape(-1, LOW_GRID ** 2)


def signs_of(items, size: tuple[int, int]) -> np.ndarray:
    """(729,) bool: where any text is."""
    return np.any([np.zeros((LOW_GRID, LOW_GRID), bool), *(places(item.text_box_px, size) for item in items)], axis=0).ravel()


def boxes_of(items, size: tuple[int, int]) -> np.ndarray:
    """(items, 729) bool: where each whole thing is."""
    return np.array([places(item.box_px, size) for item in items], bool).reshape(-1, LOW_GRID ** 2)


def extents_of(items, size: tuple[int, int]) -> np.ndarray:
    """(items, 4) f32: each whole thing's x0 y0 x1 y1 as shares of the frame."""
    h, w = size
    return (np.array([item.box_px for item in items], np.float32).reshape(-1, 4) / np.array([w, h, w, h], np.float32)).astype(np.float32)


def make_example(scene, rng: np.random.Generator, questions: int | None = None, cutter: Cutter = Cutter(), captions: Sequence[tuple[str, str]] = ()) -> Example:
    """scene: anything with frame, items, questions, such as a Scene. questions: how many of them at most. captions: of all its items, or none."""
    size, frame = scene.frame.shape[:2], cutter.frame(scene.frame)
    chosen = [scene.questions[i] for i in rng.permutation(len(scene.questions))][:questions]
    asked, where = asked_of(chosen, scene.items, size)
    return Example(*cutter.patches(frame, INPUTS), asked, torch.from_numpy(where), torch.from_numpy(signs_of(scene.items, size)), scene_labels(scene.items, size), frame,
                   list(captions), *(torch.from_numpy(of(scene.items if captions else [], size)) for of in (boxes_of, extents_of)))


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
