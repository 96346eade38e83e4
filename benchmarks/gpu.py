"""Acceptance of the CUDA core on a GPU: every op checked against the processor, then timed by events.

    python benchmarks/gpu.py [--check-only [--small]] [--no-check] [--no-sanitizer] [--rounds 20] [--bundle ONNX.plan] [--also PLAN ..] [--peer PYTHON]

Needs torch with CUDA, a core built with -DPS3_CUDA=ON and a GPU; says what is missing otherwise. Takes a few minutes.
Beside each time of gather stands the rate of the bytes it must read (source pixels its windows cover, ids) and write, and the rate a
plain copy reaches on the same GPU. The torch column is a fair way with torch alone: F.interpolate with antialias to the base picture,
F.interpolate to each scale, and the picked patches by index (no unfolding). Times are medians over rounds of a CUDA graph of ten calls
(torch: of two plain calls), with inputs that stay in the L2 cache where it holds them; the last line is one JSON object. Before the timings the
ops run, on small frames, under compute-sanitizer where that is installed; after them whole encodes are held to the processor's and timed (gpu_ask.py),
and with --peer, a Python that has ps3-torch, SO400M beside ps3-torch and PyTorch (full_size.py). Lines before the last one say what is missed of what
is wanted (gpu_wanted.py); where something is, the exit status is 1.
"""
from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import gpu_ask
from gpu_wanted import missed
from machine import BASE_PX, HALF, PATCH_PX, SCALES_PX, frames, machine, picks
from ps3_sdk import _core
from ps3_sdk.errors import RuntimeMissingError

HIGH_PX = SCALES_PX[1:]


def gpu_or_exit():
    try:
        import torch
    except ImportError:
        raise SystemExit("[gpu] torch is not installed; the timings need its events. Run: pip install torch")
    try:
        _core.Cuda()
    except RuntimeMissingError as error:
        raise SystemExit(str(error))
    if not torch.cuda.is_available():
        raise SystemExit("[gpu] this torch sees no GPU; the core does. Install torch with CUDA.")
    return torch


class Bench:
    """Calls on one stream of torch, timed between two events."""

    def __init__(self, torch, rounds):
        self.torch, self.rounds, self.rows = torch, rounds, {}
        self.stream = torch.cuda.Stream()
        self.cuda = _core.Cuda(self.stream.cuda_stream)

    def ms(self, call, repeat=10, graph=True):
        """Of one call: median, least and most milliseconds on the GPU over the rounds, and the microseconds the host takes to enqueue it.

        A CUDA graph of `repeat` calls is what runs, so that the host's pace does not count. That an op can be captured also shows
        that it neither allocates nor waits.
        """
        torch, times, host = self.torch, [], []
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                call()
            for _ in range(self.rounds):
                start = time.perf_counter()
                call()
                host.append((time.perf_counter() - start) * 1e6)
            self.stream.synchronize()
            run = lambda: [call() for _ in range(repeat)]
            if graph:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured, stream=self.stream):
                    run()
                run = captured.replay
            run()
            for _ in range(self.rounds):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                self.stream.synchronize()
                begin.record(self.stream)
                run()
                end.record(self.stream)
                end.synchronize()
                times.append(begin.elapsed_time(end) / repeat)
        return statistics.median(times), min(times), max(times), statistics.median(host)

    def row(self, name, call, must_move=None, **how):
        median, low, high, host = self.ms(call, **how)
        self.rows[name] = {"ms": median, "ms_min": low, "ms_max": high, "host_us": host}
        rate = ""
        if must_move:
            self.rows[name]["gb_s"] = must_move / median / 1e6
            rate = f"{must_move / 1e6:10.1f}{must_move / median / 1e6:10.0f}"
        print(f"{name:52}{median:10.4f}{low:10.4f}{high:10.4f}{host:9.1f}{rate}", flush=True)


