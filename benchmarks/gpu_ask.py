"""A whole encode on a GPU beside the processor's: what is picked, how far tokens are off, what travels, and milliseconds. Part of gpu.py's acceptance.

    python benchmarks/gpu_ask.py [--bundle ONNX.plan] [--also PLAN ..] [--rounds 20]

--bundle (default: the embedded one) runs on the processor as the measure of all, and by ONNX Runtime on the GPU where onnxruntime-gpu is; --also adds
engines and ONNX bundles of the same model. The frame is NV12 in the GPU's memory where the core has kernels, else in the host's. fp16 is held to 99 % of the same patches and 5e-3.
The rest beside the networks is what an encode takes on the host's clock less the time inside of the networks' runs.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack

import numpy as np
from gpu_wanted import ERROR, OVERLAP
from machine import clock_networks, frames, machine
from ps3_sdk import Frame, Session
from ps3_sdk.errors import Ps3Error

def compare(ours: Session, theirs: Session, our_frame, their_frame, prompt=None) -> dict:
    """Encodings of the same frame by two sessions: share of the patches that both pick, largest difference of tokens that both have, of the largest value."""
    prompt = {"prompt_embedding": np.random.default_rng(1).standard_normal(theirs.geometry["width"], np.float32)} if prompt is None else {"prompt": prompt}
    a, b = ours.encode(our_frame, **prompt), theirs.encode(their_frame, **prompt)
    same, total, worst, largest = 0, 0, float(np.abs(a.tokens[:a.num_low] - b.tokens[:b.num_low]).max()), float(np.abs(b.tokens).max())
    at_a = at_b = a.num_low
    for px, ids in b.picked.items():
        both, in_a, in_b = np.intersect1d(a.picked[px], ids, return_indices=True)
        if len(both) == len(ids):        # tokens see all others: only of equal picks are they comparable
            worst = max(worst, float(np.abs(a.tokens[at_a + in_a] - b.tokens[at_b + in_b]).max(initial=0)))
        same, total, at_a, at_b = same + len(both), total + len(ids), at_a + len(a.picked[px]), at_b + len(ids)
    return {"overlap": same / max(total, 1), "error": worst / largest}


def clock(session: Session, frame, rounds: int) -> dict:
    """Median milliseconds of an encode, and of what is not inside the networks' runs."""
    inside = clock_networks(session)
    prompt, times = np.random.default_rng(1).standard_normal(session.geometry["width"], np.float32), []
    for _ in range(rounds + 3):
        inside[0], start = 0.0, time.perf_counter()
        encoding = session.encode(frame, prompt_embedding=prompt)
        whole = time.perf_counter() - start
        times.append((whole * 1e3, (whole - inside[0]) * 1e3, encoding.timing.stages_ms))
    ms, rest = (statistics.median(each[i] for each in times[3:]) for i in (0, 1))
    return {"ms": ms, "rest_ms": rest, "rest_share": rest / ms, "stages_ms": {stage: statistics.median(each[2][stage] for each in times[3:]) for stage in times[-1][2]}}


def on_gpu(planes, height: int, width: int):
    """An NV12 frame whose planes lie on the GPU; in host memory where the core has no kernels for it."""
    try:
        from ps3_sdk import _core
        cuda = _core.Cuda(0, 0)
        return Frame.of(tuple(cuda.upload(plane) for plane in planes), format="NV12")
    except Ps3Error:
        return Frame.of(planes, format="NV12")


def run(bundle, also, rounds: int) -> dict:
    """Prints a line per way to run it; -> {name: figures}. A way that is not to be had says why."""
    pixels = frames(2160, 3840)["pixels"]
    planes = (np.ascontiguousarray(pixels[..., 1]), np.ascontiguousarray(pixels[:1080, :, 0]))
    found = {}
    with ExitStack() as stack:
        theirs = stack.enter_context(Session(bundle, verify=False))
        for name, plan in [("onnxruntime cuda", bundle), *((str(path), path) for path in also)]:
            try:
                ours = stack.enter_context(Session(plan, verify=False, device="cuda"))
                frame = on_gpu(planes, 2160, 3840) if ours.ops.where == "cuda" else Frame.of(planes, format="NV12")
                found[name] = {"ops": ours.ops.where, **compare(ours, theirs, frame, Frame.of(planes, format="NV12")), **clock(ours, frame, rounds)}
            except Ps3Error as error:
                print(f"{name}: not run: {error}")
                continue
            f = found[name]
            print(f"{name}: {f['ms']:.2f} ms an encode, {f['rest_ms']:.2f} ms ({100 * f['rest_share']:.0f} %) of them beside the networks, ops on {f['ops']}; "
                  f"{100 * f['overlap']:.1f} % of the patches (wanted {100 * OVERLAP:.0f}), tokens off by {f['error']:.1e} (wanted {ERROR:.0e})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle")
    parser.add_argument("--also", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps({"benchmark": "gpu_ask", "ways": run(options.bundle, options.also, options.rounds), "machine": machine()}))


if __name__ == "__main__":
    sys.exit(main())
