"""What `Session()` of the embedded bundle costs: the first answer in a fresh process, warm ones, and memory, at 3840x2160 and the default budget.

    python benchmarks/default.py [--bundle PLAN] [--rounds 5] [--asks 20] [--threads 0]

Every round is a new process. first: from the end of `import ps3_sdk` to the first answer, opening, checking every hash and decoding the
frame's JPEG included. warm: one ask of a decoded frame, low-res pass and answer included; the questions of panel_4k.jsonl take turns. Of these,
looked_again says what share was looked at a second time, since its first answer was not sure; once and twice are asks that never and always are.
Memory is the kernel's VmHWM of the process, the frame included. Medians over rounds, least - most in brackets; one JSON object ends it.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

FRAMES = Path(__file__).parent.parent / "examples" / "frames"


def one_round(bundle: str | None, asks: int, threads: int) -> dict:
    """In a process of its own: seconds, milliseconds, megabytes."""
    start = time.perf_counter()
    import ps3_sdk
    imported = time.perf_counter()
    questions = [json.loads(line)["prompt"] for line in (FRAMES / "panel_4k.jsonl").read_text().splitlines()]
    with ps3_sdk.Session(bundle, threads=threads) as session:
        answer = session.ask(FRAMES / "panel_4k.jpg", questions[0])
        first = time.perf_counter()
        frame, stages, ms = answer.frame, {}, {"warm": [], "once": [], "twice": []}

        def ask(way: str, i: int, look_again: float | None):
            asked = time.perf_counter()
            answer = session.ask(frame, questions[i % len(questions)], look_again=look_again)
            ms[way].append((time.perf_counter() - asked) * 1e3)
            return answer

        again = [ask("warm", i, None).other is not None for i in range(asks)]
        with open("/proc/self/status") as lines:
            peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        for i in range(asks):
            answer = ask("once", i, 0)
            for stage, each in answer.timing.stages_ms.items():
                stages.setdefault(stage, []).append(each)
            ask("twice", i, 1)
        patches = sum(len(ids) for ids in answer.picked.values())
    return {"import_s": imported - start, "first_s": first - imported, **{f"{way}_ms": statistics.median(each) for way, each in ms.items()}, "looked_again": statistics.fmean(again), "peak_mb": peak, "patches": patches,
            "bundle_mb": session.bundle.size_bytes / 1e6, **{f"{stage}_ms": statistics.median(each) for stage, each in stages.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the embedded one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--asks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--one-round", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.rounds, options.asks) < 1:
        parser.error("--rounds and --asks must be at least 1")
    if options.one_round:
        print(json.dumps(one_round(options.bundle, options.asks, options.threads)))
        return
    from machine import machine       # here, because it imports ps3_sdk, which a round measures
    print(json.dumps(machine()))
    command = [sys.executable, __file__, "--one-round", "--asks", str(options.asks), "--threads", str(options.threads)]
    command += ["--bundle", options.bundle] if options.bundle else []
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(options.rounds)]
    found = {key: [round(value, 3) for value in (statistics.median(run[key] for run in runs), min(run[key] for run in runs), max(run[key] for run in runs))] for key in runs[0]}
    for key, (middle, least, most) in found.items():
        print(f"{key:<18}{middle:>10.2f}   ({least:.2f} - {most:.2f})")
    print(json.dumps({"machine": machine(), "rounds": options.rounds, "asks": options.asks, "threads": options.threads, "median_least_most": found}))


if __name__ == "__main__":
    main()
