"""VILA-HD at full size with random weights: what exporting and asking cost. Nothing of it is known before it is measured here.

    python benchmarks/vila_full_size.py [--language 7b] [--precision int8] [--llm-precision int4] [--work FOLDER]        # needs ps3_sdk[vlm]

A checkpoint of the layout of VILA-HD-8B-PS3-4K-SigLIP2 (SO400M tower of 378 to 3780 px, Qwen2 of 1.5 or 7.6 billion parameters, 151651
ids, bf16 in shards) is drawn tensor by tensor, exported by `ps3 export` in a process of its own, and asked two questions about a 3840x2160
frame in another. Free disk for 7b: 26 GB in FOLDER (default: the temporary folder); all of it is removed at the end. Memory is the
kernel's VmHWM, mapped pages included: of the exporting process, and of the largest process that it starts. The last line is one JSON object.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ps3_sdk.export.child import module

LANGUAGE = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False)}
QUESTIONS = ("What is written on the largest boat?", "How many people stand on the quay?")

ASK = """
import json, sys, time
import numpy as np, ps3_sdk
plan, threads, max_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
frame = np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8)
start = time.perf_counter()
session = ps3_sdk.Session(plan, threads=threads, verify=False)
found = {"load_s": time.perf_counter() - start, "load_gb": peak_gb(), "asks": []}
look, low_ms = None, 0.0
for question in QUESTIONS:
    times, start = [], time.perf_counter()
    look = look or session.look(frame)
    answer = look.ask(question, max_tokens=max_tokens, cancel=lambda: times.append(time.perf_counter()) or False)
    found["asks"].append({"s": time.perf_counter() - start, "first_s": times[0] - start, "tokens_per_s": (len(times) - 1) / (times[-1] - times[0]), "num": len(times) - 1,
                          "rows": look.memory["read"].state.length, "stages_ms": {stage: ms for stage, ms in answer.timing.stages_ms.items() if stage != "encode_low" or not low_ms}})
    low_ms = answer.timing.stages_ms["encode_low"]      # the look's, which later answers repeat
print(json.dumps({**found, "peak_gb": peak_gb()}))
"""
PEAK = f"""
import sys; sys.path = [p for p in sys.path if p]      # not the current folder, which may be a checkout without its core
QUESTIONS = {QUESTIONS!r}
def peak_gb():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
"""


def watch(process: subprocess.Popen, peaks: dict[str, float]) -> None:
    """VmHWM of a process and of the processes below it, sampled until it ends; the kernel's mark does not fall between samples."""
    while process.poll() is None:
        pids, seen = [process.pid], []
        while pids:
            pid = pids.pop()
            seen.append(pid)
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                peak = next((int(line.split()[1]) / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
                key = "exporter" if pid == process.pid else "child"
                peaks[key] = max(peaks.get(key, 0.0), peak)
                pids += [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
            except OSError:
                pass
        time.sleep(0.05)


def export(checkpoint: Path, plan: Path, work: Path, options) -> dict:
    command = [*module("ps3_sdk", "export", checkpoint), "-o", plan, "--precision", options.precision, "--llm-precision", options.llm_precision]
    command += ["--work-dir", work] if options.resumable else []
    start, peaks = time.perf_counter(), {}
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    longest, last = 0.0, start
    for line in process.stdout:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        print(f"  {now - start:6.1f} s, {peaks.get('exporter', 0):5.2f} GB  {line.rstrip()}", flush=True)
    process.wait()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the export failed with exit code {process.returncode}")
    return {"export_s": time.perf_counter() - start, "longest_silence_s": longest, "exporter_peak_gb": peaks["exporter"], "child_peak_gb": peaks.get("child", 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="7b", choices=list(LANGUAGE))
    parser.add_argument("--precision", default="int8", choices=["fp32", "int8"])
    parser.add_argument("--llm-precision", default="int4", choices=["fp32", "fp16", "int4"])
    parser.add_argument("--work", help="where the temporary folder goes")
    parser.add_argument("--rounds", type=int, default=1, help="of asking")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--resumable", action="store_true", help="export with --work-dir")
    options = parser.parse_args()
    from ps3_sdk.bundle import Bundle
    from ps3_sdk.export.random_vila import write_random_vila
    from ps3_sdk.measure import machine
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        checkpoint, plan = Path(folder) / f"VILA-HD-random-{options.language}", Path(folder) / "engine.plan"
        start = time.perf_counter()
        vision = dict(model_name="vit_so400m_patch14_siglip_378", hidden_size=1152, select_based_on_layer=[0, 9, 18, 26])
        result = {"language": options.language, "precision": [options.precision, options.llm_precision], "checkpoint_gb": write_random_vila(
            checkpoint, vision, LANGUAGE[options.language], progress=lambda line: print(f"  {time.perf_counter() - start:6.1f} s  {line}", flush=True)) / 1e9}
        result |= export(checkpoint, plan, Path(folder) / "work", options)
        with Bundle.open(plan, verify=False) as bundle:
            sizes = {name: bundle.members[entry["weights"]] / 1e9 for name, entry in bundle.manifest["networks"].items()}
            result |= {"bundle_gb": plan.stat().st_size / 1e9, "networks_gb": sizes, "errors": {stage: entry["max_relative_error"] for stage, entry in bundle.manifest["parity"].items()}}
        largest = max(sizes.values())
        result |= {"exporter_peak_ratio": result["exporter_peak_gb"] / largest, "child_peak_ratio": result["child_peak_gb"] / largest}
        print(f"exported {result['checkpoint_gb']:.2f} GB in {result['export_s']:.0f} s (never longer than {result['longest_silence_s']:.0f} s without a word): bundle {result['bundle_gb']:.2f} GB, "
              f"largest network {largest:.2f} GB; peak of the exporter {result['exporter_peak_gb']:.2f} GB ({result['exporter_peak_ratio']:.2f} of it), "
              f"of the networks tried apart {result['child_peak_gb']:.2f} GB ({result['child_peak_ratio']:.2f})", flush=True)
        print("errors: " + ", ".join(f"{stage} {error:.1e}" for stage, error in result["errors"].items()))
        runs = []
        for _ in range(options.rounds):
            done = subprocess.run([sys.executable, "-c", PEAK + ASK, str(plan), str(options.threads), str(options.max_tokens)], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"asking failed:\n{done.stderr[-2000:]}")
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
            first, second = runs[-1]["asks"]
            print(f"loaded in {runs[-1]['load_s']:.1f} s; first token after {first['first_s']:.1f} s, of a second question {second['first_s']:.1f} s; "
                  f"{first['tokens_per_s']:.2f} tokens/s; {first['rows']} and {second['rows']} rows; peak {runs[-1]['peak_gb']:.2f} GB", flush=True)
            for ask in (first, second):
                print("  ms per stage: " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in ask["stages_ms"].items()), flush=True)
        middle = lambda value: statistics.median(value(run) for run in runs)
        result |= {"load_s": middle(lambda run: run["load_s"]), "ask_peak_gb": max(run["peak_gb"] for run in runs)}
        for i in (0, 1):
            result |= {f"{key}_{i + 1}": middle(lambda run: run["asks"][i][key]) for key in ("first_s", "tokens_per_s", "s", "rows")}
    print(json.dumps({"machine": machine(), **result}))


if __name__ == "__main__":
    main()
