"""Does the cost follow the patches or the frame? gather of the same 2559 patches from 1080p, 4K and 8K frames, turn by turn.

    python benchmarks/frame_size.py [--rounds 15] [--threads 2]

A frame above the base picture (3780 px) is filtered down: every patch then reads more pixels, by the square of the ratio. That
part grows with the frame and is printed as what it is. The last line is one JSON object; ratio is the slowest over the fastest.
"""
from __future__ import annotations

import argparse
import json

from machine import buffers, frames, gather_all, machine, measure_ms, median, picks

SIZES = {"1080p": (1080, 1920), "4k": (2160, 3840), "8k": (4320, 7680)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    ids = picks()
    out = buffers(ids)
    every = {name: frames(*size)["RGB"] for name, size in SIZES.items()}
    times = {name: [] for name in every}
    for _ in range(options.rounds):
        for name, frame in every.items():
            times[name] += measure_ms(lambda: gather_all(frame, ids, out, options.threads), 4)[1:]
    medians = {name: median(each) for name, each in times.items()}
    for name, each in times.items():
        print(f"{name:6} median {medians[name]:6.2f} ms, min {min(each):6.2f}, max {max(each):6.2f}")
    ratio = max(medians.values()) / min(medians.values())
    print(f"slowest over fastest {ratio:.2f}, 4K over 1080p {medians['4k'] / medians['1080p']:.2f}; {machine()}")
    print(json.dumps({"benchmark": "frame_size", "ms": medians, "ratio": ratio, "threads": options.threads, "machine": machine()}))


if __name__ == "__main__":
    main()
