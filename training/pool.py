"""Frames of dense text, gathered once and kept: python -m ps3_sdk.training.pool FOLDER --split train --frames 120 --workers 2

A frame is 4 x 4 pieces of text; its 72,900 patches of 3780 px take 43 MB and hold some 1,500 windows' worth of text, which
training cuts out anywhere and colours anew each time. What is there already is kept: run it again for more.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from . import machine
from .reading import BASE_PX, CHARACTERS, GRID, PATCH_PX, patches_of, slot_labels

FRAME_PX, PIECES = (2160, 3840), 4


def make_frame(folder: Path, split: str, seed: int, number: int) -> float:
    """Write frame `number`; returns the share of slots that show a character."""
    from .scenes import Scenes
    scenes = _scenes(Scenes, split, seed)
    h, w = FRAME_PX[0] // PIECES, FRAME_PX[1] // PIECES
    frame, codes, boxes, words, last = np.empty((*FRAME_PX, 3), np.uint8), [], [], [], 0
    for k in range(PIECES * PIECES):
        piece, code, box, word = scenes.dense(number * PIECES * PIECES + k, (h, w))
        top, left = k // PIECES * h, k % PIECES * w
        frame[top:top + h, left:left + w] = piece
        codes.append(code)
        boxes.append(box + np.array([left, top, left, top], np.float32))
        words.append(word + last)
        last = words[-1].max(initial=last) + 1
    known = np.zeros(256, np.uint8)
    known[np.frombuffer(CHARACTERS.encode(), np.uint8)] = np.arange(1, len(CHARACTERS) + 1)
    characters, boxes = np.concatenate(codes), np.concatenate(boxes)
    codes = known[characters]
    labels = slot_labels(codes, boxes, FRAME_PX)
    numbers = np.concatenate(words)
    orders = slot_labels(orders_of(numbers), boxes, FRAME_PX)
    heights = np.zeros((GRID, GRID), np.uint8)                  # of the tallest character in each patch, 3780 px
    scale = PATCH_PX * np.array([FRAME_PX[1] / BASE_PX, FRAME_PX[0] / BASE_PX] * 2)
    for x0, y0, x1, y1 in boxes / scale:
        part = heights[int(y0):int(y1) + 1, int(x0):int(x1) + 1]
        np.maximum(part, min(int((y1 - y0) * PATCH_PX), 255), out=part)
    name = folder / f"{number:05}"
    _write(f"{name}.patches.npy", patches_of(frame).reshape(GRID, GRID, -1))
    _write(f"{name}.heights.npy", heights)
    _write(f"{name}.words.npy", words_of(characters, boxes * (PATCH_PX / scale), numbers))
    _write(f"{name}.orders.npy", orders)
    _write(f"{name}.labels.npy", labels)                        # last: a frame without labels is not there
    return float((labels > 0).mean())


def orders_of(numbers: np.ndarray) -> np.ndarray:
    """Which character of its word each one is, from 1 on: (n,) uint8, 8 for all later ones. numbers: (n,) each character's word."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return np.minimum(np.arange(len(numbers)) - np.repeat(starts, np.diff(np.append(starts, len(numbers)))) + 1, 8).astype(np.uint8)


def words_of(characters: np.ndarray, boxes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Words of up to 8 characters: text, box x0 y0 x1 y1 (in boxes' own unit). characters (n,) uint8, boxes (n, 4), numbers (n,)."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    ends = np.append(starts[1:], len(numbers))
    found = [(characters[a:b].tobytes(), (*boxes[a:b, :2].min(0), *boxes[a:b, 2:].max(0))) for a, b in zip(starts, ends) if b - a <= 8]
    return np.array(found, np.dtype([("text", "S8"), ("box", "<f4", (4,))]))


_made = {}


def _scenes(kind, split: str, seed: int):
    if (split, seed) not in _made:
        _made[split, seed] = kind(split=split, seed=seed)
    return _made[split, seed]


def _write(name: str, array: np.ndarray) -> None:
    with open(f"{name}.new", "wb") as file:
        np.save(file, array)
    os.replace(f"{name}.new", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder / f"dense_{options.split}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(options.frames) if not (folder / f"{n:05}.labels.npy").exists()]
    with ProcessPoolExecutor(options.workers, initializer=machine.ended_by_parent) as workers:
        try:
            jobs = [workers.submit(make_frame, folder, options.split, options.seed, n) for n in missing]
            for done, job in enumerate(jobs, 1):
                share = job.result()
                print(f"{done}/{len(missing)} frames, {100 * share:.0f} % of the slots show a character", flush=True)
        except BaseException:       # else all others were waited for
            workers.shutdown(wait=False, cancel_futures=True)
            machine.end(multiprocessing.active_children())
            for path in folder.glob("*.new"):
                path.unlink()
            raise


if __name__ == "__main__":
    machine.command(main)
