"""Records of single questions summed up. Every share stands beside its number of questions and its Wilson 95 % interval."""
from __future__ import annotations

import statistics
from typing import Sequence

from .statistics import share_of
from .words import characters_off

CONFIDENT = 0.8
NEARLY = 2              # characters that an answer is off at most
CONFIDENCES = {"below 0.2": (0, 0.2), "0.2-0.5": (0.2, 0.5), "0.5-0.8": (0.5, CONFIDENT), "0.8 and more": (CONFIDENT, 1.01)}
SEEN = {"not at all": (0, 0.01), "in part": (0.01, 0.99), "whole": (0.99, 1.01)}      # share of the target's box in the patches that were looked at
CAP_BANDS_PX = {"10-13": (0, 14), "14-18": (14, 19), "19-23": (19, 24), "24-28": (24, 1e9)}       # [low, high) of capitals at 3840x2160
# of the patches that a budget picks, what is told of it in the table; the second is of models that look around the best place alone
RECALLS = {"recall": "", "recall_anywhere": "picked wherever the prompt's map is high", "recall_bottom_up": "picked by saliency instead, whatever is asked"}
MEASURES = {"exact_match": "right", "exact_match_low_res_only": "right_low_res_only"}


def summarise(records: Sequence[dict]) -> dict:
    """Figures over all records, by domain, and by height of the text; what cannot be answered is told apart from what can. right and refused are None where a
    bundle answers nothing in words: that counts neither way."""
    asked = [record for record in records if record["kind"] == "value"]
    domains = sorted({record["domain"] for record in asked} - {""})
    capped = [record for record in asked if record["cap_px"] is not None]
    return {
        **measures(asked),
        "by_domain": {domain: measures([record for record in asked if record["domain"] == domain]) for domain in domains},
        "by_cap_px": {name: measures([record for record in capped if low <= record["cap_px"] < high]) for name, (low, high) in CAP_BANDS_PX.items()} if capped else {},
        "by_confidence": {name: _told("right", [record["right"] for record in asked if record["confidence"] is not None and low <= record["confidence"] < high])
                          for name, (low, high) in CONFIDENCES.items()},
        "by_seen": {name: {key: value for which in ("right", "refused") for key, value in _told(which, [record[which] for record in asked if _within(record, low, high)]).items()}
                    for name, (low, high) in SEEN.items()},
        "unanswerable": unanswerable([record for record in records if record["kind"] != "value"]),
        "seconds_per_question": seconds(records),
        "patches_per_question": round(statistics.fmean(record["patches"] for record in asked), 1) if asked else None,
    }


def measures(records: Sequence[dict]) -> dict:
    """Figures of questions that have an answer. exact_match counts free answers, choice_accuracy multiple choice (there only)."""
    free, choice = [r for r in records if not r["choices"] and r["right"] is not None], [r for r in records if r["choices"]]
    found = {"n": len(records)}
    for name, key in MEASURES.items():
        found.update(_told(name, [record[key] for record in free]))
        if choice:
            found.update(_told(name.replace("exact_match", "choice_accuracy"), [record[key] for record in choice]))
    found.update(_told("refused", [record["refused"] for record in free]))
    found.update(_told("looked_again", [record["looked_again"] for record in records]))
    off = [characters_off(record["said"], record["answer"]) for record in free]
    found.update(_told("nearly_right", [not record["right"] and not record["refused"] and n <= NEARLY and n < len(record["answer"]) for n, record in zip(off, free)]))
    sure = [record for record in records if record["confidence"] is not None]
    found.update(_told("wrong_but_confident", [record["confidence"] > CONFIDENT and not record["right"] and not record["refused"] for record in sure]))
    for name in RECALLS:
        recalls = [record[name] for record in records if record.get(name) is not None]
        shares = {budget: share_of(recall[budget] for recall in recalls if budget in recall) for budget in (recalls[0] if recalls else ())}
        found[f"selection_{name}"] = {budget: share["share"] for budget, share in shares.items()}
        found[f"selection_{name}_interval"] = {budget: share["interval"] for budget, share in shares.items()}
        found[f"selection_{name}_n"] = len(recalls)
    return found


def unanswerable(records: Sequence[dict]) -> dict:
    """Questions that the frame cannot answer: how often a value was given all the same, and with confidence above CONFIDENT."""
    def figures(some):
        sure = [record for record in some if record["confidence"] is not None]
        return {"n": len(some), **_told("answered", [not record["refused"] for record in some if record["refused"] is not None]),
                **_told("answered_confidently", [not record["refused"] and record["confidence"] > CONFIDENT for record in sure])}
    kinds = sorted({record["kind"] for record in records})
    return {**figures(records), "confident_above": CONFIDENT, "by_kind": {kind: figures([r for r in records if r["kind"] == kind]) for kind in kinds}}


