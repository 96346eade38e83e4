"""Scenes: frame number -> frame, things and questions."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backgrounds import Canvases, find_photos
from .dense import make_dense
from .draw import bend, lay, random_look, weather
from .fonts import load_faces
from .kinds import DOMAINS, KINDS, kinds_of
from .places import PLACES
from .prompts import TEMPLATES, Question, ask_absent, ask_all, noun_phrase
from .settings import prepare
from .splits import SPLITS, check_split
from .words import load_words, make_value

BLOCK = 64               # this many frames in a row share CANVASES canvases
CANVASES = 4
DENSE_TYPES = 96         # faces at a size that BLOCK dense pieces share
CAP_PX = (10.0, 28.0)    # capitals' height at 3840x2160


@dataclass
class Item:
    """A thing in a frame. value says what its text is: "word" or a key of words.VALUES. Boxes are x0, y0, x1, y1 in frame pixels: of the whole thing, of the ink of its text, of each character
    (n, 4). cap_px is the height of a capital letter of its font in the frame. legible is False where it is too small to be read; ink and ground differ by construction."""
    kind: str
    colour: str
    shape: str
    value: str
    text: str
    box_px: tuple[float, float, float, float]
    text_box_px: tuple[float, float, float, float]
    char_boxes_px: np.ndarray
    cap_px: float
    legible: bool


@dataclass
class Scene:
    frame: np.ndarray
    domain: str
    items: list[Item]
    questions: list[Question]


class Scenes:
    """Frames with questions: scenes[i] depends on split, seed, domains, frame_px, cap_px, i and what is installed, and on nothing else.

    split:    "train", "val" or "test": no font family, photograph, word or random number is in two of them
    domains:  which of DOMAINS; frame i has domains[i % len(domains)]
    frame_px: (h, w); things are drawn at the size they have in 3840x2160, times the root of the area ratio
    cap_px:   lowest and highest height of capitals at 3840x2160, every height between as likely
    fallback: also work, poorly, where fonts or word lists are not installed
    Ask for frames in order: BLOCK of them share their backgrounds, which take longer to make than a frame.
    """

    def __init__(self, split="train", seed=0, domains=DOMAINS, frame_px=(2160, 3840), cap_px=CAP_PX, fallback=False):
        self.split, self.seed, self.domains, self.frame_px, self.cap_px = check_split(split), int(seed), tuple(domains), tuple(frame_px), cap_px
        wrong = [name for name in self.domains if name not in DOMAINS]
        if wrong or not self.domains:
            raise ValueError(f"[training.scenes] got domains {self.domains}; some of {', '.join(DOMAINS)} are needed. Leave out {wrong or 'the argument'}.")
        if min(self.frame_px) < 256:
            raise ValueError(f"[training.scenes] got frame_px {self.frame_px}; at least 256 pixels a side are needed. Take a larger frame.")
        self.faces = load_faces(split, fallback)
        spoken = {word for kind in KINDS for text in (*kind.nouns, *kind.asks) for word in text.replace("?", "").split()}
        spoken |= {word for forms in TEMPLATES.values() for form in forms for word in form.replace("?", "").split()}
        spoken |= {"left", "right", "top", "bottom", "upper", "lower", "leftmost", "rightmost", "highest", "lowest", "word", "number", "code", "plate", "text", "time",
                   "percentage", "price", "temperature", "date", *(colour for kind in KINDS for colour in kind.colours)}
        self.words = load_words(split, spoken, fallback)
        self.photos = find_photos(split)
        self.canvases = Canvases(split, self.seed, self.frame_px, self.photos)
        self.unit = float(np.sqrt(self.frame_px[0] * self.frame_px[1] / (2160 * 3840)))
        self.grain = (np.random.default_rng(64).standard_normal((512, 512)) * 64).astype(np.int16)
        self._types = (-1, [])

    def _rng(self, i, stream):
        if i < 0:
            raise IndexError(f"[training.scenes] got frame {i}; 0 or more is needed. Count frames from 0.")
        return np.random.default_rng([SPLITS.index(self.split), self.seed, int(i), stream])

    def _canvas(self, i, rng, domain):
        """(key, what) of the canvas of frame i: half photographs; the rest patterns and, outside screens, a drawn place"""
        which = int(rng.integers(CANVASES))
        what = "photo" if which % 2 == 0 else domain if which == 3 and domain in PLACES else "pattern"
        return (SPLITS.index(self.split), self.seed, int(i) // BLOCK, which), what

    def __getitem__(self, i: int) -> Scene:
        rng = self._rng(i, 0)
        domain = self.domains[i % len(self.domains)]
        canvas = self._canvas(i, rng, domain)
        h, w = self.frame_px
        while True:
            frame = None
            things = self._choose_things(rng, domain)
            look = random_look(rng, domain in ("gaming", "ui"))
            cuts = [self._draw(rng, look, *thing) for thing in things]
            places = self._place(rng, [cut.picture.size for cut in cuts])
            if places is None:
                continue
            items = [self._item(thing, cut, place) for thing, cut, place in zip(things, cuts, places)]
            questions = self.ask(rng, domain, items, int(rng.integers(4, 9)))
            if sum(question.item is not None for question in questions) >= 4:
                break
        frame = prepare(domain, self.canvases, canvas, rng, self.unit)
        for cut, (left, top) in zip(cuts, places):
            lay(frame, cut.picture, left, top)
        return Scene(frame, domain, items, questions)

    def ask(self, rng, domain: str, items: list[Item], most: int = 9, furthest: float = 0.0) -> list[Question]:
        """Questions about up to `most` of the things in a frame of `domain`, and one or two about what is not there. furthest: see prompts.describe."""
        local = {kind.name: kind for kind in kinds_of(domain)}
        questions, absent = ask_all(rng, self.split, items, local, self.frame_px, most, furthest), {}
        while len(absent) < 1 or (len(absent) < 2 and rng.random() < 0.5):
            question = ask_absent(rng, self.split, items, local, self.frame_px)
            if question:
                absent[question.prompt] = question
        return questions + list(absent.values())

    def captions(self, rng, domain: str, items: list[Item]) -> list[tuple[str, str]]:
        """What a low-res view shows of each thing, in words, and a name for it that others of its kind and colour have, too."""
        local = {kind.name: kind for kind in kinds_of(domain)}
        return [(noun_phrase(rng, local[item.kind], item.colour), f"{item.colour} {item.kind}") for item in items]

    def _choose_things(self, rng, domain):
        """[(kind, colour, text, value type)]: two or three kinds, several of each, all texts different"""
        kinds = kinds_of(domain)
        total, num_kinds = int(rng.integers(4, 10)), int(rng.integers(2, 4))
        chosen = [kinds[k] for k in rng.choice(len(kinds), min(num_kinds, total // 2), replace=False)]
        things, texts = [], set()
        for n in range(total):
            kind = chosen[n % len(chosen)]
            used = [colour for other, colour, _, _ in things if other is kind]
            fresh = [colour for colour in kind.colours if colour not in used]
            colour = str(rng.choice(fresh)) if fresh and rng.random() < 0.7 else str(rng.choice(kind.colours))
            types = list(kind.values)
            weights = np.array([kind.values[name] for name in types], float)
            text = ""
            while not text or text in texts:
                value_type = types[rng.choice(len(types), p=weights / weights.sum())]
                text = make_value(rng, value_type, self.words)
            texts.add(text)
            things.append((kind, colour, text, value_type))
        return things

    def _draw(self, rng, look, kind, colour, text, _):
        cap = float(rng.uniform(self.cap_px[0] * 1.04, self.cap_px[1] * 0.96)) * self.unit
        line = self.faces[rng.integers(len(self.faces))].line(text, cap, rng.uniform(0, 0.12) * cap if rng.random() < 0.3 else 0.0)
        cut = bend(kind.draw(rng, colour, line, self.unit), rng, look)
        cut.picture = weather(cut.picture, rng, look, line.cap_px, self.grain)
        cut.text_scale *= line.cap_px
        return cut

    def _place(self, rng, sizes):
        """Places (left, top) of pictures (w, h) that do not touch one another, or None."""
        h, w = self.frame_px
        gap, taken, places = int(24 * self.unit), [], []
        for width, height in sizes:
            if width + 2 * gap >= w or height + 2 * gap >= h:
                return None
            for _ in range(60):
                left, top = int(rng.integers(gap, w - width - gap)), int(rng.integers(gap, h - height - gap))
                if all(left > x1 + gap or left + width + gap < x0 or top > y1 + gap or top + height + gap < y0 for x0, y0, x1, y1 in taken):
                    break
            else:
                return None
            taken.append((left, top, left + width, top + height))
            places.append((left, top))
        return places

    def _item(self, thing, cut, place):
        kind, colour, text, value = thing
        move = np.array([*place, *place], np.float32)
        cap = float(cut.text_scale)
        return Item(kind.name, colour, kind.shape, value, text, tuple((cut.box + move).tolist()), tuple((cut.text_box + move).tolist()), cut.char_boxes + move, cap,
                    cap >= 0.95 * self.cap_px[0] * self.unit)

    def dense(self, i: int, canvas_px=(540, 960)):
        """A piece of a frame full of text: (frame (h, w, 3) uint8, code (n,) uint8, boxes (n, 4) float32 pixels, word (n,) int32).
        code is ord(character); characters of one word follow each other and have one word number. The piece is in frame pixels of 3840x2160: capitals are cap_px high."""
        rng = self._rng(i, 1)
        key, what = self._canvas(i // BLOCK, rng, "")
        block = int(i) // BLOCK
        if self._types[0] != block:
            draw = self._rng(block, 2)
            low, high = np.log(self.cap_px)
            caps = np.exp(low + (high - low) * draw.random(DENSE_TYPES))
            self._types = block, [self.faces[draw.integers(len(self.faces))].glyphs(cap) for cap in caps]
        return make_dense(rng, self.canvases.cut(rng, key, what, canvas_px), self._types[1], self.words, self.grain)
