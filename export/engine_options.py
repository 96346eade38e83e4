"""What to build, checked against what the runtime, the precision and the GPUs can do before any work is done; and what it will take.

Sources: compute capabilities and tensor core types, NVIDIA CUDA C++ Programming Guide, Compute Capabilities; what TensorRT-RTX builds for is
asked of the installed package. Expected sizes and times come from benchmarks/engines.py and are estimates.
"""
from __future__ import annotations

import argparse
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.runtimes.trt_vendor import OLDEST_SM, RTX_SMS, has_arithmetic

RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnx")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
LLM_PRECISIONS = ("fp32", "fp16", "int4")       # of the export that a VILA-HD checkpoint needs first
CALIBRATED = ("fp8", "int8")        # need to know how large activations get
PLATFORMS = {("Linux", "x86_64"): "linux-x86_64", ("Linux", "aarch64"): "linux-aarch64"}
GPUS = {75: "RTX 20", 80: "A100", 86: "RTX 30", 87: "Jetson Orin", 89: "RTX 40", 90: "H100", 100: "B200", 103: "B300", 110: "Jetson Thor", 120: "RTX 50", 121: "DGX Spark"}
SECONDS_PER_GB, SECONDS_EACH = 70.0, 1.2        # of plan, two thirds of it for measuring the error; of network
MAX_FRAMES, SECONDS_PER_FRAME = 32, 150.0       # to calibrate with; of a billion weights of encode, on two cores
RAM_BASE_GB, RAM_PER_PLAN = 0.55, 3.7           # RAM while building: base + this times the largest plan
MOST_GB = 4096                                  # of a workspace
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.1, "int8": 1.1, "int4": 0.7}


@dataclass(frozen=True)
class EngineOptions:
    """What `ps3 build` was asked for; see its help. sms: compute capabilities as 86, 89; empty: all that the runtime and the precision share."""
    runtime: str
    sms: tuple[int, ...] = ()
    precision: str = "fp16"
    calibrate: Path | None = None
    max_tokens: int | None = None
    max_batch: int = 1
    workspace_gb: float | None = None
    check_frame: Path | None = None
    timing_cache: Path | None = None
    llm_precision: str = "fp32"
    system: tuple[str, str] = field(default_factory=lambda: (platform.system(), platform.machine()))

    @property
    def platform(self) -> str:
        return PLATFORMS[self.system]

    @property
    def workspace_bytes(self) -> int | None:
        return None if self.workspace_gb is None else int(self.workspace_gb * 2**30)


