"""SO400M 4K, one round on a 3840x2160 frame: ours beside ps3-torch, each in its own process, turn by turn.

    python benchmarks/full_size.py --peer PYTHON_WITH_PS3_TORCH [--precision fp32 int8] [--rounds 3] [--bundles FOLDER] [--device cuda] [--also ENGINE.plan]

Both run the same shapes with random weights and the same thread count: preprocessing, low-res pass, score, selection, gathering
of 2559 patches, high-res pass. Then a second question about the same frame, at three budgets: what it saves is the low-res pass,
a part of asking anew about the same frame with the same budget. Peak memory, of the first question, is the kernel's VmHWM of each
process, mapped weights included. Bundles of random weights are exported first (up to 2.3 GB each in the temporary folder, removed
at the end; with --bundles kept there and used again). The last line is one JSON object.

With --device cuda both run on the GPU, ps3-torch in bfloat16; a third runs there beside them, "torch": our PyTorch reference in bfloat16, a fair way
with torch alone, which resizes on the GPU and takes the picked patches by index instead of unfolding every one. --also adds bundles of these shapes, such as engines that were built of the exported
one. With either, every question is asked ten times after two that do not count, while kernels are chosen and captured; memory is the host's.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCALES_PX = [378, 756, 1512, 3780]
SO400M = {"model_type": "ps3_vision_model", "model_name": "vit_so400m_patch14_siglip_384", "hidden_size": 1152, "pool": "map", "ps3_scales": SCALES_PX, "max_select_num": 2560}
AGAIN = (None, 1024, 512)        # budgets of the second question; None is the default, 2559

OURS = """
import json, sys, time
import numpy as np, ps3_sdk
plan, threads, device, asks = sys.argv[1], int(sys.argv[2]), sys.argv[4], int(sys.argv[5])
sys.path.append(sys.argv[6])
from machine import clock_networks
frame = np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8)
start = time.perf_counter()
session = ps3_sdk.Session(plan, threads=threads, verify=False, **({} if device == "cpu" else {"device": device}))
opened = time.perf_counter() - start
prompt = np.random.default_rng(1).standard_normal(session.geometry["width"], np.float32)
inside = clock_networks(session)
def first():
    global look
    look, inside[0] = None, 0.0
    start = time.perf_counter()
    look = session.look(frame)
    look_s = time.perf_counter() - start
    encoding = look.encode(prompt_embedding=prompt)
    return {"look_s": look_s, "tokens": encoding.tokens.shape[0], "stages_ms": encoding.timing.stages_ms, "networks_s": inside[0]}
seconds, found = timed(first, asks)
found |= {"s": seconds, "open_s": opened, "ops": session.ops.where, "peak_gb": peak_gb()}
again = {tokens or "all": timed(lambda: look.encode(prompt_embedding=-prompt, tokens=tokens), asks)[0] for tokens in json.loads(sys.argv[3])}      # None: the default budget
print(json.dumps({**found, "again_s": again}))
"""

THEIRS = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import peer_torchvision
import numpy as np, torch
from PIL import Image
from ps3 import PS3ImageProcessor, PS3VisionModel
from ps3.configuration_ps3 import PS3VisionConfig
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8))
processor = PS3ImageProcessor(3780, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
config = PS3VisionConfig(model_name="vit_so400m_patch14_siglip_384", hidden_size=1152, pool="map", ps3_scales=[378, 756, 1512, 3780],
                         select_based_on_layer=[0, 9, 18, 26], max_select_num=2560, separate_pos_emb=True, highres_selection_feature=True, radio=False)
model = PS3VisionModel(config).eval()
model.vision_model.num_hidden_layers_to_return = 1      # its default returns every layer and takes 48 s and 14.9 GB
device, asks = sys.argv[2], int(sys.argv[3])
dtype = torch.float32 if device == "cpu" else torch.bfloat16
model, prompt = model.to(device, dtype), torch.randn(1, 1152, device=device, dtype=dtype)
@torch.inference_mode()
def first():
    output = model(processor(frame)["pixel_values"][0][None].to(device, dtype), num_look_close=1, prompt=prompt)
    if device != "cpu":
        torch.cuda.synchronize()
    return output.last_hidden_state.shape[1]
seconds, tokens = timed(first, asks)
print(json.dumps({"s": seconds, "tokens": tokens, "peak_gb": peak_gb()}))
"""