def source_bytes(ids: dict, height: int, width: int, bytes_per_pixel: float, patch_px: dict) -> float:
    """Bytes of the frame's pixels under the windows of the picked patches, each counted once."""
    seen = np.zeros((height, width), bool)
    for size_px, each in ids.items():
        grid, side = size_px // patch_px[size_px], BASE_PX / size_px * patch_px[size_px]
        spans = []
        for length in (height, width):
            step = length / BASE_PX
            reach = 2 * max(step, 1)
            spans.append([(max(0, int(i * side * step - reach)), min(length, int((i + 1) * side * step + reach) + 1)) for i in range(grid)])
        for row, col in zip(*np.divmod(each, grid)):
            seen[slice(*spans[0][row]), slice(*spans[1][col])] = True
    return float(seen.sum()) * bytes_per_pixel


def on_gpu(torch, frame_planes, format, height, width):
    return _core.Frame(format, [torch.from_numpy(plane).cuda() for plane in frame_planes], height, width)


def make_ops(torch, seed=0):
    random = np.random.default_rng(seed)
    floats = lambda *shape: random.standard_normal(shape, np.float32)
    return {"features": floats(729, 1152), "view": floats(2916, 512), "prompt": floats(1152), "weight": floats(512, 1152), "bias": floats(512),
            "table": floats(729, 1152), "residual": floats(270 * 270, 1152).astype(np.float16), "tokens": floats(2133, 1152)}


