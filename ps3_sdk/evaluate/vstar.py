"""A folder in V*Bench's layout: per question a picture and a JSON file of the same name; subfolders are its domains. Other JSON files, as results have, are left alone.

JSON: {"target_object": [..], "bbox": [[x, y, w, h], ..] frame pixels, "question": "..", "options": ["..", ..]}, the FIRST option is correct.
Source: V*Bench, arXiv 2312.14135; 191 questions in direct_attributes and relative_position.
"""
from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from .items import Item, ItemList, check_frame, checked_boxes, digest, digest_of_file, is_text
from .words import LETTERS, normalise

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_vstar(folder, seed: int = 0) -> ItemList:
    """Every JSON file of the folder and its subfolders, in the order of their names; options are shuffled by `seed` and the file's name.

    Raises InputError that names the file: no JSON, no question, fewer than two options, no picture beside it, a box outside of it; a folder without any.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"[evaluate] {folder} is no folder; V*Bench's layout is a folder of pictures with JSON files of the same names.")
    if seed < 0:
        raise InputError(f"[evaluate] seed is {seed}; a whole number of at least 0 is needed.")
    items, contents = [], []
    for path in sorted(path for path in folder.rglob("*.json") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if not is_text(name):
            raise InputError(f"[evaluate] the name of {os.fsencode(path)!r} is not UTF-8. Rename it.")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"[evaluate] {path} cannot be read: {error.strerror or error}. Make it readable, or take it away.") from error
        if (item := _item(path, data, folder, seed)) is not None:
            items.append(item)
            contents += [name, data, digest_of_file(item.frame())]
    if not items:
        raise InputError(f"[evaluate] {folder} holds no .json file; V*Bench's layout is a picture and a JSON file of the same name per question.")
    return ItemList(items, folder.resolve().name, {"set": "vstar", "folder": folder.resolve().name, "seed": seed, "contents": digest(*contents)})


def shuffled(options: list[str], seed: int, name: str) -> tuple[str, ...]:
    """The options in an order that depends on seed and name alone."""
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(options))
    return tuple(options[i] for i in order)


def _item(path: Path, data: bytes, folder: Path, seed: int) -> Item | None:
    """None: this JSON has nothing of a question, and no picture beside it or is a summary of results."""
    name, where = path.relative_to(folder).as_posix(), f"[evaluate] {path}"
    try:
        entry = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}. Download it again.") from error
    picture = next((path.with_suffix(suffix) for suffix in (*PICTURES, *map(str.upper, PICTURES)) if path.with_suffix(suffix).is_file()), None)
    if isinstance(entry, dict) and not {"question", "options"} & set(entry) and (picture is None or "settings_hash" in entry):
        return None
    options = entry.get("options") if isinstance(entry, dict) else None
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS) or not all(is_text(each) and each.strip() for each in options) \
            or len({normalise(each) for each in options}) < len(options):
        raise InputError(f"{where}: options is {str(options)[:80]}; at least two different texts are needed, the correct one first.")
    if not is_text(entry.get("question")) or not entry["question"].strip():
        raise InputError(f"{where}: question is {str(entry.get('question'))[:80]!r}; a text is needed.")
    boxes = checked_boxes(entry.get("bbox") or [], f"{where}: bbox", "[[x, y, w, h], ..] in frame pixels")
    if not all(w > 0 and h > 0 for _, _, w, h in boxes):
        raise InputError(f"{where}: bbox is {str(entry['bbox'])[:80]}; widths and heights above 0 are needed.")
    if picture is None:
        raise InputError(f"{where} has no picture beside it; {path.stem} with {', '.join(PICTURES)} is needed. Download it again.")
    boxes = tuple((x, y, x + w, y + h) for x, y, w, h in boxes)
    check_frame(picture, boxes, where)
    return Item(name, where, lambda: picture, entry["question"], options[0], shuffled(options, seed, name), boxes, "" if path.parent == folder else path.parent.relative_to(folder).as_posix())
