"""Words and values: what is written on things.

A word is 3 to 8 letters A-Z out of the machine's word list; it belongs to one split. Values are made from a generator. Codes hold
no O and no I, which no one can tell from 0 and 1, and no 0 where no other digit says that it is a code and no word.
"""
from __future__ import annotations

import re
from pathlib import Path

from .splits import split_of

WORD_LISTS = ("/usr/share/dict/american-english", "/usr/share/dict/british-english", "/usr/share/dict/words")
MIN_WORDS = 1000
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
SYLLABLES = ("BA", "CE", "DI", "FO", "GU", "HA", "JE", "KI", "LO", "MU", "NA", "PE", "RI", "SO", "TU", "VA", "WE", "ZI")


def load_words(split: str, avoid=(), fallback: bool = False) -> list[str]:
    """The words of a split, sorted. avoid: lower-case words never used (those of the prompts). fallback as in fonts.load_faces:
    made-up words where no list is installed."""
    path = next((Path(p) for p in WORD_LISTS if Path(p).is_file()), None)
    words = set()
    if path is not None:
        words = {line.upper() for line in path.read_text(encoding="utf-8").splitlines() if re.fullmatch(r"[A-Za-z][a-z]{2,7}", line)}
    elif fallback:
        words = {a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES}
    words -= {word.upper() for word in avoid}
    chosen = sorted(word for word in words if split_of("word", word) == split)
    if len(chosen) < (100 if fallback else MIN_WORDS):
        raise FileNotFoundError(f"[training.scenes words] {len(chosen)} words of split {split!r} in {' or '.join(WORD_LISTS)}; {MIN_WORDS} are needed. "
                                "Install wamerican or another Debian word list, or pass fallback=True to try the code.")
    return chosen


def _digits(rng, low, high):
    """a number of `low` to `high` digits, each count as likely, no leading 0"""
    n = int(rng.integers(low, high + 1))
    return str(rng.integers(0 if n == 1 else 10 ** (n - 1), 10 ** n))


def _letters(rng, n):
    return "".join(LETTERS[k] for k in rng.integers(0, len(LETTERS), n))


def _speed(rng):
    return str(5 * rng.integers(2, 27)) if rng.random() < 0.6 else str(rng.integers(10, 140))


def _exit(rng):
    return _digits(rng, 1, 3) + (_letters(rng, 1) if rng.random() < 0.5 else "")


def _plate(rng):
    form = rng.integers(4)
    if form == 0:
        return _letters(rng, 3) + "-" + _digits(rng, 3, 4)
    if form == 1:
        return _digits(rng, 1, 1) + _letters(rng, 3) + _digits(rng, 3, 3)
    if form == 2:
        return _letters(rng, 2) + _digits(rng, 2, 2) + _letters(rng, 3)
    return _letters(rng, 1) + "-" + _letters(rng, 2) + _digits(rng, 2, 4)


def _code(rng):
    n = int(rng.integers(3, 8))
    text = list("".join(_letters(rng, 1) if rng.random() < 0.5 else _digits(rng, 1, 1) for _ in range(n)))
    if n >= 5 and rng.random() < 0.4:
        text[int(rng.integers(1, n - 1))] = "-/."[rng.integers(3)]
    return "".join(text) if set(text) & set("123456789") else "".join(text).replace("0", "4")


def _time(rng):
    return f"{rng.integers(0, 24):02d}:{rng.integers(0, 60):02d}" if rng.random() < 0.8 else f"{rng.integers(0, 10)}:{rng.integers(0, 60):02d}"


def _percent(rng):
    return f"{rng.integers(1, 101)}%" if rng.random() < 0.8 else f"{rng.integers(0, 100)}.{rng.integers(0, 10)}%"


def _price(rng):
    return f"{rng.integers(0, 1000 if rng.random() < 0.3 else 60)}.{rng.integers(0, 100):02d}"


def _ratio(rng):
    whole = int(rng.choice([10, 12, 20, 25, 30, 40, 50, 60, 75, 90, 100, 120, 150, 200, 250]))
    return f"{rng.integers(0, whole + 1)}/{whole}"


def _temperature(rng):
    return f"{'-' if rng.random() < 0.2 else ''}{rng.integers(1, 40)}" + (f".{rng.integers(0, 10)}" if rng.random() < 0.6 else "")


def _date(rng):
    return f"{rng.integers(1, 32):02d}{'/.-'[rng.integers(3)]}{rng.integers(1, 13):02d}"


def _change(rng):
    return f"{'+-'[rng.integers(2)]}{rng.integers(0, 100)}" + ("." + str(rng.integers(0, 10)) if rng.random() < 0.5 else "") + ("%" if rng.random() < 0.5 else "")


# type -> (how it is called in a prompt, maker)
VALUES = {
    "speed": ("number", _speed), "number": ("number", lambda rng: _digits(rng, 1, 4)), "seconds": ("number", lambda rng: _digits(rng, 1, 2)), "score": ("number", lambda rng: _digits(rng, 3, 7)),
    "exit": ("number", _exit), "plate": ("text", _plate), "code": ("code", _code), "time": ("time", _time), "percent": ("percentage", _percent),
    "price": ("price", _price), "ratio": ("number", _ratio), "temperature": ("temperature", _temperature), "date": ("date", _date), "change": ("number", _change),
}


def make_value(rng, type_name: str, words: list[str]) -> str:
    """type_name: a key of VALUES or "word" -> 1 to 8 characters out of A-Z 0-9 . : % / - +"""
    return words[rng.integers(len(words))] if type_name == "word" else VALUES[type_name][1](rng)[:8]


def value_noun(type_name: str) -> str:
    return "word" if type_name == "word" else VALUES[type_name][0]
