"""What a frame is asked: descriptions that fit exactly one of its things, in words a 378 px view can bear out, and the prompts made of
them. A description names the kind, and where that is not enough the colour and the place."""
from __future__ import annotations

from dataclasses import dataclass

from .words import value_noun

MAX_WORDS = 12
TEMPLATES = {
    "train": ("what does the {d} say?", "what is written on the {d}?", "read the {d}", "what is the {v} on the {d}?", "what {v} is on the {d}?",
              "tell me the {v} on the {d}", "what can be read on the {d}?", "please read the {d}", "what does the {d} show?", "give the {v} on the {d}",
              "{d}", "{v} on the {d}", "{v} of the {d}?", "{d}, what does it say?", "the {d}, please", "what does it say on the {d}?", "find the {d} and read it",
              "look at the {d}, what {v} is there?", "could you tell me what the {d} says?", "i want to know the {v} on the {d}", "read out the {d}",
              "show me the {v} of the {d}", "do you see the {d}? what does it say?", "what can you read on the {d}?", "there is a {d}, what is its {v}?"),
    "val": ("can you read the {d}?", "what text is on the {d}?", "say the {v} on the {d}"),
    "test": ("which {v} does the {d} show?", "i need the {v} on the {d}", "what is on the {d}?"),
}
NEAR = {"red": ("orange",), "orange": ("red", "yellow"), "yellow": ("orange",), "blue": ("purple",), "purple": ("blue",)}
# place -> (axis, towards, how it is said: after the noun, or before it)
SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
SAID = {"left": ("{n} on the left", "{n} to the left", "left {n}"), "right": ("{n} on the right", "{n} to the right", "right {n}"),
        "top": ("{n} at the top", "{n} near the top", "upper {n}"), "bottom": ("{n} at the bottom", "{n} near the bottom", "lower {n}")}
MOST = {"left": "leftmost {n}", "right": "rightmost {n}", "top": "highest {n}", "bottom": "lowest {n}"}


@dataclass(frozen=True)
class Question:
    """prompt: lower-case English. answer: the text of items[item]; "" and None where the frame cannot answer. box_px: x0, y0, x1, y1 of
    that item, cap_px its capitals' height, in frame pixels. kind: "value", "absent colour", "absent kind" or "absent place"."""
    prompt: str
    answer: str
    item: int | None
    box_px: tuple[float, float, float, float] | None
    kind: str
    cap_px: float


def _centre(item, frame_px):
    x0, y0, x1, y1 = item.box_px
    return (x0 + x1) / 2 / frame_px[1], (y0 + y1) / 2 / frame_px[0]


def places_of(target, others, frame_px) -> list[str]:
    """Sides of the frame that `target` is clearly on and none of `others` is."""
    found = []
    for side, (axis, sign) in SIDES.items():
        place = sign * (_centre(target, frame_px)[axis] - 0.5)
        rest = [sign * (_centre(other, frame_px)[axis] - 0.5) for other in others]
        if place > 0.06 and all(r < -0.02 and place - r > 0.16 for r in rest):
            found.append(side)
    return found


def extremes_of(target, others, frame_px) -> list[str]:
    """Sides to which `target` is clearly further than all of `others` (one at least)."""
    found = []
    for side, (axis, sign) in SIDES.items():
        place = sign * _centre(target, frame_px)[axis]
        if others and all(place - sign * _centre(other, frame_px)[axis] > 0.11 for other in others):
            found.append(side)
    return found


def noun_phrase(rng, kind, colour: str, place: str = "", most: bool = False, plain: bool = False) -> str:
    """kind, colour ("" not named) and place ("" not named) -> "yellow diamond sign on the left"; plain: never "the lower one",
    which would only compare"""
    noun = kind.nouns[rng.integers(len(kind.nouns))]
    before = place and not plain and (most or rng.random() < 0.3)
    form = "{n}" if not place else MOST[place] if most else SAID[place][2] if before else SAID[place][rng.integers(2)]
    if form.startswith("{n}"):
        phrase = form.format(n=noun.format(c=colour))
    else:
        phrase = noun.format(c=form.format(n=colour))
    return " ".join(phrase.split())


def describe(rng, k: int, items, kinds, frame_px, furthest: float = 0.0) -> str | None:
    """A description that fits items[k] alone, or None. furthest: share of those that say "leftmost" and the like wherever that is so; training asks for more of them."""
    target = items[k]
    same_kind = [item for j, item in enumerate(items) if j != k and item.kind == target.kind]
    twins = [item for item in same_kind if item.colour == target.colour]
    options = []
    for colour, rivals, weight in ((target.colour, twins, 3), ("", same_kind, 2)):
        if not rivals:
            options += [(colour, "", False)] * weight
        options += [(colour, place, False) for place in places_of(target, rivals, frame_px)]
        options += [(colour, place, True) for place in extremes_of(target, rivals, frame_px)]
    if not options:
        return None
    if furthest and rng.random() < furthest:
        options = [option for option in options if option[2]] or options
    colour, place, most = options[rng.integers(len(options))]
    return noun_phrase(rng, kinds[target.kind], colour, place, most)


def word_prompt(rng, split: str, description: str, kind, value_type: str) -> str:
    """A prompt of at most MAX_WORDS words. In val and test half of them have a form never seen in training."""
    held_out = split != "train" and rng.random() < 0.5
    forms = TEMPLATES[split] if held_out else TEMPLATES["train"] + kind.asks * 2
    prompt = forms[rng.integers(len(forms))].format(d=description, v=value_noun(value_type))
    return prompt if len(prompt.split()) <= MAX_WORDS else f"read the {description}"


def ask_all(rng, split, items, kinds, frame_px, most: int, furthest: float = 0.0) -> list[Question]:
    """One question each about up to `most` items that can be told apart, in random order. furthest: see describe."""
    questions = []
    for k in rng.permutation(len(items)):
        description = describe(rng, k, items, kinds, frame_px, furthest)
        if description and len(questions) < most:
            prompt = word_prompt(rng, split, description, kinds[items[k].kind], items[k].value)
            questions.append(Question(prompt, items[k].text, int(k), items[k].box_px, "value", items[k].cap_px))
    return questions


def ask_absent(rng, split, items, kinds, frame_px) -> Question | None:
    """A question about what is not there: a kind, a colour of a kind, or a side of the frame on which none of that kind is."""
    present = sorted({item.kind for item in items})
    kind = kinds[present[rng.integers(len(present))]]
    same = [item for item in items if item.kind == kind.name]
    what = ("absent colour", "absent colour", "absent kind", "absent place")[rng.integers(4)]
    colour = place = ""
    if what == "absent kind":
        missing = [name for name in kinds if name not in present]
        kind = kinds[missing[rng.integers(len(missing))]]
        colour = kind.colours[rng.integers(len(kind.colours))] if rng.random() < 0.5 else ""
    elif what == "absent colour":
        there = {item.colour for item in same}
        free = [c for c in kind.colours if c not in there and not there.intersection(NEAR.get(c, ()))]
        if not free:
            return None
        colour = free[rng.integers(len(free))]
    else:
        free = [side for side, (axis, sign) in SIDES.items() if all(sign * (_centre(item, frame_px)[axis] - 0.5) < -0.06 for item in same)]
        if not free:
            return None
        place = free[rng.integers(len(free))]
    types = list(kind.values)
    prompt = word_prompt(rng, split, noun_phrase(rng, kind, colour, place, plain=True), kind, types[rng.integers(len(types))])
    return Question(prompt, "", None, None, what, 0.0)
