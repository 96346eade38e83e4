"""What `ps3 build --runtime tensorrt-rtx` costs on this machine, without a GPU: seconds, memory, bytes of the plan, measured error.

    python benchmarks/engines.py [--models default seeded so400m PLAN] [--sm 86 89 120] [--precision fp16] [--rounds 3] [--bundles FOLDER] [--frames PHOTO ...] [--calibrate FOLDER] [--max-tokens N] [--max-batch B]

seeded is a random encoder of width 48; so400m has random weights in the shapes of PS3-4K, exported to float32 ONNX first (2.3 GB in the temporary folder,
or kept in --bundles and used again), which is not counted. With --frames the error is measured on these, one a build. Each build is a process of its own with the builder below it; memory is the
kernel's VmHWM: of the largest process, and sampled of all together. Where the time goes is from the command's own progress. One JSON object ends it.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

from export_peak import Watch
from full_size import export_random
from ps3_sdk.export.child import module


def build(source: str, plan: Path, options: argparse.Namespace, frame: str | None) -> dict:
    """One build: {"s", "check_s", "largest_gb", "together_gb", "plan_mb", "errors"}."""
    command = [*module("ps3_sdk", "build", source), "-o", str(plan), "--runtime", "tensorrt-rtx", "--sm", *map(str, options.sm), "--precision", options.precision]
    command += ["--check-frame", frame] if frame else []
    for name in ("calibrate", "max_tokens", "max_batch"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    start, checked = time.perf_counter(), None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watch = Watch(process.pid)
    watch.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if checked is None and line.startswith("error of"):
            checked = time.perf_counter() - start
    if process.wait():
        raise SystemExit("".join(lines[-5:]))
    seconds = time.perf_counter() - start
    watch.join(timeout=10)
    from ps3_sdk.bundle import Bundle
    with Bundle.open(plan, verify=False) as bundle:
        manifest, members = bundle.manifest, dict(bundle.members)
    return {"s": round(seconds, 1), "check_s": round(checked, 1), "largest_gb": round(watch.largest, 2), "together_gb": round(watch.together, 2),
            "plan_mb": round(plan.stat().st_size / 1e6, 1), "engines_mb": {name: round(members[entry["file"]] / 1e6, 1) for name, entry in manifest["networks"].items()},
            "errors": {stage: float(f"{entry['max_relative_error']:.1e}") for stage, entry in manifest["parity"].items()}, "overlap": manifest["verify"]["picked_overlap"],
            "encode_sha256": manifest["members"]["encode.engine"]["sha256"][:16], "builder": manifest["networks"]["encode"]["engine"]["builder"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["default", "so400m"])
    parser.add_argument("--sm", type=int, nargs="+", default=[86, 89, 120])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", nargs="+", default=[None], metavar="PHOTO")
    parser.add_argument("--calibrate", help="folder of frames, for int8 and fp8")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--bundles", type=Path, help="folder that keeps the exported bundle")
    options = parser.parse_args()
    from ps3_sdk.measure import machine
    print(machine())
    found = {"machine": machine(), "sm": options.sm, "precision": options.precision}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            source = model
            if model == "seeded":
                from ps3_sdk.export.seeded_bundle import write_seeded
                write_seeded(source := Path(folder) / "seeded.plan")
            elif model == "so400m":
                place = options.bundles or Path(folder)
                place.mkdir(parents=True, exist_ok=True)
                source = place / "fp32.plan"
                if not source.exists():
                    export_random(source, "fp32")
            runs = []
            for i in range(max(options.rounds, len(options.frames))):
                runs.append(build(str(source), Path(folder) / "engine.plan", options, options.frames[i % len(options.frames)]))
                print(f"{model} {i + 1}: {json.dumps(runs[-1])}", flush=True)
            span = lambda key: " - ".join(map(str, dict.fromkeys((min(run[key] for run in runs), max(run[key] for run in runs)))))
            same = len({run["encode_sha256"] for run in runs}) == 1
            print(f"{model}, {options.precision} for {len(options.sm)} GPUs: {span('s')} s (of it before building {span('check_s')} s), largest process {span('largest_gb')} GB, "
                  f"together {span('together_gb')} GB, plan {span('plan_mb')} MB, encode {'equal' if same else 'NOT equal'} each time; "
                  f"largest error of a stage {max(max(run['errors'].values()) for run in runs):.1e}, least overlap of picked patches {min(run['overlap'] for run in runs):.2%}")
            found[model] = runs
    print(json.dumps(found))


if __name__ == "__main__":
    main()
