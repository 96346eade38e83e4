"""Frames for training, made by other processes: a ring of shared memory, each frame used a few times before it is replaced."""
from __future__ import annotations

import multiprocessing as mp
from dataclasses import dataclass, replace

import numpy as np
import torch

from . import machine
from .examples import INPUTS, Cutter, Example, asked_of, boxes_of, extents_of, scene_labels, signs_of

NOTHING = 0.03          # share of frames in which there is nothing to see
MOST_QUESTIONS = 32     # per use of a scene
SMALL_PRINT, SMALL_PX = 0.35, (10.0, 15.0)  # share of scenes whose texts are all small, and their capitals at 3840x2160: they are misread twice as often
FURTHEST = 0.6          # share of the questions that name the leftmost, rightmost, highest or lowest of a kind where they can: the hardest to look for


@dataclass
class Slot:
    """A scene that training holds. frame: as a Cutter gives it | signs, slots, captions, boxes, extents: see Example | rounds: per use prompts with answers, and where | left: uses |
    number: of the memory it lies in, shared or the GPU's."""
    frame: object
    signs: np.ndarray
    slots: np.ndarray
    rounds: list
    left: int
    number: int
    captions: list
    boxes: np.ndarray
    extents: np.ndarray


class Ring:
    """Up to `size` scenes of a split, always some ready: next() gives examples of some of them, taken at random.

    uses: how often each is given before a new one takes its place; more often while there is none. start: index of the first scene.
    memory: frames of 25 MB that are shared with the workers, default `size`; fewer do where a GPU takes copies. drawn: further options of Scenes.
    """

    def __init__(self, split: str, seed: int, size: int = 48, uses: int = 3, workers: int = 1, frame_px: tuple[int, int] = (2160, 3840), start: int = 0,
                 cutter: Cutter | None = None, memory: int | None = None, **drawn):
        self.size, self.uses, self.cutter = size, uses, cutter or Cutter()
        context, memory = mp.get_context("spawn"), memory or size
        shared = [context.RawArray("B", 3 * frame_px[0] * frame_px[1]) for _ in range(memory)]        # without a name: it goes with the last process that has it
        self._arrays = [_array(each, frame_px) for each in shared]
        self._copies = self.cutter.room(size, frame_px)
        self._empty = list(range(size))         # of the copies
        for array in self._arrays:
            self.cutter.pin(array)
        self._free, self._ready = context.Queue(), context.Queue()
        self._slots: list[Slot] = []
        self._rng = np.random.default_rng([seed, start])
        for i in range(memory):
            self._free.put(i)
        self._workers = [context.Process(target=machine.as_child, args=(_work, shared, self._free, self._ready, split, seed, start + n, workers, frame_px, uses, drawn), daemon=True)
                         for n in range(workers)]
        for worker in self._workers:
            worker.start()

    def next(self, count: int = 1, questions: int | None = None) -> list[Example]:
        """Examples of `count` scenes, different ones where there are as many, with at most so many questions each. Their frames are there until the next call."""
        self._take()
        chosen = self._rng.permutation(len(self._slots))[:count]
        if len(chosen) < count:
            chosen = np.concatenate([chosen, self._rng.integers(len(self._slots), size=count - len(chosen))])
        examples = []
        for slot in [self._slots[i] for i in chosen]:
            slot.left -= 1
            asked, where = slot.rounds[slot.left % len(slot.rounds)]
            examples.append(Example(*self.cutter.patches(slot.frame, INPUTS), asked[:questions], torch.from_numpy(where[:questions]), torch.from_numpy(slot.signs), slot.slots, slot.frame,
                                    slot.captions, torch.from_numpy(slot.boxes), torch.from_numpy(slot.extents)))
        return examples

    def _take(self) -> None:
        """New scenes in; those that were used often enough out, but for the last few."""
        for slot in [slot for slot in self._slots if slot.left <= 0][:max(0, len(self._slots) - max(1, self.size // 4))]:
            self._slots.remove(slot)
            if self.cutter.cuda is None:
                self._free.put(slot.number)
            else:
                self._empty.append(slot.number)
        while not self._slots or len(self._slots) < self.size and not self._ready.empty():
            i, signs, slots, rounds, captions, boxes, extents = self._ready.get(timeout=600)
            number = i if self.cutter.cuda is None else self._empty.pop()
            self._slots.append(Slot(self.cutter.frame(self._arrays[i], self._copies[number]), signs, slots, rounds, self.uses, number, captions, boxes, extents))
            if self.cutter.cuda is not None:
                self._free.put(i)

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        self._slots, self._arrays, self._workers = [], [], []


def _array(memory, frame_px: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(memory, np.uint8).reshape(*frame_px, 3)


def nothing_to_see(rng: np.random.Generator, frame: np.ndarray) -> np.ndarray:
    """A frame of `frame`'s shape that answers nothing: one colour, a slope of two, noise, or coarse blocks of what there was."""
    h, w, _ = frame.shape
    one, other = rng.integers(0, 256, (2, 3))
    kind = rng.integers(4)
    if kind == 0:
        return np.broadcast_to(one.astype(np.uint8), frame.shape)
    if kind == 1:
        share = np.linspace(0, 1, w)[None, :, None] if rng.random() < 0.5 else np.linspace(0, 1, h)[:, None, None]
        return np.broadcast_to((one + (other - one) * share).astype(np.uint8), frame.shape)
    step = int(rng.choice([1, 2, 8, 40]))
    if kind == 2:
        small = rng.integers(0, 256, (-(-h // step), -(-w // step), 3), np.uint8)
    else:
        step = max(step, 40)
        small = frame[::step, ::step]
    return small.repeat(step, axis=0).repeat(step, axis=1)[:h, :w]


def _questions(scenes, rng, scene) -> list:
    """Four rounds of questions in another order: the same things in other words."""
    asked = [question for _ in range(4) for question in scenes.ask(rng, scene.domain, scene.items, furthest=FURTHEST)]
    different = list({question.prompt: question for question in asked}.values())
    return [different[i] for i in rng.permutation(len(different))][:MOST_QUESTIONS]


def _work(shared, free, ready, split, seed, first, stride, frame_px, uses, drawn) -> None:
    from .scenes.scenes import CAP_PX, Scenes
    torch.set_num_threads(1)
    scenes = Scenes(split=split, seed=seed, frame_px=frame_px, **drawn)
    index = first
    while True:
        i, rng = free.get(), np.random.default_rng([seed, index, 77])
        scenes.cap_px = SMALL_PX if rng.random() < SMALL_PRINT else CAP_PX
        scene = scenes[index]
        rounds, items = [_questions(scenes, rng, scene) for _ in range(uses)], scene.items
        if rng.random() < NOTHING:
            scene.frame[:], items = nothing_to_see(rng, scene.frame), []
            rounds = [[replace(question, answer="", item=None, box_px=None) for question in questions] for questions in rounds]
        _array(shared[i], frame_px)[:] = scene.frame
        ready.put((i, signs_of(items, frame_px), scene_labels(items, frame_px), [asked_of(questions, items, frame_px) for questions in rounds],
                   scenes.captions(rng, scene.domain, items), boxes_of(items, frame_px), extents_of(items, frame_px)))
        index += stride
