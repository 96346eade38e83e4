"""Ask every question of a set, keep each result, sum them up."""
from __future__ import annotations

import platform
import time
from typing import Callable, Iterable

from ..answer import Answer
from ..decode import Decoder
from ..errors import InputError
from ..frame import Frame
from ..measure import machine, version_of
from ..session import Session
from ..verify import ran_on
from .items import Item, digest
from .recall import selection_recall, share_seen
from .results import Results
from .summary import summarise
from .words import chosen, is_refusal, lettered, normalise

FORMAT = 6              # of the records; part of the settings that they are kept by
ENOUGH = 10             # questions that could not be asked, where none could: the rest is not tried
BUDGETS = (256, 512, 1024, 2048)


def evaluate(session: Session, items: Iterable[Item], *, tokens: int | None = None, scales: int | None = None, selection: str | None = None,
             look_again: float | None = None, max_tokens: int = 32, folder=None, open_seconds: float | None = None, progress: Callable[[int, int, str], None] | None = None) -> dict:
    """Ask each item twice, at the budget and with the low-res pass alone, each time from the frame on.

    Args:
        items: SceneItems, read_questions(..), read_vstar(..), or an ItemList of your own.
        tokens, scales: budget, selection, look_again: as in Session.ask | max_tokens: of an answer in words.
        folder: results are kept there, one a line, and a second call continues; None: in memory alone.
        open_seconds: how long the session took to open, for the record | progress: called with (done, total, text).
    Returns:
        the summary, plain dicts; docs/evaluation.md names every key.
    What cannot be asked, as a damaged frame, is told in `failed` and asked again by the next call.
    Raises:
        InputError that names the item: two of one key, or one that cannot be asked where none can.
    """
    settings = {"format": FORMAT, "items": items.settings, "bundle": bundle_of(session), "tokens": tokens, "scales": scales, "selection": selection, "look_again": look_again, "max_tokens": max_tokens,
                "threads": session.threads, "ran_on": ran_on(session), "language_model": language_model_of(session), "versions": versions(), "machine": machine()}
    seen, failed, first = set(), [], True
    with Results(folder, settings) as results:
        for item in items:
            if item.key in seen:
                raise InputError(f"{item.where}: the key {item.key!r} is of an item before it, too. Give each item a key of its own.")
            seen.add(item.key)
            known = results.records.get(item.key)
            is_kept = known is not None and known["prompt"] == item.prompt
            if is_kept:
                continue
            try:
                record = _record(session, item, tokens, scales, selection, look_again, max_tokens, first)
            except InputError as error:
                results.records.pop(item.key, None)
                failed.append({"key": item.key, "why": str(error)})
                if not results.records and len(failed) in (ENOUGH, len(items)):     # so it is with all of them, or seems to be
                    raise
            else:
                results.add(record)
                first = False
            if progress:
                progress(len(seen), max(len(items), len(seen)), item.domain)
        if progress and seen and is_kept:
            progress(len(seen), max(len(items), len(seen)), "")
        records = [record for key, record in results.records.items() if key in seen]
    summary = {"set": items.name, "settings_hash": results.hash, **summarise(records), **{name: value for name, value in settings.items() if name != "format"}}
    summary["seconds_per_question"]["open"] = None if open_seconds is None else round(open_seconds, 4)
    summary["failed"] = failed
    summary["notes"] = _notes(session, items, records) + ([f"{len(failed)} of {len(seen)} questions could not be asked and count nowhere; the first: {failed[0]['why']}"] if failed else [])
    return summary


def bundle_of(session: Session) -> dict:
    """Name and hash of a bundle; the manifest holds the hash of every other member."""
    model = session.bundle.manifest["model"]
    return {"name": model["name"], "weights": model["weights"], "hash": digest(session.bundle.member("manifest.json"))}


def language_model_of(session: Session) -> str | None:
    """The type of a language model of the user's own; None where the bundle's answers, or none does."""
    return None if session.language is None or isinstance(session.language.decoder, Decoder) else type(session.language.decoder).__name__


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version_of(name) for name in ("ps3_sdk", "numpy", "pillow", "onnxruntime")}}