def check(torch, cuda, small: bool = False) -> dict:
    """Every op on the GPU against the processor: equal to the bit. small: two small frames only. -> {name: cases}"""
    done, other = {}, {}

    def equal(name, got, expected):
        got = cuda.download(got)
        if not np.array_equal(got, expected):
            apart = np.abs(got.astype(np.float64) - expected)
            other.setdefault(name, []).append(f"{np.count_nonzero(got != expected)} of {got.size} values by up to {apart.max():.1e}")
        done[name] = done.get(name, 0) + 1

    ids = picks()
    for height, width in ((270, 480), (481, 641)) if small else ((1080, 1920), (2160, 3840), (4320, 7680), (481, 641)):
        shared = frames(height - height % 2, width - width % 2)
        pixels = shared["pixels"]
        luma, chroma = np.ascontiguousarray(pixels[..., 1]), np.ascontiguousarray(pixels[:pixels.shape[0] // 2, :, 0])
        for format, planes in (("RGB", [pixels]), ("NV12", [luma, chroma]), ("YUYV", [np.ascontiguousarray(pixels[..., :2]).reshape(len(pixels), -1)])):
            host = _core.Frame(format, planes, *pixels.shape[:2])
            device = on_gpu(torch, planes, format, *pixels.shape[:2])
            for dtype in ("float32", "float16"):
                outs = cuda.gather(device, BASE_PX, [(size, PATCH_PX, each, None) for size, each in ids.items()], *HALF, dtype)
                for (size, each), out in zip(ids.items(), outs):
                    equal("gather", out, _core.gather(host, BASE_PX, size, PATCH_PX, each, *HALF).astype(dtype))
            equal("gather of a host frame", cuda.gather(host, BASE_PX, [(3780, PATCH_PX, ids[3780], None)], *HALF)[0], _core.gather(host, BASE_PX, 3780, PATCH_PX, ids[3780], *HALF))
            low, view = np.arange(729, dtype=np.int32), np.arange(0, 2916, 7, dtype=np.int32)
            outs = cuda.gather(device, BASE_PX, [(378, 14, low, None), (1512, 28, view, None)], *HALF)
            equal("inputs", outs[0], _core.gather(host, BASE_PX, 378, 14, low, *HALF))
            equal("inputs", outs[1], _core.gather(host, BASE_PX, 1512, 28, view, *HALF))
    a = make_ops(torch)
    prob = cuda.score(*(cuda.upload(a[name]) for name in ("features", "view", "prompt", "weight", "bias")))
    expected = _core.score(a["features"], a["view"], a["prompt"], a["weight"], a["bias"])
    equal("score", prob, expected)
    for size in HIGH_PX:
        grid = size // PATCH_PX
        taken, device_taken = np.zeros(grid * grid, np.uint8), cuda.upload(np.zeros(grid * grid, np.uint8))
        for count in (grid, 7, grid * grid // 2):
            equal("select", cuda.select(prob, grid, grid, count, device_taken), _core.select(expected, grid, grid, count, taken))
            equal("select", device_taken, taken)
    some = ids[3780]
    equal("position_rows", cuda.position_rows(cuda.upload(a["table"]), 27, 270, some, cuda.upload(a["residual"])),
          _core.position_rows(a["table"], 27, 270, some, a["residual"]))
    equal("scatter", cuda.scatter(cuda.upload(a["tokens"][:len(some)]), some, 270, 270), _core.scatter(a["tokens"][:len(some)].copy(), some, 270, 270))
    if other:
        for name, how in other.items():
            print(f"{name}: {len(how)} of {done[name]} cases differ: {'; '.join(how[:4])}")
        raise SystemExit(f"[gpu] {', '.join(other)} differ from the processor; equal bits are needed. Please report it with: {cuda_name(torch)}")
    return done


def torch_gather(torch, pixels, ids):
    """The fair way with torch alone, on the GPU: -> a call that makes the same patches."""
    F = torch.nn.functional
    frame = torch.from_numpy(pixels).cuda()
    index = {size: torch.from_numpy(each).cuda().long() for size, each in ids.items()}

    def call():
        base = F.interpolate(frame.permute(2, 0, 1)[None].float(), (BASE_PX, BASE_PX), mode="bicubic", antialias=True).round_().clamp_(0, 255)
        base = base.div_(255).sub_(0.5).div_(0.5)
        outs = []
        for size, each in index.items():
            scaled = base if size == BASE_PX else F.interpolate(base, (size, size), mode="bicubic")
            grid = size // PATCH_PX
            patches = scaled.view(3, grid, PATCH_PX, grid, PATCH_PX)
            outs.append(patches.permute(1, 3, 0, 2, 4)[each // grid, each % grid].flatten(1))
        return outs
    return call


def time_all(torch, bench) -> float:
    """Prints the table; -> GB/s of a plain copy."""
    cuda, ids = bench.cuda, picks()
    source = torch.empty(2**28, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    median, *_ = bench.ms(lambda: target.copy_(source))
    copy_gb_s = 2 * source.numel() * 4 / median / 1e6
    del source, target
    print(f"copy of 1 GiB: {copy_gb_s:.0f} GB/s\n{'':52}{'median ms':>10}{'min':>10}{'max':>10}{'host us':>9}{'must MB':>10}{'GB/s':>10}")
    sides = {size: PATCH_PX for size in HIGH_PX}
    device_ids = {size: torch.from_numpy(each).cuda() for size, each in ids.items()}
    num = sum(map(len, ids.values()))
    for height, width in ((1080, 1920), (2160, 3840), (4320, 7680)):
        pixels = frames(height, width)["pixels"]
        luma, chroma = np.ascontiguousarray(pixels[..., 1]), np.ascontiguousarray(pixels[:height // 2, :, 0])
        for format, planes, per_pixel in (("NV12", [luma, chroma], 1.5), ("RGB", [pixels], 3.0)):
            frame = on_gpu(torch, planes, format, height, width)
            for dtype in ("float32", "float16"):
                outs = {size: torch.empty(len(each), 3 * PATCH_PX**2, dtype=getattr(torch, dtype), device="cuda") for size, each in ids.items()}
                parts = [(size, PATCH_PX, device_ids[size], outs[size]) for size in HIGH_PX]
                moved = source_bytes(ids, height, width, per_pixel, sides) + sum(out.numel() * out.element_size() for out in outs.values()) + 4 * num
                bench.row(f"gather {num} patches, {height} rows {format}, {dtype}", lambda: cuda.gather(frame, BASE_PX, parts, *HALF), moved)
            if (height, format) == (2160, "NV12"):
                low, view = (torch.arange(n, dtype=torch.int32, device="cuda") for n in (729, 2916))
                low_out, view_out = torch.empty(729, 588, device="cuda"), torch.empty(2916, 2352, device="cuda")
                bench.row("low-res and 1512 px inputs, 2160 rows NV12, float32", lambda: cuda.gather(frame, BASE_PX, [(378, 14, low, low_out), (1512, 28, view, view_out)], *HALF),
                          height * width * 1.5 + 4 * (low_out.numel() + view_out.numel()))
        if height == 2160:
            bench.row(f"torch: {num} patches by index, 2160 rows RGB, float32", torch_gather(torch, pixels, ids), repeat=2, graph=False)
    a = {name: torch.from_numpy(each).cuda() for name, each in make_ops(torch).items()}
    prob = torch.empty(27, 27, device="cuda")
    bench.row("score, 729 places of 1152 and a view of 2916", lambda: cuda.score(a["features"], a["view"], a["prompt"], a["weight"], a["bias"], prob),
              4 * sum(a[name].numel() for name in ("features", "view", "prompt", "weight", "bias")))
    taken, out = torch.zeros(270 * 270, dtype=torch.uint8, device="cuda"), torch.empty(2133, dtype=torch.int32, device="cuda")
    bench.row("select 2133 of 72900, marks cleared each time", lambda: (taken.zero_(), cuda.select(prob, 270, 270, 2133, taken, out)))
    rows = torch.empty(2133, 1152, device="cuda")
    bench.row("position_rows, 2133 of 72900", lambda: cuda.position_rows(a["table"], 27, 270, device_ids[3780], a["residual"], False, rows),
              2133 * 1152 * 6 + a["table"].numel() * 4)
    feature_map = torch.empty(1152, 270, 270, device="cuda")
    bench.row("scatter 2133 tokens into 1152 x 270 x 270", lambda: cuda.scatter(a["tokens"], device_ids[3780], 270, 270, feature_map),
              4 * (feature_map.numel() + a["tokens"].numel()))
    copies = cuda.copies
    if any(copies.values()):
        raise SystemExit(f"[gpu] the timed calls copied between host and GPU: {copies}; needs none. Please report it.")
    print("copies between host and GPU during all of this: none")
    return copy_gb_s


def sanitize() -> str:
    """The checks again under compute-sanitizer, which sees reads and writes outside of what was given."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "is not installed: reads and writes outside of the arrays were not looked for"
    done = subprocess.run([tool, "--error-exitcode", "9", sys.executable, __file__, "--check-only", "--small"], capture_output=True, text=True)
    if done.returncode:
        print((done.stdout + done.stderr)[-3000:])
    return "found something" if done.returncode else "nothing found"


def full_size(peer: str, also: list[str]) -> dict | None:
    """full_size.py's JSON, None where it failed; it prints the rest itself."""
    command = [sys.executable, Path(__file__).with_name("full_size.py"), "--peer", peer, "--device", "cuda", *(["--also", *also] if also else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        last = ""
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    return json.loads(last) if process.returncode == 0 else None


def cuda_name(torch) -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor}), torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check-only", action="store_true", help="no timings")
    parser.add_argument("--small", action="store_true", help="check on small frames only; what compute-sanitizer runs")
    parser.add_argument("--no-check", action="store_true", help="timings alone")
    parser.add_argument("--no-sanitizer", action="store_true", help="do not run the checks under compute-sanitizer")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bundle", help="of the whole encode (default: the embedded one)")
    parser.add_argument("--also", nargs="+", default=[], help="engines and ONNX bundles of the same model")
    parser.add_argument("--peer", help="python of an environment with ps3-torch: SO400M beside it")
    parser.add_argument("--also-full-size", nargs="+", default=[], metavar="PLAN", help="engines of SO400M's shapes, with --peer")
    options = parser.parse_args()
    torch, done, sanitizer = gpu_or_exit(), None, "was not run"
    if not options.no_check:
        done = check(torch, _core.Cuda(), options.small)
        print("equal to the processor, to the bit: " + ", ".join(f"{name} ({num})" for name, num in done.items()), flush=True)
    if options.check_only:
        return 0
    if not options.no_check and not options.no_sanitizer:
        sanitizer = sanitize()
        print(f"compute-sanitizer: {sanitizer}", flush=True)
    bench = Bench(torch, options.rounds)
    copy_gb_s = time_all(torch, bench)
    print(f"{cuda_name(torch)}; {machine()}")
    ways = gpu_ask.run(options.bundle, options.also, options.rounds)
    full = full_size(options.peer, options.also_full_size) if options.peer else None
    result = {"benchmark": "gpu", "gpu": cuda_name(torch), "checked": done, "sanitizer": sanitizer, "copy_gb_s": copy_gb_s, "rows": bench.rows, "encodes": ways, "full_size": full,
              "machine": machine()}
    wrong = missed(result)
    print("\n".join(f"MISSED: {line}" for line in wrong) or "all that is wanted is met")
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
