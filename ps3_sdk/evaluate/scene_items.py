"""Questions about held-out scenes of training.scenes: fonts, words and photographs that no training saw."""
from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from ..errors import InputError
from .items import Item, digest

DOMAINS = ("driving", "household", "gaming", "ui")
FRAME_PX = (2160, 3840)
PER_FRAME = 4           # questions that have an answer
OTHER_LANGUAGES = (
    "wie spät ist es auf der turmuhr?", "was kostet die fahrkarte?", "¿qué dice la puerta de la iglesia?", "¿cuál es el número del avión?",
    "quel est le nom du bateau ?", "que dit l'étiquette du chapeau ?", "che cosa c'è scritto sull'ombrello?", "co jest napisane na rowerze?",
    "что написано на лодке?", "飛行機の番号は何ですか？", "船上的名字是什么？", "ما المكتوب على القارب؟")


class SceneItems:
    """`questions` per domain that have an answer, then `unanswerable` per domain that have none (default: half as many).

    Of the unanswerable, three of five ask for a kind, colour or place that is not there; the others take turns among a blank frame, a
    frame of noise, an empty prompt, another language, a portrait frame and a panorama.
    split, seed, domains, frame_px (h, w), fallback: as in training.scenes.Scenes.
    Questions whose text the generator calls illegible are not asked. Iterating makes the frames, in order; len() is what will be asked.
    Raises InputError: no fonts or words installed and no fallback, unknown domain or split, no questions.
    """
    name = "scenes"

    def __init__(self, questions: int = 100, *, unanswerable: int | None = None, domains: Sequence[str] = DOMAINS, split: str = "test", seed: int = 0,
                 frame_px: tuple[int, int] = FRAME_PX, fallback: bool = False):
        self.questions, self.unanswerable = questions, questions // 2 if unanswerable is None else unanswerable
        for name, value, least in (("questions", questions, 1), ("unanswerable", self.unanswerable, 0), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"[evaluate] {name} is {value!r}; a whole number of at least {least} is needed.")
        self.domains, self._of = tuple(domains), dict(split=split, seed=seed, domains=tuple(domains), frame_px=tuple(frame_px), fallback=fallback)
        self.scenes = self._open()
        scenes = self.scenes
        self.notes = ("fonts or word lists are not installed: these frames use Pillow's own face, their figures are no figures",) if fallback and not scenes.faces[0].path else ()
        sources = sorted(Path(_module().__file__).parent.rglob("*.py")) + sorted(Path(_module().__file__).parent.rglob("*.txt"))
        self.settings = {
            "set": "scenes", "split": split, "seed": seed, "questions": questions, "unanswerable": self.unanswerable, "domains": list(self.domains),
            "frame_px": list(frame_px), "per_frame": PER_FRAME, "generator": digest(*(path.read_bytes() for path in sources)),
            "installed": digest(*(face.path for face in scenes.faces), "", *scenes.photos, "", *scenes.words),
            "fonts": len({face.family for face in scenes.faces}), "photographs": len(scenes.photos), "words": len(scenes.words)}

    def __len__(self) -> int:
        return len(self.domains) * (self.questions + self.unanswerable)

    def __iter__(self) -> Iterator[Item]:
        num_odd = self.unanswerable * 2 // 5
        left = {domain: self.questions for domain in self.domains}
        absent_left = {domain: self.unanswerable - num_odd for domain in self.domains}
        i = -1
        while any(left.values()) or any(absent_left.values()):
            i += 1
            if i > 20 * (len(self) + len(self.domains)):
                raise InputError(f"[evaluate] {i} frames of {self._of['frame_px']} gave too few questions that can be read. Take larger frames.")
            domain = self.domains[i % len(self.domains)]
            if not left[domain] and not absent_left[domain]:
                continue
            scene = self.scenes[i]
            asked = [question for question in scene.questions if question.item is not None and scene.items[question.item].legible]
            for n, question in enumerate(asked[:min(PER_FRAME, left[domain])]):
                yield self._item(f"{i}/{n}", scene, question)
                left[domain] -= 1
            absent = [question for question in scene.questions if question.item is None]
            for n, question in enumerate(absent[:absent_left[domain]]):
                yield self._item(f"{i}/absent {n}", scene, question)
                absent_left[domain] -= 1
        yield from self._odd(num_odd)

    def _open(self, **changed):
        try:
            return _module().Scenes(**{**self._of, **changed})
        except FileNotFoundError as error:
            raise InputError(f"[evaluate] scenes cannot be drawn here: {error}") from error
        except ValueError as error:
            raise InputError(f"[evaluate] {error}") from error

    def _item(self, key: str, scene, question, **changed) -> Item:
        boxes = (scene.items[question.item].text_box_px,) if question.item is not None else ()
        cap_px = question.cap_px / self.scenes.unit if question.item is not None else None
        fields = dict(key=key, where=f"[evaluate] scene {key}", frame=lambda: scene.frame, prompt=question.prompt, answer=question.answer, boxes_px=boxes,
                      domain=scene.domain, kind=question.kind, cap_px=cap_px)
        return Item(**{**fields, **changed})

    def _odd(self, count: int) -> Iterator[Item]:
        """What the frame, or the model, cannot answer for other reasons; prompts and frames of scenes that were not asked about."""
        h, w = self._of["frame_px"]
        long, short = max(h, w), min(h, w)
        seed = self._of["seed"] + 1_000_000
        upright, wide = self._open(seed=seed, frame_px=(long, short)), self._open(seed=seed, frame_px=(max(256, 2 * short // 3), 3 * long // 2))
        plain, rng = self._open(seed=seed), np.random.default_rng([seed, 1])
        kinds = cycle(("blank frame", "noise frame", "empty prompt", "other language", "portrait frame", "panorama frame"))
        for n in range(count * len(self.domains)):
            kind = next(kinds)
            scene = {"portrait frame": upright, "panorama frame": wide}.get(kind, plain)[n]
            known = next(question for question in scene.questions if question.item is not None)
            missing = next(question for question in scene.questions if question.item is None)
            changed = {"kind": kind, "answer": "", "boxes_px": (), "cap_px": None}
            if kind == "blank frame":
                changed["frame"] = lambda level=int(rng.integers(256)): np.full((h, w, 3), level, np.uint8)
            elif kind == "noise frame":
                changed["frame"] = lambda noise=int(rng.integers(2**31)): np.random.default_rng(noise).integers(0, 256, (h, w, 3), np.uint8)
            elif kind == "empty prompt":
                changed["prompt"] = ""
            elif kind == "other language":
                changed["prompt"] = OTHER_LANGUAGES[n // 6 % len(OTHER_LANGUAGES)]
            yield self._item(f"odd {n}", scene, missing if "frame" in kind and kind[0] == "p" else known, **changed)


def _module():
    from ..training import scenes       # here, because nothing else of the SDK needs it
    return scenes
