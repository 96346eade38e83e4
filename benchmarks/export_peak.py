"""What an export costs at full size: seconds, memory, the bundle's bytes and the measured error of each stage.

    python benchmarks/export_peak.py [--text none siglip siglip2] [--precision fp32 int8]

A SO400M 4K checkpoint with random weights of the true layout is written to the temporary folder (1.9 GB, with a text tower 3.7 or
4.8 GB; the bundle comes beside it), then exported by `ps3 export` in a process of its own. siglip: 32000 words, siglip2: 256000.
Memory is the kernel's: the largest process (VmHWM, mapped pages included), and the largest sum over all processes of the export at
one moment (sampled; pages that two of them share count twice). The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from ps3_sdk.export.child import module

VISION = {"model_type": "ps3_vision_model", "model_name": "vit_so400m_patch14_siglip_384", "hidden_size": 1152, "pool": "map",
          "ps3_scales": [378, 756, 1512, 3780], "max_select_num": 2560}
TEXT = {"width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362, "context_length": 64, "output_dim": 1152, "prompt_proj_dim": 1152,
        "pool_type": "last", "no_causal_mask": True, "proj_bias": True}
TEXTS = {"none": None, "siglip": TEXT | {"vocab_size": 32000},
         "siglip2": TEXT | {"vocab_size": 256000, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}}


def write_checkpoint(folder: Path, text: str) -> int:
    """A checkpoint as published, tensor by tensor. Returns its bytes."""
    from ps3_sdk.export.seeded_bundle import byte_tokenizer
    from ps3_sdk.export.random_checkpoint import RandomCheckpoint
    from ps3_sdk.export.reference.config import Ps3Config
    from ps3_sdk.export.write_bundle import SafetensorsLayout
    values = VISION if TEXTS[text] is None else {"model_type": "ps3", "vision_config": VISION, "text_config": TEXTS[text]}
    source = RandomCheckpoint(Ps3Config.from_dict(values))
    put = lambda name, content: (folder / name).write_text(json.dumps(content))
    put("config.json", values)
    put("preprocessor_config.json", {"image_size": 3780, "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"})
    put("tokenizer_config.json", {"tokenizer_name": "bytes", "context_length": 64, "clean": "canonicalize"})
    (folder / "tokenizer.json").write_bytes(byte_tokenizer())
    layout = SafetensorsLayout({key: ("F32", source.shape(key)) for key in source.keys()})
    with open(folder / "model.safetensors", "wb") as file:
        for chunk in layout.chunks(source.array):
            file.write(chunk)
    return layout.size


ENCODE_TEXT = """
import json, sys, time
sys.path = [p for p in sys.path if p]      # not the current folder, which may be a checkout without its core
import ps3_sdk
session = ps3_sdk.Session(sys.argv[1], verify=False)
times = []
for text in ("the exit sign", "the speed limit", "a red light"):
    start = time.perf_counter()
    session.encode_text(text)
    times.append(time.perf_counter() - start)
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
print(json.dumps({"s_per_text": [round(s, 2) for s in times], "gb_texts": round(peak, 2)}))
"""


def encode_texts(plan: Path) -> dict:
    """Seconds of three new prompts, opening the text tower each time, and the peak memory of a session that did nothing else."""
    return json.loads(subprocess.run([sys.executable, "-c", ENCODE_TEXT, plan], check=True, capture_output=True, text=True).stdout)


class Watch(threading.Thread):
    """The memory of a process and all below it, until it ends: `largest` process and `together`, in GB."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.largest, self.together = pid, 0.0, 0.0

    def run(self) -> None:
        while True:
            found = [memory for memory in map(_memory, _family(self.pid)) if memory]
            if _memory(self.pid) is None:
                return
            self.largest = max([self.largest, *(peak for peak, _ in found)])
            self.together = max(self.together, sum(now for _, now in found))
            time.sleep(0.01)


def _family(pid: int) -> list[int]:
    """A process and all that it and its threads started, whoever of them is still there."""
    below = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):         # threads come and go
                below += map(int, (task / "children").read_text().split())
    return [pid, *(each for child in below for each in _family(child))]


def _memory(pid: int) -> tuple[float, float] | None:
    """Highest and present resident memory in GB; None when the process is gone."""
    try:
        found = dict(re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    except OSError:
        return None
    return (int(found["VmHWM"]) / 1e6, int(found["VmRSS"]) / 1e6) if len(found) == 2 else None


def export(folder: Path, plan: Path, precision: str) -> dict:
    start = time.perf_counter()
    process = subprocess.Popen(module("ps3_sdk", "export", folder, "-o", plan, "--precision", precision), stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    if process.wait():
        raise SystemExit(process.returncode)
    watch.join()
    from ps3_sdk.bundle import Bundle
    with Bundle.open(plan, verify=False) as bundle:
        networks = {name: bundle.members[entry["weights"]] for name, entry in bundle.manifest["networks"].items()}
        errors = {stage: entry["max_relative_error"] for stage, entry in bundle.manifest["parity"].items()}
    largest = max(networks.values()) / 1e9
    return {"s": round(time.perf_counter() - start, 1), "gb_bundle": round(plan.stat().st_size / 1e9, 2), "gb_largest_network": round(largest, 2),
            "gb_largest_process": round(watch.largest, 2), "gb_together": round(watch.together, 2), "ratio_process": round(watch.largest / largest, 2),
            "ratio_together": round(watch.together / largest, 2), "errors": {stage: f"{error:.1e}" for stage, error in errors.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["none"], choices=TEXTS)
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "int8"])
    options = parser.parse_args()
    from ps3_sdk.measure import machine
    print(machine())
    results = {}
    for text in options.text:
        with tempfile.TemporaryDirectory() as folder:
            size = write_checkpoint(Path(folder), text)
            for precision in options.precision:
                found = results[f"{text} {precision}"] = export(Path(folder), Path(folder) / "engine.plan", precision)
                if TEXTS[text] is not None:
                    found |= encode_texts(Path(folder) / "engine.plan")
                    print(f"text {text}, {precision}: a new prompt {found['s_per_text']} s, a session that only encodes prompts peaks at {found['gb_texts']} GB")
                print(f"text {text}, {precision}: checkpoint {size / 1e9:.2f} GB, bundle {found['gb_bundle']} GB in {found['s']} s; largest process "
                      f"{found['gb_largest_process']} GB, all together {found['gb_together']} GB = {found['ratio_process']} and {found['ratio_together']} "
                      f"times the largest network ({found['gb_largest_network']} GB); errors {found['errors']}", flush=True)
    print(json.dumps({"machine": machine(), **results}))


if __name__ == "__main__":
    main()
