"""Frames for training, made by other processes: a ring of shared memory, each frame used a few times before it is replaced."""
from __future__ import annotations

import multiprocessing as mp
from dataclasses import dataclass, field, replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np

NOTHING = 0.03          # share of frames in which there is nothing to see


@dataclass
class Slot:
    """frame: (h, w, 3) uint8 in shared memory | items, questions: of the scene, other questions at each use | left: uses before it is made anew."""
    frame: np.ndarray
    items: list
    questions: list
    left: int
    more: list = field(default_factory=list)


class Ring:
    """`size` scenes of a split, always some ready: next() gives one at random.

    uses: how often each is given before a worker replaces it. start: index of the first scene.
    """

    def __init__(self, split: str, seed: int, size: int = 48, uses: int = 3, workers: int = 1, frame_px: tuple[int, int] = (2160, 3840), start: int = 0, domains=None):
        self.size, self.uses, self.frame_px = size, uses, frame_px
        context = mp.get_context("spawn")
        self._memory = [SharedMemory(create=True, size=3 * frame_px[0] * frame_px[1]) for _ in range(size)]
        self._arrays = [np.ndarray((*frame_px, 3), np.uint8, memory.buf) for memory in self._memory]
        self._free, self._ready = context.Queue(), context.Queue()
        self._slots: dict[int, Slot] = {}
        self._rng = np.random.default_rng([seed, start])
        for i in range(size):
            self._free.put(i)
        names = [memory.name for memory in self._memory]
        self._workers = [context.Process(target=_work, args=(names, self._free, self._ready, split, seed, start + n, workers, frame_px, domains, uses), daemon=True) for n in range(workers)]
        for worker in self._workers:
            worker.start()

    def next(self) -> Slot:
        """A scene; its frame stays as it is until `uses` calls have given it."""
        while not self._slots or not self._ready.empty():
            i, items, more = self._ready.get(timeout=600)
            self._slots[i] = Slot(self._arrays[i], items, [], self.uses, more)
        i = int(self._rng.choice(list(self._slots)))
        slot = self._slots[i]
        slot.left -= 1
        slot.questions = slot.more[slot.left % len(slot.more)]
        if slot.left <= 0 and len(self._slots) > 1:
            slot = Slot(slot.frame.copy(), slot.items, slot.questions, 0)      # the worker overwrites it at once
            del self._slots[i]
            self._free.put(i)
        return slot

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
        self._arrays = []
        self._slots = {}
        for memory in self._memory:
            memory.unlink()


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
    """Four rounds of questions: the same things in other words."""
    asked = [question for _ in range(4) for question in scenes.ask(rng, scene.domain, scene.items)]
    return list({question.prompt: question for question in asked}.values())


def _work(names, free, ready, split, seed, first, stride, frame_px, domains, uses) -> None:
    from .scenes import Scenes
    memory = [SharedMemory(name=name) for name in names]
    scenes = Scenes(split=split, seed=seed, frame_px=frame_px, **({"domains": domains} if domains else {}))
    index = first
    while True:
        i = free.get()
        scene, rng = scenes[index], np.random.default_rng([seed, index, 77])
        asked, items = [_questions(scenes, rng, scene) for _ in range(uses)], scene.items
        if rng.random() < NOTHING:
            scene.frame[:], items = nothing_to_see(rng, scene.frame), []
            asked = [[replace(question, answer="", item=None, box_px=None) for question in questions] for questions in asked]
        np.ndarray((*frame_px, 3), np.uint8, memory[i].buf)[:] = scene.frame
        ready.put((i, items, asked))
        index += stride
