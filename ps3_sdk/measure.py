"""What `ps3 bench` and `ps3 doctor` print: timings per stage, and what this installation has and lacks."""
from __future__ import annotations

import importlib.metadata
import os
import platform

import numpy as np

from . import _core
from .errors import InputError, Ps3Error, RuntimeMissingError
from .frame import Frame
from .session import DEFAULT_BUNDLE, Session

EXTRAS = {"export": ("torch", "onnx", "safetensors"), "vlm": ("onnxruntime-genai", "transformers"), "trt": ("tensorrt",), "trt-rtx": ("tensorrt_rtx",), "eval": ("matplotlib",)}


def machine() -> str:
    """One line: processor, cores this process may use, system, Python."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.lower().startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


class Figures(dict):
    """What bench() measured: plain values for JSON, and as text a table of them."""

    def __str__(self) -> str:
        looks = f" in {self['looks']} looks, since the first answer was not sure" if self["looks"] > 1 else ""
        height, width = self["frame"]
        lines = [self["machine"], f"{self['model']}, frame {width}x{height}, {self['patches']} high-res patches{looks}, {self['runs']} runs after a warm-up, score and gather on {self['ops_on']}",
                 f"{'ms':<14}{'p50':>10}{'p95':>10}{'p99':>10}"]
        return "\n".join(lines + [f"{stage:<14}" + "".join(f"{value:>10.2f}" for value in row.values()) for stage, row in self["ms"].items()])


def bench(session: Session, frame=None, prompt: str = "", tokens: int | None = None, runs: int = 10) -> Figures:
    """Ask `runs` times after one warm-up: ms, percentiles per stage and of the whole; patches, all that are encoded for one answer; looks at the frame it takes."""
    if runs < 1:
        raise InputError(f"[bench] runs is {runs}; it must be at least 1.")
    noise = lambda: np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), np.uint8)
    frame = Frame.of(noise() if frame is None else frame)
    session.ask(frame, prompt, tokens=tokens)
    answers = [session.ask(frame, prompt, tokens=tokens) for _ in range(runs)]
    timings = [answer.timing.stages_ms for answer in answers]
    rows = {stage: [timing.get(stage, 0.0) for timing in timings] for stage in timings[0]}
    rows["ask"] = [answer.timing.total_ms for answer in answers]
    figures = {stage: {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 95, 99)} for stage, values in rows.items()}
    looked = [answers[0]] if answers[0].other is None else [answers[0], answers[0].other]
    patches = sum(len(ids) for answer in looked for ids in answer.picked.values())
    return Figures(machine=machine(), model=session.bundle.manifest["model"]["name"], ops_on=session.ops.where, frame=[frame.height, frame.width], prompt=prompt, tokens=tokens,
                   patches=patches, looks=len(looked), runs=runs, ms=figures)


def doctor() -> tuple[list[str], bool]:
    """Returns lines to print and whether `ps3 ask` works here."""
    core = _core.build_info()
    lines = [f"machine     {machine()}", "core        " + ", ".join(f"{key} {value}" for key, value in core.items())]
    lines.append(f"GPU         {_gpu()}")
    for package in ("ps3_sdk", "numpy", "pillow", "onnxruntime", "tokenizers", "ftfy"):
        lines.append(f"{package:<12}{version_of(package) or 'MISSING: pip install ' + package}")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        state = f"not installed ({', '.join(missing)}): pip install 'ps3_sdk[{extra}]'" if missing else ", ".join(f"{p} {_version(p)}" for p in packages)
        lines.append(f"{'[' + extra + ']':<12}{state}")
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        lines.append("onnxruntime for CPUs and for GPUs lie in one folder, and the one installed last is used. For GPUs: "
                     "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu")
    try:
        with Session() as session:
            answer = session.ask(np.zeros((378, 378, 3), np.uint8), "a sign", tokens=16)
        lines.append(f"bundle      {DEFAULT_BUNDLE.name} opens, every hash is right, one ask took {answer.timing.total_ms:.0f} ms")
        return lines + ["all is well"], True
    except Ps3Error as error:
        return lines + [f"bundle      FAILED: {error}"], False


def _gpu() -> str:
    """What engines would run on, and whether the core's kernels run there; else why not."""
    from .runtimes.cuda_driver import Driver
    try:
        driver = Driver()
    except RuntimeMissingError as error:
        return f"none: {error}"
    try:
        found = f"{driver.name}, sm_{driver.sm}, driver for CUDA {'.'.join(map(str, driver.cuda_version))}"
    finally:
        driver.close()
    try:
        _core.Cuda()
    except Ps3Error as error:
        return f"{found}; score and gather run on the processor: {error}"
    return f"{found}; score and gather run there, too"


def version_of(package: str) -> str | None:
    """What is installed of a package, None where nothing is. ONNX Runtime's build for GPUs, installed in place of the other, is ONNX Runtime."""
    return _version(package) or (_version("onnxruntime-gpu") if package == "onnxruntime" else None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