FAIR = """
import json, sys
import numpy as np, torch
from ps3_sdk.export.reference.config import Ps3Config
from ps3_sdk.export.reference.geometry import cut, resize
from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.reference.scoring import spread
torch.set_num_threads(int(sys.argv[1]))
device, asks, config = sys.argv[2], int(sys.argv[3]), Ps3Config.from_dict(json.loads(sys.argv[4]))
dtype = torch.float32 if device == "cpu" else torch.bfloat16
with torch.device("meta"):
    model = Ps3Model(config)
model = model.to(dtype).to_empty(device=device).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.02)
frame, vision = np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8), model.vision_model
config, prompt = config.vision, torch.randn(1, config.vision.width, device=device, dtype=dtype)
grid, base_px, low_px, view_px = config.grids[0], (config.scales_px[-1],) * 2, (config.scales_px[0],) * 2, (config.view_px,) * 2
position = vision.position(0, (grid, grid), torch.arange(grid * grid, device=device))[None]
@torch.inference_mode()
def first():
    pixels = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float()
    base = torch.nn.functional.interpolate(pixels, base_px, mode="bicubic", antialias=True).round_().clamp_(0, 255).div_(127.5).sub_(1)
    hidden, kv = vision.trunk(cut(resize(base, low_px), config.trunk.patch_px).to(dtype), position)
    features = vision.score_features(torch.cat([hidden[i] for i in config.select_based_on_layer], dim=-1))
    view = vision.view_features(cut(resize(base, view_px), config.view_patch_px).to(dtype))
    look = model.select(spread(vision.score(features, view, prompt).float(), model.sizes(base)))[0]
    patches, positions = model.gather(base, look)
    high = model.encode_high(patches.to(dtype), positions, kv).hidden[-1]
    tokens = torch.cat([hidden[-1], high], dim=1).cpu()
    return tokens.shape[1]
seconds, tokens = timed(first, asks)
print(json.dumps({"s": seconds, "tokens": tokens, "peak_gb": peak_gb()}))
"""


SHARED = """
import sys, time; sys.path = [p for p in sys.path if p]      # not the current folder, which may be a checkout without its core
def peak_gb():      # not ru_maxrss, which starts at the parent's
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
def timed(call, asks):      # the median of some after two that do not count, or of the first and only one; and what that one gave
    rounds = []
    for _ in range(asks if asks == 1 else asks + 2):
        start = time.perf_counter()
        result = call()
        rounds.append((time.perf_counter() - start, result))
        result = None       # let go of before the next
    return sorted(rounds[2:] or rounds, key=lambda each: each[0])[len(rounds[2:] or rounds) // 2]
"""


