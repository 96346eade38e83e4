"""The seed's figures at our size: how accuracy grows with resolution and with patches, and what picking them is worth.

    python benchmarks/resolution.py [--bundle PLAN] [--questions 25] [--only NAME ..] [-o docs/results] [--work FOLDER]

Questions are held-out scenes (`ps3 eval scenes`), --questions per domain. Writes resolution.json and resolution.png. Every answer is
kept in --work as it comes and an interrupted run continues there. Figures (--only names them):
  all        all patches of all scales up to a resolution are encoded; where the language model's context cannot hold their rows, those of
             the most probable patches are read ("rows" says how many)
  constant   one number of patches, of scales up to a resolution
  patches    number of patches at the full resolution, picked top-down, bottom-up (the prior's map) and at random. A bundle that looks around the most
             probable place spends more than its default top-down as an ask does, in one place after another until it finds what is asked
  tiles      AnyRes and S2 over the same trunk; ways_to_look.py says what is done. Their number of patches are among those of `patches`
  reader     the model shown every patch of the target's places up to a scale: the lowest scale from which on it is right is the question's
             minimum recognisable resolution. The text's box is given, nothing is selected
Beside each point: patches encoded, rows the language model read, and seconds from the frame in memory to the text, low-res pass included.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from machine import machine
from ps3_sdk import Frame, InputError, Session
from ps3_sdk.atomic import replaced
from ps3_sdk.evaluate import SceneItems
from ps3_sdk.evaluate.items import digest
from ps3_sdk.evaluate.plots import save
from ps3_sdk.evaluate.progress import Bar
from ps3_sdk.evaluate.recall import coverage
from ps3_sdk.evaluate.results import Results
from ps3_sdk.evaluate.run import bundle_of, versions
from ps3_sdk.evaluate.scene_items import DOMAINS
from ps3_sdk.evaluate.statistics import share_of
from ps3_sdk.evaluate.summary import CAP_BANDS_PX
from ps3_sdk.evaluate.words import normalise

import ways_to_look as ways

FIGURES = ("all", "constant", "patches", "tiles", "reader")
TILES = ((1, 2), (2, 2), (2, 3), (3, 4))
PATCHES = (128, 256, 512, 1024, 1458, 2048, 2916, 4374, 8748, 14580)       # 729 a tile: 2, 4, 6 and 12 of AnyRes are among these, 4 and 20 of S2
FORMAT = 3


def points(session, options) -> list[dict]:
    """Every point of the figures: figure, series, resolution_px, and what its series needs."""
    scales_px = session.geometry["scales_px"]
    full, found = scales_px[-1], []
    for scales, px in enumerate(scales_px):
        found += [dict(figure="all", series="all patches", resolution_px=px, scales=scales), dict(figure="constant", series=f"{options.constant} patches", resolution_px=px, scales=scales),
                  dict(figure="reader", series="reader", resolution_px=px)]
    for number in options.patches:
        found += [dict(figure="patches", series=series, resolution_px=full, number=number) for series in ("top-down", "bottom-up", "random")]
    found += [dict(figure="tiles", series="AnyRes", resolution_px=scales_px[0], tiles=tiles) for tiles in TILES]
    found += [dict(figure="tiles", series="S2", resolution_px=px, scales=scales) for scales, px in enumerate(scales_px) if 0 < scales <= options.s2_scales]
    return [point for point in found if point["figure"] in options.only]


def name_of(point: dict) -> str:
    return " ".join(str(value) for value in point.values())


def see(session, look, item, pixels, point, options) -> ways.Seen:
    """Look in the way of a point."""
    figure, series, scales = point["figure"], point["series"], point.get("scales")
    if series == "AnyRes":
        return ways.any_res(session, look, pixels, *point["tiles"])
    if series == "S2":
        return ways.s2(session, look, scales)
    if figure == "reader":
        return ways.encoded(session, look, *ways.window(session, look, item.boxes_px[0], point["resolution_px"]))
    if scales == 0:
        return ways.Seen([], 0)
    room = ways.room_for(session, look, item.prompt, options.max_tokens)
    budget = session.budget(looks="all", scales=scales) if figure == "all" else session.budget(**budget_of(point, options))
    prob, asked, read = ways.top_down(session, look, item.prompt)
    if series == "random":
        prob = ways.at_random(session, look, int(digest(item.key, str(options.seed)), 16) % 2**32)
    elif series == "bottom-up":
        prob = ways.bottom_up(session, look)
    return ways.closely(session, look, prob, budget, read, room, told=asked)


def budget_of(point, options) -> dict:
    return {"tokens": point.get("number", options.constant), "scales": point.get("scales")}


def in_glances(session, point, options) -> bool:
    """Whether an ask of this budget looks in one place after another, each answered by itself."""
    asked = point["figure"] == "constant" and point["scales"] or point["series"] == "top-down"
    return bool(asked) and len(session.glances(session.budget(**budget_of(point, options)), anywhere=False)) > 1


def measure(session, frame, item, pixels, point, options) -> dict:
    start = time.perf_counter()
    look = session.look(frame)
    if in_glances(session, point, options):
        said, rows, seen = ways.asked(look, item.prompt, **budget_of(point, options), max_tokens=options.max_tokens)
    else:
        seen = see(session, look, item, pixels, point, options)
        said, rows = ways.say(session, look, item.prompt, seen, options.max_tokens)
    seconds = time.perf_counter() - start
    recall = None
    if seen.picked is not None and point["resolution_px"] == session.base_px:
        recall = coverage(item.boxes_px[0], seen.picked[session.base_px], session.base_px // session.patch_px, (frame.height, frame.width))
    return {"said": said, "right": normalise(said) == normalise(item.answer), "patches": seen.patches, "rows": rows, "recall": recall, "seconds": round(seconds, 5)}


def gather_records(session, items, wanted, options) -> list[dict]:
    settings = {"format": FORMAT, "items": items.settings, "bundle": bundle_of(session), "constant": options.constant, "max_tokens": options.max_tokens, "threads": options.threads,
                "versions": versions(), "cpu": machine()["cpu"], "cores": machine()["cores"]}
    found, total, progress = [], len(items) * len(wanted), Bar(sys.stderr)
    with Results(options.work, settings) as results:
        for item in items:
            pixels = item.frame()
            frame = Frame.of(pixels)
            for point in wanted:
                key = f"{item.key} | {name_of(point)}"
                known = results.records.get(key)
                if known is None or known["prompt"] != item.prompt:
                    known = {"key": key, "prompt": item.prompt, "answer": item.answer, "domain": item.domain, "cap_px": item.cap_px, **measure(session, frame, item, pixels, point, options)}
                    results.add(known)
                found.append({**known, "question": item.key, "point": name_of(point)})
                progress(len(found), total, f"{point['figure']} {point['series']}")
    return found


def summed(point: dict, records: list[dict]) -> dict:
    told = share_of(record["right"] for record in records)
    recalls = [record["recall"] for record in records if record["recall"] is not None]
    return {**point, "accuracy": told["share"], "interval": told["interval"], "n": told["n"], "patches": round(statistics.fmean(r["patches"] for r in records), 1),
            "rows": round(statistics.fmean(r["rows"] for r in records), 1), "seconds": statistics.median(r["seconds"] for r in records),
            "recall": round(statistics.fmean(recalls), 6) if recalls else None}


def minimum_resolution(records: list[dict], scales_px) -> dict:
    """Per question the lowest scale from which on the reader was right at every scale; how many questions have it, by height of their text."""
    by_question: dict[str, dict] = {}
    for record in records:
        px = next(px for px in scales_px if record["point"] == f"reader reader {px}")
        by_question.setdefault(record["question"], {"cap_px": record["cap_px"], "right": {}})["right"][px] = record["right"]
    questions = {}
    for key, question in by_question.items():
        lowest = None
        for px in reversed(scales_px):
            if not question["right"][px]:
                break
            lowest = px
        questions[key] = {"cap_px": question["cap_px"], "minimum_px": lowest}
    count = lambda some: {**{str(px): sum(q["minimum_px"] == px for q in some) for px in scales_px}, "none": sum(q["minimum_px"] is None for q in some)}
    bands = {name: count([q for q in questions.values() if low <= q["cap_px"] < high]) for name, (low, high) in CAP_BANDS_PX.items()}
    return {"questions": questions, "all": count(questions.values()), "by_cap_px": bands}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="engine.plan with a language model (default: the embedded one)")
    parser.add_argument("--questions", type=int, default=25, help="per domain")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--patches", nargs="+", type=int, default=list(PATCHES))
    parser.add_argument("--constant", type=int, default=1024, help="patches of the figure `constant`")
    parser.add_argument("--s2-scales", type=int, default=2, help="high-res scales up to which S2 goes; 3 means 100 tiles more a question")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--fallback", action="store_true", help="without fonts and word lists, to try the command")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent.parent / "docs" / "results")
    parser.add_argument("--work", help="folder of single answers (default: OUTPUT/work)")
    options = parser.parse_args()
    options.work = options.work or options.output / "work"
    items = SceneItems(options.questions, unanswerable=0, domains=options.domains, seed=options.seed, fallback=options.fallback)
    with Session(options.bundle, threads=options.threads) as session:
        if session.language is None:
            raise InputError("[resolution] this bundle has no language model, so nothing reads what was seen. Pass --bundle with one that answers in words.")
        wanted = points(session, options)
        records = gather_records(session, items, wanted, options)
        scales_px, bundle, notes = session.geometry["scales_px"], bundle_of(session), list(session.notes)
    result = {"benchmark": "resolution", "bundle": bundle, "notes": notes + list(items.notes), "items": items.settings, "machine": machine(), "versions": versions(),
              "points": [summed(point, [r for r in records if r["point"] == name_of(point)]) for point in wanted]}
    if "reader" in options.only:
        result["minimum_resolution"] = minimum_resolution([r for r in records if r["point"].startswith("reader ")], scales_px)
    options.output.mkdir(parents=True, exist_ok=True)
    with replaced(options.output / "resolution.json") as beside:
        Path(beside).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for point in result["points"]:
        print(f"{name_of({k: point[k] for k in point if k in ('figure', 'series', 'resolution_px', 'number', 'tiles')}):34} accuracy {point['accuracy']:.3f} "
              f"({point['interval'][0]:.3f} - {point['interval'][1]:.3f}), n {point['n']}, {point['patches']:8.0f} patches, {point['rows']:6.0f} rows, {point['seconds']:7.3f} s")
    from resolution_plots import draw       # last: figures are kept where matplotlib is missing
    save(draw(result), options.output / "resolution.png")
    print(f"{options.output}/resolution.json, resolution.png")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"resolution.py: {error}")