def seconds(records: Sequence[dict]) -> dict:
    """Of an ask at the budget, frame in memory: median and 95th percentile of the warm ones, and the first one after opening."""
    warm = sorted(record["seconds"] for record in records if not record["first"])
    first = [record["seconds"] for record in records if record["first"]]
    return {"median": statistics.median(warm) if warm else None, "p95": warm[min(len(warm) - 1, int(0.95 * len(warm)))] if warm else None,
            "n": len(warm), "first": first[0] if first else None}


def _within(record: dict, low: float, high: float) -> bool:
    return record.get("seen") is not None and low <= record["seen"] < high


def _told(name: str, values: Sequence[bool | None]) -> dict:
    found = share_of(value for value in values if value is not None)
    return {name: found["share"], f"{name}_interval": found["interval"], f"{name}_n": found["n"]}


def measured(summary: dict) -> list[str]:
    """What there were questions for: exact_match of free answers, choice_accuracy, or both; the first where there were none."""
    return [name for name in ("exact_match", "choice_accuracy") if summary.get(f"{name}_n")] or ["exact_match"]


def table(summary: dict) -> str:
    """What a person reads first."""
    free, names = summary["exact_match_n"] > 0, measured(summary)
    budgets = list(summary["selection_recall"])
    lines = [f"{summary['set']}: {summary['n']} questions, {summary['bundle']['name']} ({summary['bundle']['hash']}), {summary['machine']}"]
    rows = [("all", summary), *summary["by_domain"].items(), *((f"{band} px", row) for band, row in summary["by_cap_px"].items())]
    for name in names:
        lines.append(f"{'':<12}{'n':>6}{name.replace('_', ' '):>26}{'low-res only':>24}" + "".join(f"{'recall ' + budget:>13}" for budget in budgets))
        for title, row in rows:
            if n := row.get(f"{name}_n") or not summary[f"{name}_n"] and row["n"]:      # where nothing is answered, what was looked at is told
                lines.append(f"{title[:11]:<12}{n:>6}{_percent(row, name):>26}{_percent(row, name + '_low_res_only'):>24}"
                             + "".join(f"{_plain(row['selection_recall'].get(budget)):>13}" for budget in budgets))
    if budgets:
        lines += [f"{told}: " + ", ".join(f"recall {budget} {_plain(share)}" for budget, share in summary[f"selection_{name}"].items())
                  for name, told in RECALLS.items() if told and summary[f"selection_{name}"]]
    if free:
        lines.append(f"not right: {_percent(summary, 'nearly_right')} at most {NEARLY} characters off, {_percent(summary, 'refused')} refused")
    if summary["looked_again"]:
        lines.append(f"looked at again: {_percent(summary, 'looked_again')}; {summary['patches_per_question']} patches a question")
    bands = [f"{name}: {100 * row['right']:.0f} % of {row['right_n']}" for name, row in summary["by_confidence"].items() if row["right_n"]]
    if bands:
        lines.append(f"right by confidence: {', '.join(bands)}")
    seen = [f"{name}: {100 * row['right']:.0f} % of {row['right_n']}, {100 * row['refused']:.0f} % not visible" for name, row in summary["by_seen"].items() if row["right_n"]]
    if seen:
        lines.append(f"right by how much of the target was looked at: {'; '.join(seen)}")
    absent, spent = summary["unanswerable"], summary["seconds_per_question"]
    if absent["n"]:
        lines.append(f"not there: {absent['n']} questions, a value given to {_percent(absent, 'answered')}, with confidence above {CONFIDENT} to {_percent(absent, 'answered_confidently')}")
    if spent["median"] is not None:
        lines.append(f"seconds per question: median {spent['median']:.3f}, 95 % below {spent['p95']:.3f}" + (f", first {spent['first']:.3f}" if spent["first"] is not None else ""))
    return "\n".join(lines + [f"note: {note}" for note in summary["notes"]])


def _plain(share) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _percent(row: dict, name: str) -> str:
    if row.get(name) is None:
        return "-"
    low, high = row[f"{name}_interval"]
    return f"{100 * row[name]:.1f} % ({100 * low:.1f} - {100 * high:.1f})"
