"""Build one engine in a process of its own, with nothing else in it and its memory always at the same addresses.

    python -m ps3_sdk.export.build_apart FOLDER     FOLDER/request.json says what to build; the engine comes as FOLDER/<name>.engine

Builders put some tables in the order of their pointers: only at equal addresses are two engines of the same input equal. A builder that
crashes or is killed for its memory is an error here, not the end of the program.
"""
from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Callable

from ps3_sdk.errors import ExportError, Ps3Error
from ps3_sdk.runtimes.trt_vendor import vendor

from .child import module
from .to_engine import Plan, build, smaller

FIXED_ADDRESSES = 0x0040000     # of personality(2): ADDR_NO_RANDOMIZE
FIXED = "--fixed"


def build_apart(runtime: str, onnx_path: Path, plan: Plan, folder: Path, progress: Callable[[str], None]) -> Path:
    """The file of the engine, in `folder`. Raises ExportError with the builder's reason, also where its process died."""
    request = {"runtime": runtime, "onnx": str(onnx_path), "plan": {**asdict(plan), "timing_cache": plan.timing_cache and str(plan.timing_cache)}}
    _write(folder / "request.json", json.dumps(request).encode())
    noise = folder / "noise.txt"     # a file takes all that a vendor's library says; a pipe would be full before it is read
    with open(noise, "wb") as said:        # order of Python's sets does not depend on chance in there either
        process = subprocess.Popen(module("ps3_sdk.export.build_apart", folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
                                   text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    try:
        with process.stdout:
            for line in process.stdout:
                progress(line.rstrip())
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    answer = folder / "answer.json"
    if answer.is_file():
        wrong = json.loads(answer.read_text())
        answer.unlink()
        raise ExportError(wrong)
    path = folder / f"{plan.name}.engine"
    if code or not path.is_file():
        why = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        fix = f"It was probably out of memory: free some, or build where there is more. {smaller(plan)}." if code == -signal.SIGKILL else "Report it with this message."
        raise ExportError(f"[build] the builder of {plan.name} died ({why}); {_last_words(noise) or 'it said nothing'}. {fix}")
    return path


def _last_words(noise: Path) -> str:
    with open(noise, "rb") as said:
        said.seek(max(0, noise.stat().st_size - 4096))
        return " ".join(said.read().decode("utf-8", "replace").split()[-40:])[:300]


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    if FIXED not in arguments:
        _fix_addresses(folder)
    request = json.loads((folder / "request.json").read_text())
    plan = request["plan"]
    plan = Plan(**{**plan, "inputs": {name: tuple(shape) for name, shape in plan["inputs"].items()}, "sms": tuple(plan["sms"]),
                   "profiles": tuple({size: tuple(each) for size, each in profile.items()} for profile in plan["profiles"]),
                   "timing_cache": plan["timing_cache"] and Path(plan["timing_cache"]), "sizes_given": tuple(plan.get("sizes_given", ()))})
    try:
        engine = build(vendor(request["runtime"], "build"), request["onnx"], plan, lambda line: print(line, flush=True))
        _write(folder / f"{plan.name}.engine", engine)
    except Ps3Error as error:
        (folder / "answer.json").write_text(json.dumps(str(error)))


def _write(path: Path, data: bytes | memoryview) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        path.unlink(missing_ok=True)        # so that there is room for the answer
        raise ExportError(f"[build] {path.parent} cannot be written to ({error.strerror or error}); {path.name} lies there until it is in the bundle. "
                          "Free some space or choose another disk.") from error


def _fix_addresses(folder: Path) -> None:
    """Start this process again without address randomisation; where a container forbids that, go on: engines work, their hashes may differ."""
    try:
        libc = ctypes.CDLL(None)
        if libc.personality(FIXED_ADDRESSES) != -1:
            os.execv(sys.executable, module("ps3_sdk.export.build_apart", folder, FIXED))
    except (OSError, AttributeError):
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
