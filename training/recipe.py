"""The whole recipe, from fonts to curves: ps3 train RUN. Continues where it was stopped.

Every step is a command of its own, printed before it runs; training/README.md says what it is for. A step that is done is not done again; confidence,
some minutes, is measured each time.
"""
from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from ps3_sdk.errors import InputError, RuntimeFailedError, RuntimeMissingError
from ps3_sdk.export.child import module
from ps3_sdk.export.stop import ended_by_sigterm

# Threads that wait turn and slow each other down wherever anything else runs; the allocator keeps what it has.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "67108864"}
NEEDED = {"torch": "export", "safetensors": "export", "matplotlib": "eval"}      # package -> extra that has it; the last one for curves, at the very end
SCENES, FEWEST = 240, 6         # that confidence is measured on; of a small share of the recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of this training; its checkpoint lies in RUN/model, curves in RUN/curves.png")
    parser.add_argument("--pool", type=Path, help="folder of text to read, 16 GB (default: RUN/pool)")
    parser.add_argument("--begin", metavar="FOLDER", help="go on from this checkpoint folder, such as training/model of the sources: stages answer and score alone")
    parser.add_argument("--frames", type=int, default=360, help="of text to read, 43 MB each (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="default: one per core, or one on a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipe's steps, to train longer or to try it: with --frames 4 --share 0.003 it takes minutes (default: %(default)g)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")


def commands(options: argparse.Namespace) -> list[list[str]]:
    """The recipe's steps as commands, in order."""
    run, pool, cores = options.folder, options.pool or options.folder / "pool", os.cpu_count() or 1
    on_gpu = options.device != "cpu"
    machine = {"processes": options.processes or (1 if on_gpu else cores), "device": options.device, "seed": options.seed}
    # a GPU takes many scenes in one pass; the cores make them
    many = {"looks": 20, "windows": 512, "spelt": 480, "uses": 6, "ring": 160, "workers": max(1, cores - 7), "dense-workers": min(3, cores)} if on_gpu else {}
    steps = lambda number: {"steps": max(1, round(number * options.share))}
    made = [(["pool", pool], {"split": "train", "frames": options.frames, "workers": cores}), (["pool", pool], {"split": "val", "frames": 4})]
    if options.begin is None:
        made += [(["read", pool, run], steps(3250) | {"batch": 64} | machine),
                 (["answer", pool, run, "look"], steps(1550) | {"spelt": 48, "looks": 2, "decay-from": 0.5, "least": 0.3} | many | machine),
                 (["places", run / "model", run / "placed"], steps(180)),
                 (["answer", pool, run, "look_on", "--still"], {"begin": run / "placed"} | steps(360) | {"windows": 16, "spelt": 40, "looks": 4, "uses": 4, "lr": 0.6,
                  "decay-from": 0.4, "least": 0.25} | many | machine)]
    answer, small = {"windows": 32, "spelt": 80, "places": 4, "looks": 1, "lr": 0.9, "decay-from": 0.35} | steps(1600), []
    if options.begin is not None:       # a model that is trained loses at such rates what it reads
        answer, small = {"begin": options.begin, "windows": 32, "spelt": 96, "scenes": 2, "looks": 4, "questions": 16, "ring": 20, "lr": 0.2, "decay-from": 0.02, "least": 0.03,
                         "mean-over": 150} | steps(900), ["--small"]
    made += [(["answer", pool, run, "answer", *small], answer | many
              | ({"scenes": 20} if on_gpu else {}) | machine),
             (["answer", pool, run, "score", "--small"], steps(900) | {"looks": 6, "questions": 16, "ring": 48, "lr": 0.4, "decay-from": 0.3} | many | machine),
             (["confidence", run / "model"], {"scenes": max(FEWEST, round(SCENES * min(options.share, 1)))}),
             (["curves", run, "-o", run / "curves.png"], {})]
    return [[f"ps3_sdk.training.{name}", *map(str, given), *(word for key, value in chosen.items() for word in (f"--{key}", str(value)))] for (name, *given), chosen in made]


@ended_by_sigterm()
def train(options: argparse.Namespace) -> None:
    """Raises InputError: a checkpoint folder to begin with that is none; RuntimeMissingError: a package is not installed; RuntimeFailedError: a step failed, and how to go on."""
    if options.begin is not None and not (Path(options.begin) / "config.json").exists():
        raise InputError(f"[train] {options.begin} has no config.json; --begin takes a checkpoint folder, such as training/model of the sources.")
    if options.device not in ("cpu", "cuda") or options.frames < 1 or not 0 < options.share < 1e6 or options.processes is not None and options.processes < 1:
        raise InputError(f"[train] --device {options.device}, --frames {options.frames}, --share {options.share:g}, --processes {options.processes}; cpu or cuda, at least one frame, "
                         "a share above 0 and at least one process are needed.")
    if options.dry_run:
        return print(*(told(command) for command in commands(options)), sep="\n")
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise RuntimeMissingError(f"[train] {', '.join(missing)} not installed, training needs it. pip install 'ps3_sdk[{','.join(dict.fromkeys(NEEDED[each] for each in missing))}]'")
    start = time.perf_counter()
    for command in commands(options):
        print(f"{(time.perf_counter() - start) / 60:6.1f} min  {told(command)}", file=sys.stderr, flush=True)
        if code := run(module(*command)):
            raise RuntimeFailedError(f"[train] {command[0]} ended with {code}; its last lines say why. What it finished is kept: run the same command again.")


def told(command: list[str]) -> str:
    """As a shell takes it."""
    return shlex.join(["python", "-m", *command])


def run(command: list[str]) -> int:
    """The exit code of a step. Ctrl-C is for this process alone, which ends the step: it ends its own processes and frees their memory."""
    deaf = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)        # and so are the processes that it begins
    child = subprocess.Popen(command, env={**ENVIRONMENT, **os.environ}, preexec_fn=deaf)
    try:
        return child.wait()
    except BaseException:
        print("ps3: stopping this step; what is saved is kept, the same command goes on from there", file=sys.stderr, flush=True)
        child.terminate()
        try:
            child.wait()
        finally:
            child.kill()        # where Ctrl-C comes again; of what has ended nothing
        raise
