"""Which split a font, a photograph or a word belongs to: decided by its name alone, so that adding one moves no other."""
from __future__ import annotations

import zlib

SPLITS = ("train", "val", "test")
SHARES = {"font": (70, 15), "photo": (70, 15), "word": (84, 8)}     # per cent of train and val; the rest is test


def split_of(what: str, name: str) -> str:
    """what: "font", "photo" or "word" -> "train", "val" or "test" """
    train, val = SHARES[what]
    place = zlib.crc32(f"{what} {name}".encode()) % 100
    return "train" if place < train else "val" if place < train + val else "test"


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"[training.scenes] got split {split!r}; one of {', '.join(SPLITS)} is needed. Pass split=\"train\" to train.")
    return split