def ask(session: Session, frame: Frame, item: Item, **budget) -> tuple[Answer, str]:
    """The answer, and what counts as said: its text, or the choice that it names."""
    if session.language is None:
        budget.pop("max_tokens", None)
        if not item.prompt.strip():             # there is nothing to look for
            budget.pop("selection", None)
    if not item.choices:
        answer = session.ask(frame, item.prompt, **budget)
        return answer, answer.text or ""
    if session.language is None:
        answer = session.ask(frame, item.prompt, choices=list(item.choices), **budget)
        return answer, answer.text
    answer = session.ask(frame, lettered(item.prompt, item.choices), **budget)
    index = chosen(answer.text, item.choices)
    return answer, answer.text if index is None else item.choices[index]


def _record(session: Session, item: Item, tokens, scales, selection, look_again, max_tokens: int, first: bool) -> dict:
    try:
        frame = Frame.of(item.frame())
        start = time.perf_counter()
        answer, said = ask(session, frame, item, tokens=tokens, scales=scales, selection=selection, look_again=look_again, max_tokens=max_tokens)
        seconds = time.perf_counter() - start
        low, said_low = ask(session, frame, item, tokens=0, max_tokens=max_tokens)
    except InputError as error:
        raise InputError(f"{item.where}: {error}") from error
    right = lambda text: normalise(text) == normalise(item.answer) if item.answer.strip() else is_refusal(text)
    judged = lambda value: value if session.language is not None or item.choices else None         # an encoder says nothing in words, neither right nor wrong
    confidence, part = answer.confidence, answer.part_px or (0, 0, *answer.frame_size[::-1])
    boxes = [(x0 - part[0], y0 - part[1], x1 - part[0], y1 - part[1]) for x0, y0, x1, y1 in item.boxes_px]      # in what picked is of
    looked = [answer] if answer.other is None else [answer, answer.other]
    return {
        "key": item.key, "domain": item.domain, "kind": item.kind, "prompt": item.prompt, "answer": item.answer, "choices": list(item.choices),
        "said": said, "text": answer.text, "right": judged(right(said)), "said_low_res_only": said_low, "right_low_res_only": judged(right(said_low)), "refused": judged(is_refusal(said)),
        "confidence": None if confidence is None else round(float(confidence), 6), "cap_px": item.cap_px, "patches": sum(len(ids) for each in looked for ids in each.picked.values()),
        "looked_again": len(looked) > 1, "seen": share_seen(session, answer.picked, boxes, (part[3] - part[1], part[2] - part[0]), scales) if boxes else None,
        **_recalls(session, frame, item, next(each for each in looked if each.part_px is None), scales, selection),
        "seconds": round(seconds, 5), "first": first}


def _recalls(session: Session, frame: Frame, item: Item, answer: Answer, scales: int | None, selection: str | None) -> dict[str, dict[str, float] | None]:
    """Share of the target in what is picked per budget: as asked, by the same map wherever it is high, by saliency. None without boxes."""
    if not item.boxes_px:
        return {"recall": None, "recall_anywhere": None, "recall_bottom_up": None}
    by = lambda prob, anywhere=True: selection_recall(session, prob, item.boxes_px, answer.frame_size, BUDGETS, scales, anywhere)
    around = selection is None and session.aimed(answer.prob, anywhere=False) is not answer.prob
    return {"recall": by(answer.prob, not around), "recall_anywhere": by(answer.prob) if around else None,
            "recall_bottom_up": by(session.score(session.look(frame), session.prior()))}


def _notes(session: Session, items, records: list[dict]) -> list[str]:
    notes = list(session.notes) + list(getattr(items, "notes", ()))
    if session.language is None and any(not record["choices"] for record in records):
        notes.append("this bundle has no language model: it answers nothing in words, only choices and selection are measured")
    if any(record["confidence"] is None for record in records):
        notes.append("answers of this bundle carry no confidence: how sure it was of what is not there was not measured")
    return notes