def run(python: str, script: str, *arguments) -> dict:
    result = subprocess.run([python, "-c", SHARED + script, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{python} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def export_random(plan: Path, precision: str) -> None:
    """A SO400M 4K bundle with random weights."""
    from ps3_sdk.bundle import Bundle
    from ps3_sdk.export.build_engine import build_engine
    from ps3_sdk.export.engine_options import EngineOptions
    from ps3_sdk.export.make_bundle import Prepared, write
    from ps3_sdk.export.random_checkpoint import RandomCheckpoint
    from ps3_sdk.export.reference.config import Ps3Config
    config = Ps3Config.from_dict(SO400M)
    start, half = time.perf_counter(), precision == "fp16"
    progress = lambda line: print(f"  {time.perf_counter() - start:6.1f} s  {line}", file=sys.stderr, flush=True)
    exported = plan.with_suffix(".fp32.new") if half else plan
    write(RandomCheckpoint(config), Prepared(config, f"so400m-4k-random-{precision}", "none", (0.5,) * 3, (0.5,) * 3, weights="random"), exported, progress, "fp32" if half else precision)
    if half:
        build_engine(exported, plan, EngineOptions("onnx", precision="fp16"), progress=progress)
        exported.unlink()
    seconds = time.perf_counter() - start
    with Bundle.open(plan, verify=False) as bundle:
        errors = {stage: f"{entry['max_relative_error']:.1e}" for stage, entry in bundle.manifest["parity"].items()}
    print(f"exported {precision} with random weights in {seconds:.0f} s, {plan.stat().st_size / 1e9:.2f} GB, errors {errors}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with ps3-torch")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "int8"], help="default: fp32, on a GPU fp16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundles", type=Path, help="folder that keeps the bundles")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--also", type=Path, nargs="+", default=[], metavar="PLAN", help="more bundles of these shapes; engines run on a GPU whatever --device says")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    from ps3_sdk.measure import machine
    print(machine())
    also = {plan.stem: plan for plan in options.also}
    on_gpu = options.device == "cuda"
    precisions = options.precision or ["fp16" if on_gpu else "fp32"]
    names = [*precisions, *also]
    runs: dict[str, list[dict]] = {name: [] for name in (*names, "peer", *["torch"] * on_gpu)}
    failed: list[str] = []
    how = options.device, 10 if also or on_gpu else 1
    with tempfile.TemporaryDirectory() as folder:
        folder = options.bundles or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for precision in precisions:
            if not (folder / f"{precision}.plan").exists():
                export_random(folder / f"{precision}.plan", precision)
        for i in range(options.rounds):
            for name in runs:
                try:
                    if name == "peer":
                        done = run(options.peer, THEIRS, options.threads, *how)
                    elif name == "torch":
                        done = run(sys.executable, FAIR, options.threads, *how, json.dumps(SO400M))
                    else:
                        done = run(sys.executable, OURS, also.get(name, folder / f"{name}.plan"), options.threads, json.dumps(AGAIN), *how, Path(__file__).parent)
                except RuntimeError as error:       # the others are run all the same
                    failed.append(name)
                    print(f"  {name}: {error}", file=sys.stderr, flush=True)
                    continue
                runs[name].append(done)
                print(f"  {name} {json.dumps(done)}", file=sys.stderr, flush=True)
            if failed:
                raise SystemExit(f"{', '.join(failed)} failed; see the messages before.")
            print(f"round {i + 1}: " + " | ".join(f"{name} {of[-1]['s']:.3f} s, {of[-1]['peak_gb']:.2f} GB" for name, of in runs.items()), flush=True)
    seconds = {name: statistics.median(run["s"] for run in of) for name, of in runs.items()}
    gigabytes = {name: max(run["peak_gb"] for run in of) for name, of in runs.items()}
    result = {"machine": machine(), "device": options.device, "tokens": runs["peer"][0]["tokens"], "s_peer": round(seconds["peer"], 4), "gb_peer": round(gigabytes["peer"], 2)}
    for name in names:
        stages = {stage: statistics.median(run["stages_ms"][stage] for run in runs[name]) for stage in runs[name][0]["stages_ms"]}
        ratio = statistics.median(theirs["s"] / ours["s"] for ours, theirs in zip(runs[name], runs["peer"]))
        result |= {f"s_{name}": round(seconds[name], 4), f"ops_{name}": runs[name][0]["ops"], f"gb_{name}": round(gigabytes[name], 2), f"ratio_time_{name}": round(ratio, 2),
                   f"ratio_memory_{name}": round(gigabytes[name] / gigabytes["peer"], 2)}
        for tokens in runs[name][0]["again_s"]:
            saved = sorted(100 * run["look_s"] / (run["look_s"] + run["again_s"][tokens]) for run in runs[name])
            seconds_again = sorted(run["again_s"][tokens] for run in runs[name])
            result[f"percent_saved_{name}_{tokens}"] = [round(saved[0], 1), round(saved[-1], 1)]
            print(f"{name}, second question, {'default budget' if tokens == 'all' else f'{tokens} tokens'}: {seconds_again[0]:.2f} - {seconds_again[-1]:.2f} s, "
                  f"{saved[0]:.0f} - {saved[-1]:.0f} % less than the first")
        rest = [100 * (1 - run["networks_s"] / run["s"]) for run in runs[name]]
        result[f"percent_beside_networks_{name}"] = round(statistics.median(rest), 2)
        print(f"{name}, everything but the networks: {statistics.median(rest):.1f} % of a question")
        print(f"{name}, median ms per stage: " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items()))
        print(f"{name}: {seconds[name]:.3f} s, ps3-torch {seconds['peer']:.3f} s: {ratio:.2f} times faster with "
              f"{100 * gigabytes[name] / gigabytes['peer']:.0f} % of the memory")
    if on_gpu:
        result |= {"s_torch": round(seconds["torch"], 4), "tokens_torch": runs["torch"][0]["tokens"]}
        print(f"torch alone, patches by index: {seconds['torch']:.3f} s, {seconds['peer'] / seconds['torch']:.2f} times faster than ps3-torch; "
              + ", ".join(f"{name} {seconds['torch'] / seconds[name]:.2f} times faster than it" for name in names))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