def check_options(options: EngineOptions, rtx: Sequence[int] | None = RTX_SMS) -> None:
    """Refuse in words what cannot be built whatever is installed. Raises InputError for values, ExportError for combinations.

    rtx: GPUs that TensorRT-RTX builds for, None where that is still to be asked of it.
    """
    _one_of("runtime", options.runtime, RUNTIMES)
    _one_of("precision", options.precision, PRECISIONS)
    _one_of("llm-precision", options.llm_precision, LLM_PRECISIONS)
    for name, value in (("max-tokens", options.max_tokens), ("max-batch", options.max_batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"[build] {name} is {value!r}; a whole number of at least 1 is needed.")
    if options.workspace_gb is not None and not 0 < options.workspace_gb < MOST_GB:
        raise InputError(f"[build] workspace is {options.workspace_gb!r} GB; more than 0 and less than {MOST_GB} is needed. Leave it out to let the builder take what the GPU has.")
    if options.runtime == "onnx":
        return _check_onnx(options)
    if options.system not in PLATFORMS:
        raise ExportError(f"[build] this is {' '.join(options.system)}; engines are built on Linux, x86_64 or aarch64. On Windows use WSL, or --runtime onnx.")
    for sm in options.sms:
        _check_sm(sm, options, rtx)
    if options.calibrate is not None and options.precision not in CALIBRATED:
        raise InputError(f"[build] --calibrate was given; {options.precision} needs no calibration, {' and '.join(CALIBRATED)} do. Leave it out.")
    if options.precision in CALIBRATED and options.calibrate is None:
        raise InputError(f"[build] {options.precision} without --calibrate; how large activations get must be measured on frames of the kind it will see. "
                         "Pass --calibrate FOLDER with some of them, or choose fp16.")
    if options.calibrate is not None:
        calibration_files(options.calibrate)
    if options.timing_cache is not None and options.runtime != "tensorrt":
        raise InputError("[build] --timing-cache was given; only TensorRT times its kernels while building, TensorRT-RTX chooses them on the GPU. Leave it out.")
    if options.timing_cache is not None and (options.timing_cache.is_dir() or not options.timing_cache.absolute().parent.is_dir()):
        raise InputError(f"[build] --timing-cache {options.timing_cache} is no file in a folder that exists; it is read and written. Name one, as engine.cache.")


def check_tokens(options: EngineOptions, num_scales: int) -> None:
    """Raises InputError: engines of fewer patches than the model has high-res scales; their error is measured on at least one of each."""
    if options.max_tokens is not None and options.max_tokens < num_scales:
        raise InputError(f"[build] max-tokens is {options.max_tokens}; a look picks in {num_scales} high-res scales, so at least {num_scales} are needed. Leave it out, or give more.")


def _check_onnx(options: EngineOptions) -> None:
    if options.precision not in ("fp32", "fp16"):
        fix = "ps3 export CHECKPOINT -o engine.plan --precision int8" if options.precision == "int8" else "--precision fp16"
        raise ExportError(f"[build] {options.precision} for --runtime onnx; ONNX Runtime's CPU provider runs fp32 and fp16 networks of this kind. Use {fix}.")
    for name, value in (("--sm", options.sms), ("--workspace", options.workspace_gb), ("--calibrate", options.calibrate), ("--timing-cache", options.timing_cache),
                        ("--max-tokens", options.max_tokens), ("--max-batch", options.max_batch != 1)):
        if value:
            raise InputError(f"[build] {name} was given; an ONNX bundle is for any machine and any number of tokens. Leave it out.")


def _check_sm(sm: int, options: EngineOptions, rtx: Sequence[int] | None) -> None:
    if options.precision == "fp8" and sm == 87:
        raise ExportError(f"[build] fp8 for {named(sm)}; that GPU has no fp8 arithmetic. Build with --precision int8 --calibrate FOLDER.")
    if not has_arithmetic(options.precision, sm):
        better = "fp16" if has_arithmetic("fp16", sm) else "fp32"
        raise ExportError(f"[build] {options.precision} for {named(sm)}; that GPU has no {options.precision} arithmetic, sm_{OLDEST_SM[options.precision]} and newer do. "
                          f"Build with --precision {better}, or leave {sm} out of --sm.")
    if options.runtime == "tensorrt-rtx" and rtx is not None and sm not in rtx:
        raise ExportError(f"[build] {named(sm)} is none of the GPUs that TensorRT-RTX builds for ({', '.join(map(named, rtx))}). "
                          "Build on that machine with --runtime tensorrt.")


def named(sm: int) -> str:
    return f"sm_{sm} ({GPUS[sm]})" if sm in GPUS else f"sm_{sm}"


def known_sms(module) -> tuple[int, ...]:
    """The GPUs that an installed TensorRT-RTX builds for."""
    return tuple(sorted(int(name[2:]) for name in vars(module.ComputeCapability) if name.startswith("SM") and name[2:].isdigit()))


def rtx_sms(options: EngineOptions, module) -> tuple[int, ...]:
    """The GPUs of a TensorRT-RTX build. Raises ExportError for one that this release does not know."""
    known = known_sms(module)
    unknown = [sm for sm in options.sms if sm not in known]
    if unknown:
        raise ExportError(f"[build] tensorrt-rtx {module.__version__} does not build for {', '.join(map(named, unknown))}; it knows {', '.join(map(named, known))}. "
                          "Choose among these, or upgrade: pip install -U tensorrt-rtx")
    wanted = options.sms or [sm for sm in known if sm >= max(OLDEST_SM[options.precision], 80)]
    return tuple(sorted(set(wanted)))


def calibration_files(folder: Path) -> list[Path]:
    """Picture files of a folder, by name. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"[calibrate] {folder} is no folder; a folder of frames is needed, of the kind that the engine will see. Check the path.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"))
    if not found:
        raise InputError(f"[calibrate] {folder} holds no picture; at least one .jpg or .png is needed, better ten of the kind that the engine will see. "
                         "Noise or drawn pictures would give wrong ranges in silence.")
    return found


def calibration_frames(folder: Path) -> tuple[list[Path], Path]:
    """Pictures to calibrate with, MAX_FRAMES of a larger folder, evenly; and one to measure the error on, which is none of these where there are several."""
    *frames, measured = calibration_files(folder)
    count = min(len(frames), MAX_FRAMES)
    return [frames[i * len(frames) // count] for i in range(count)] or [measured], measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="an engine.plan with ONNX networks, a checkpoint folder or hub id, or the word default for the embedded bundle")
    parser.add_argument("-o", "--output", required=True, metavar="PLAN")
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--sm", type=int, nargs="+", default=[], metavar="N", help="GPUs to build for, as 86 89 120 (tensorrt-rtx: several at once; tensorrt: this machine's)")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="default: fp16; fp32 for onnx")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help=f"frames of the kind it will see, for int8 and fp8; of more than {MAX_FRAMES}, as many, evenly")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most patches of one look (default: what a full look of the model takes)")
    parser.add_argument("--max-batch", type=int, default=1, metavar="B", help="most frames or questions in one run")
    parser.add_argument("--workspace", type=float, metavar="GB", help="memory of the GPU that the builder may use")
    parser.add_argument("--check-frame", type=Path, metavar="FRAME", help="picture to measure the error on (default: the last of --calibrate, which is not calibrated with, else a drawn one)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="of tensorrt: kernels timed before are not timed again, and the same are chosen")
    parser.add_argument("--llm-precision", choices=LLM_PRECISIONS, default="fp32", help="of the language model of a VILA-HD checkpoint, which is exported first")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and about how much memory and time it takes")


def from_arguments(options: argparse.Namespace) -> EngineOptions:
    precision = options.precision or ("fp32" if options.runtime == "onnx" else "fp16")
    return EngineOptions(options.runtime, tuple(options.sm), precision, options.calibrate, options.max_tokens, options.max_batch, options.workspace, options.check_frame,
                         options.timing_cache, options.llm_precision)


@dataclass(frozen=True)
class Estimate:
    """plan_bytes: by network."""
    plan_bytes: dict[str, int]
    ram_gb: float
    seconds: float
    disk_bytes: int

    def lines(self, options: EngineOptions, sms: tuple[int, ...]) -> list[str]:
        rows = [f"{name:<15}{size / 1e6:9.1f} MB" for name, size in self.plan_bytes.items()]
        free = _free_ram_gb()
        target = f" for {', '.join(map(named, sms))}" if sms else ""
        return [f"would build {options.runtime} in {options.precision}{target}; expected, by what other builds took:", *rows,
                f"in all        {sum(self.plan_bytes.values()) / 1e6:10.1f} MB, {self.disk_bytes / 1e9:.1f} GB of disk while building",
                f"RAM           {self.ram_gb:10.1f} GB" + (f" (free here: {free:.1f})" if free is not None else ""),
                f"time          {self.seconds:10.0f} s on two cores" + (", more where kernels are timed on the GPU" if options.runtime == "tensorrt" else "")]


def estimate(sizes: dict[str, int], options: EngineOptions) -> Estimate:
    """sizes: number of weights of each network."""
    plans = {name: int(count * BYTES_PER_WEIGHT[options.precision]) + (0 if options.runtime == "onnx" else 1_500_000) for name, count in sizes.items()}
    total, largest = sum(plans.values()), max(plans.values())
    ram = RAM_BASE_GB + (max(sizes.values()) * 8 / 1e9 if options.runtime == "onnx" else RAM_PER_PLAN * largest / 1e9)
    seconds = SECONDS_EACH * len(plans) + SECONDS_PER_GB * total / 1e9
    if options.precision in CALIBRATED and options.calibrate is not None:
        seconds += SECONDS_PER_FRAME * len(calibration_frames(options.calibrate)[0]) * sizes["encode"] / 1e9
    return Estimate(plans, ram, seconds, 3 * total)


def _free_ram_gb(meminfo: str | Path = "/proc/meminfo") -> float | None:
    """What programs can still have: pages that only cache files count as free, unlike in sysconf's SC_AVPHYS_PAGES. None: not told here."""
    try:
        return next(int(line.split()[1]) for line in Path(meminfo).read_text().splitlines() if line.startswith("MemAvailable:")) / 1e6
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _one_of(name: str, value, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"[build] {name} is {value!r}; one of {', '.join(known)} is needed.")
