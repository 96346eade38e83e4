"""Answers as texts: normalised, compared, and found among lettered options."""
from __future__ import annotations

import re
from typing import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
REFUSALS = ("", "NOT VISIBLE")      # normalised answers that say that nothing can be said
_LETTER = re.compile(r"\(?([A-Z])(?:[).:](?=\s|$)|$)")


def normalise(text: str | None) -> str:
    """What is compared: the text without space around it, in upper case; None is ""."""
    return (text or "").strip().upper()


def is_refusal(text: str | None) -> bool:
    return normalise(text).rstrip(".") in REFUSALS


def characters_off(said: str | None, right: str | None) -> int:
    """Characters that must be put in, left out or replaced to make one of the other, both normalised."""
    said, right = normalise(said), normalise(right)
    row = list(range(len(right) + 1))
    for i, one in enumerate(said, 1):
        above, row = row, [i]
        for j, other in enumerate(right, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


def lettered(prompt: str, choices: Sequence[str]) -> str:
    """The prompt that a language model gets for a multiple-choice question."""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))
    return f"{prompt}\n{options}\nAnswer with the option's letter from the given choices directly."


def chosen(text: str | None, choices: Sequence[str]) -> int | None:
    """Index of the option that an answer names, None where that is not clear.

    In this order: the option's text itself; its letter alone or before `.`, `)` or `:`; the only option whose text stands in it. Where an option is itself
    a letter, as in C or A, a letter is what was asked for and comes first.
    """
    said = normalise(text)
    options, letter = [normalise(choice).rstrip(".") for choice in choices], _LETTER.match(said)
    by_letter = LETTERS.index(letter[1]) if letter and LETTERS.index(letter[1]) < len(choices) else None
    if by_letter is not None and set(LETTERS) & set(options):
        return by_letter
    if said.rstrip(".") in options:
        return options.index(said.rstrip("."))
    if by_letter is not None:
        return by_letter
    inside = [i for i, option in enumerate(options) if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", said)]
    return inside[0] if len(inside) == 1 else None
