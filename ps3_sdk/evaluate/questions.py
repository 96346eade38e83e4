"""A JSONL file of questions: one object a line, frames beside it. docs/evaluation.md has the format."""
from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from ..errors import InputError
from .items import Item, ItemList, check_frame, checked_boxes, digest, digest_of_file, is_text
from .words import LETTERS, normalise

KEYS = {"frame": True, "prompt": True, "answer": True, "choices": False, "box_px": False, "domain": False}      # key -> needed
MAX_LINE_BYTES = 1 << 20


def read_questions(path) -> ItemList:
    """Every line checked before the first question is asked.

    Raises InputError that names the line: no JSON object, unknown or missing keys, a frame that is not there or lies outside the
    file's folder, or is no picture, an answer that is none of the choices, a box that is none
    or lies outside of its frame.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"[evaluate] {path} cannot be read: {error.strerror or error}. Pass a .jsonl file of questions.") from error
    folder, items, frames = path.resolve().parent, [], {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            items.append(_item(line, number, f"[evaluate] {path} line {number}", folder, frames))
    if not items:
        raise InputError(f"[evaluate] {path} holds no questions; a JSON object a line is needed, see docs/evaluation.md.")
    return ItemList(items, path.name, {"set": "questions", "file": path.name, "contents": digest(data, json.dumps(list(frames.values())))})


def _item(line: bytes, number: int, where: str, folder: Path, frames: dict[Path, str]) -> Item:
    if len(line) > MAX_LINE_BYTES:
        raise InputError(f"{where} has {len(line)} bytes; at most {MAX_LINE_BYTES} are read. Put frames beside the file, not into it.")
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}. Write one object a line, in UTF-8.") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where} is a {type(entry).__name__}; an object with {', '.join(key for key in KEYS if KEYS[key])} is needed.")
    missing, unknown = [key for key in KEYS if KEYS[key] and key not in entry], [str(key)[:40] for key in entry if key not in KEYS]
    if missing or unknown:
        raise InputError(f"{where} lacks {missing} and has unknown {unknown}; the keys are {', '.join(KEYS)}. Correct the names.")
    for key in ("frame", "prompt", "answer", "domain"):
        if not is_text("" if key == "domain" and entry.get(key) is None else entry[key]):
            raise InputError(f"{where}: {key} is {str(entry[key])[:80]!r}; a text is needed, of whole characters.")
    choices = entry.get("choices") or []
    if not isinstance(choices, list) or len(choices) == 1 or len(choices) > len(LETTERS) or not all(is_text(each) and each.strip() for each in choices):
        raise InputError(f"{where}: choices is {str(choices)[:80]}; 2 to {len(LETTERS)} texts are needed, or none.")
    if len({normalise(each) for each in choices}) < len(choices):
        raise InputError(f"{where}: two choices read the same; each must differ from the others in more than case.")
    if choices and normalise(entry["answer"]) not in map(normalise, choices):
        raise InputError(f"{where}: the answer {entry['answer'][:40]!r} is none of the choices; one of them is needed.")
    boxes = ()
    if entry.get("box_px") is not None:
        boxes = checked_boxes(entry["box_px"], f"{where}: box_px", "[x0, y0, x1, y1] in frame pixels, or a list of such boxes,")
        if not all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes):
            raise InputError(f"{where}: box_px is {entry['box_px']}; x0 < x1 and y0 < y1 are needed.")
    frame = inside(folder, entry["frame"], f"{where}: frame")
    check_frame(frame, boxes, where)
    if frame not in frames:
        frames[frame] = digest_of_file(frame)
    answerable = bool(entry["answer"].strip())
    return Item(f"line {number}", where, lambda: frame, entry["prompt"], entry["answer"], tuple(choices), boxes, entry.get("domain") or "",
                "value" if answerable else "not there")


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` of a folder or below it. Raises InputError for anything else: absolute, with .., through a link out of it, missing."""
    parts = PurePosixPath(name).parts
    if not name or "\0" in name or "\\" in name or not parts or name.startswith("/") or ".." in parts or ":" in parts[0]:
        raise InputError(f"{where} is {name[:80]!r}; a path inside the file's own folder is needed, with / between its parts. Put the frame there.")
    try:
        path = (folder / name).resolve()
        is_there = path.is_file()
    except (OSError, RuntimeError) as error:        # a name that is too long, links in a circle
        raise InputError(f"{where} {name[:80]!r} cannot be looked for: {getattr(error, 'strerror', None) or error}. Correct the line.") from error
    if not path.is_relative_to(folder):
        raise InputError(f"{where} {name[:80]!r} leads out of {folder} by a link; frames must lie inside it. Copy the frame there.")
    if not is_there:
        raise InputError(f"{where} {name[:80]!r} is not there; {path} is needed. Copy the frame there, or correct the line.")
    return path
