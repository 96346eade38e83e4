"""A folder in V*Bench's layout: per question a picture and a JSON file of the same name; subfolders are its domains.

JSON: {"target_object": [..], "bbox": [[x, y, w, h], ..] frame pixels, "question": "..", "options": ["..", ..]}, the FIRST option is correct.
Source: V*Bench, arXiv 2312.14135; 191 questions in direct_attributes and relative_position.
"""
from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from .items import Item, ItemList, check_frame, checked_boxes, digest, digest_of_file
from .words import LETTERS, normalise

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_vstar(folder, seed: int = 0) -> ItemList:
    """Every JSON file of the folder and its subfolders, in the order of their names; options are shuffled by `seed` and the file's name.

    Raises InputError that names the file: no JSON, no question, fewer than two options, no picture beside it, a box outside of it; a folder without any.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"[evaluate] {folder} is no folder; V*Bench's layout is a folder of pictures with JSON files of the same names.")
    items, contents = [], []
    for path in sorted(folder.rglob("*.json")):
        data = path.read_bytes()
        items.append(_item(path, data, folder, seed))
        contents += [path.relative_to(folder).as_posix(), data, digest_of_file(items[-1].frame())]
    if not items:
        raise InputError(f"[evaluate] {folder} holds no .json file; V*Bench's layout is a picture and a JSON file of the same name per question.")
    return ItemList(items, folder.name, {"set": "vstar", "folder": folder.resolve().name, "seed": seed, "contents": digest(*contents)})


def shuffled(options: list[str], seed: int, name: str) -> tuple[str, ...]:
    """The options in an order that depends on seed and name alone."""
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(options))
    return tuple(options[i] for i in order)


def _item(path: Path, data: bytes, folder: Path, seed: int) -> Item:
    name, where = path.relative_to(folder).as_posix(), f"[evaluate] {path}"
    try:
        entry = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}. Download it again.") from error
    options = entry.get("options") if isinstance(entry, dict) else None
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS) or not all(isinstance(each, str) and each.strip() for each in options) \
            or len({normalise(each) for each in options}) < len(options):
        raise InputError(f"{where}: options is {str(options)[:80]}; at least two different texts are needed, the correct one first.")
    if not isinstance(entry.get("question"), str) or not entry["question"].strip():
        raise InputError(f"{where}: question is {str(entry.get('question'))[:80]!r}; a text is needed.")
    boxes = checked_boxes(entry.get("bbox") or [], f"{where}: bbox", "[[x, y, w, h], ..] in frame pixels")
    if not all(w > 0 and h > 0 for _, _, w, h in boxes):
        raise InputError(f"{where}: bbox is {str(entry['bbox'])[:80]}; widths and heights above 0 are needed.")
    picture = next((path.with_suffix(suffix) for suffix in (*PICTURES, *map(str.upper, PICTURES)) if path.with_suffix(suffix).is_file()), None)
    if picture is None:
        raise InputError(f"{where} has no picture beside it; {path.stem} with {', '.join(PICTURES)} is needed. Download it again.")
    boxes = tuple((x, y, x + w, y + h) for x, y, w, h in boxes)
    check_frame(picture, boxes, where)
    return Item(name, where, lambda: picture, entry["question"], options[0], shuffled(options, seed, name), boxes, path.parent.name if path.parent != folder else "all")
