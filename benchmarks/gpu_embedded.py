"""Whole asks of the embedded bundle at 3840x2160, warm: on a GPU with the frame in host memory and in the GPU's, and on the processor.

    python benchmarks/gpu_embedded.py [--bundle PLAN] [--asks 20]

Prints median, least and most milliseconds, and the median of every stage; the question is one of panel_4k.jsonl and the frame its photograph. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from machine import machine
from ps3_sdk import Frame, Session
from ps3_sdk.errors import Ps3Error

FRAMES = Path(__file__).parent.parent / "examples" / "frames"


def clock(session: Session, frame, prompt: str, asks: int) -> dict:
    times, stages = [], {}
    for _ in range(asks + 3):
        start = time.perf_counter()
        answer = session.ask(frame, prompt)
        times.append((time.perf_counter() - start) * 1e3)
        for stage, ms in answer.timing.stages_ms.items():
            stages.setdefault(stage, []).append(ms)
    return {"ms": statistics.median(times[3:]), "ms_min": min(times[3:]), "ms_max": max(times[3:]), "stages_ms": {stage: statistics.median(each[3:]) for stage, each in stages.items()},
            "ops": session.ops.where, "text": answer.text, "picked": {px: ids.tolist() for px, ids in answer.picked.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the embedded one")
    parser.add_argument("--asks", type=int, default=20)
    options = parser.parse_args()
    prompt = json.loads((FRAMES / "panel_4k.jsonl").read_text().splitlines()[0])["prompt"]
    pixels = np.array(Frame.of(FRAMES / "panel_4k.jpg").picture())
    found = {}
    for name, device in (("GPU, frame in host memory", "cuda"), ("GPU, frame in its memory", "cuda"), ("processor", "cpu")):
        try:
            frame = pixels
            if name.endswith("its memory"):
                import torch
                frame = torch.from_numpy(pixels).cuda()
            with Session(options.bundle, verify=False, device=device) as session:
                found[name] = clock(session, frame, prompt, options.asks)
        except (Ps3Error, ImportError, RuntimeError, AssertionError) as error:
            print(f"{name}: not run: {error}", flush=True)
            continue
        f = found[name]
        print(f"{name}: {f['ms']:.2f} ms ({f['ms_min']:.2f} - {f['ms_max']:.2f}), ops on {f['ops']}: " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in f["stages_ms"].items()) + f"; {f['text']!r}", flush=True)
    base = found.get("processor")
    for f in found.values():
        picked = f.pop("picked")
        if base and f is not base:
            same = sum(len(np.intersect1d(ids, base_picked[px])) for px, ids in picked.items()) if (base_picked := base.get("picked")) else 0
            f["overlap"] = same / max(sum(map(len, picked.values())), 1)
    print(json.dumps({"benchmark": "gpu_embedded", "prompt": prompt, "ways": found, "machine": machine()}))


if __name__ == "__main__":
    main()
