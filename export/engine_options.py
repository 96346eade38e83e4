"""What to build, checked against what the runtime, the precision and the GPUs can do before any work is done. engine_sizes.py holds it to the model.

Sources: compute capabilities and tensor core types, NVIDIA CUDA C++ Programming Guide, Compute Capabilities; what TensorRT-RTX builds for is
asked of the installed package.
"""
from __future__ import annotations

import argparse
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

from ps3_sdk.atomic import check_place
from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.runtimes.trt_vendor import OLDEST_SM, RTX_SMS, has_arithmetic

RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnx")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
LLM_PRECISIONS = ("fp32", "fp16", "int4")       # of the export that a VILA-HD checkpoint needs first
CALIBRATED = ("fp8", "int8")        # need to know how large activations get
PLATFORMS = {("Linux", "x86_64"): "linux-x86_64", ("Linux", "aarch64"): "linux-aarch64"}
GPUS = {75: "RTX 20", 80: "A100", 86: "RTX 30", 87: "Jetson Orin", 89: "RTX 40", 90: "H100", 100: "B200", 103: "B300", 110: "Jetson Thor", 120: "RTX 50", 121: "DGX Spark"}
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
MAX_FRAMES = 32                     # to calibrate with
LOOKS_POOLED = 4                    # of the most patches, that one attention pool takes together
# What a manifest can say (bundle.schema.json); builders count sizes in 32 bits, too.
MOST_GB = 1024                      # of a workspace
MOST_BATCH = 2**31 - 1
MOST_TOKENS = MOST_BATCH // LOOKS_POOLED
SM_RANGE = (50, 999)


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
    def sizes_given(self) -> tuple[str, ...]:
        """What makes an engine larger than it is by itself, in the words of the command."""
        return tuple(f"{name} {value}" for name, value in (("--max-tokens", self.max_tokens), ("--max-batch", self.max_batch)) if value not in (None, 1))

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
    for name, value, most in (("max-tokens", options.max_tokens, MOST_TOKENS), ("max-batch", options.max_batch, MOST_BATCH)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most):
            raise InputError(f"[build] {name} is {value!r}; a whole number from 1 to {most} is needed.")
    if options.workspace_gb is not None and not 0 < options.workspace_gb <= MOST_GB:
        raise InputError(f"[build] workspace is {options.workspace_gb!r} GB; more than 0 and at most {MOST_GB} is needed. Leave it out to let the builder take what the GPU has.")
    for sm in options.sms:
        if isinstance(sm, bool) or not isinstance(sm, int) or not SM_RANGE[0] <= sm <= SM_RANGE[1]:
            raise InputError(f"[build] sm is {sm!r}; a GPU's compute capability without its dot is needed, as 86 for 8.6. Ask for it on that machine: nvidia-smi --query-gpu=compute_cap --format=csv")
    if options.runtime == "onnx":
        return _check_onnx(options)
    if options.system not in PLATFORMS:
        raise ExportError(f"[build] this is {' '.join(options.system)}; engines are built on Linux, x86_64 or aarch64. On Windows use WSL, or --runtime onnx.")
    if options.runtime == "tensorrt" and len(set(options.sms)) > 1:
        raise ExportError(f"[build] sm {', '.join(map(str, options.sms))} was asked for; TensorRT builds for one GPU, the one it runs on. Leave --sm out and build on each machine, or use "
                          "--runtime tensorrt-rtx, which builds for several at once.")
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
    if options.timing_cache is not None and (os.path.isdir(options.timing_cache) or not os.path.isdir(options.timing_cache.absolute().parent)):
        raise InputError(f"[build] --timing-cache {options.timing_cache} is no file in a folder that exists; it is read and written. Name one, as engine.cache.")


def check_files(output: str | Path, options: EngineOptions) -> None:
    """Raises ExportError where `output` cannot be written; InputError for a timing cache that cannot, for a frame to measure on that is no picture, and for frames to
    calibrate with whose headers are none: what is damaged behind a header is found when it is decoded."""
    from ps3_sdk.picture import size_of_file

    from .check_picture import read_picture
    check_place(output, "build", ExportError)
    if options.timing_cache is not None:
        check_place(options.timing_cache, "build")
    if options.check_frame is not None:
        read_picture(options.check_frame)
    if options.calibrate is not None:
        frames, measured = calibration_frames(options.calibrate)
        for path in (*frames, measured):
            size_of_file(path)


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
        better, oldest = "fp16" if has_arithmetic("fp16", sm) else "fp32", OLDEST_SM[options.precision]
        others = f"sm_{oldest} and newer do" if sm < oldest else "unlike most that are as new"
        raise ExportError(f"[build] {options.precision} for {named(sm)}; that GPU has no {options.precision} arithmetic, {others}. "
                          f"Build with --precision {better}, or leave {sm} out of --sm.")
    if options.runtime == "tensorrt-rtx" and rtx is not None and sm not in rtx:
        raise _not_of_rtx([sm], "TensorRT-RTX", rtx)


def _not_of_rtx(sms: list[int], release: str, known: Sequence[int]) -> ExportError:
    """Other releases of TensorRT-RTX build for some of the GPUs that this one does not know, none for the rest."""
    newer = all(sm in RTX_SMS for sm in sms)
    fix = "Choose among these, or upgrade: pip install -U tensorrt-rtx" if newer else "Build on that machine with --runtime tensorrt."
    return ExportError(f"[build] {release} does not build for {', '.join(map(named, sms))}; it knows {', '.join(map(named, known))}. {fix}")


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
        raise _not_of_rtx(unknown, f"tensorrt-rtx {module.__version__}", known)
    wanted = options.sms or [sm for sm in known if sm >= max(OLDEST_SM[options.precision], 80)]
    return tuple(sorted(set(wanted)))


def calibration_files(folder: Path) -> list[Path]:
    """Picture files of a folder, by name. Raises InputError when there are none."""
    try:
        named_so = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    except PermissionError as error:
        raise InputError(f"[calibrate] {folder} cannot be listed: {error.strerror}; a folder of frames is needed. Check its permissions.") from error
    except OSError as error:
        raise InputError(f"[calibrate] {folder} is no folder; a folder of frames is needed, of the kind that the engine will see. Check the path.") from error
    found = [path for path in named_so if os.path.isfile(path) or not os.path.exists(path)]     # a link to nothing is refused when it is opened, not passed over
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
    parser.add_argument("source", metavar="SOURCE", help="an engine.plan with ONNX networks, a checkpoint folder or hub id, or the word default for the embedded bundle (./default: a folder of that name)")
    parser.add_argument("-o", "--output", required=True, metavar="PLAN")
    parser.add_argument("--runtime", choices=RUNTIMES, required=True)
    parser.add_argument("--sm", type=int, nargs="+", default=[], metavar="N", help="GPUs to build for, as 86 89 120 (tensorrt-rtx: several at once; tensorrt: this machine's)")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="default: fp16; fp32 for onnx")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help=f"frames of the kind it will see, for int8 and fp8; of more than {MAX_FRAMES}, as many, evenly")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most patches of one look (default: what a full look of the model takes); fewer than an ask wants are asked in several looks")
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


def _free_ram_gb(meminfo: str | Path = "/proc/meminfo") -> float | None:
    """What programs can still have: pages that only cache files count as free, unlike in sysconf's SC_AVPHYS_PAGES. None: not told here."""
    try:
        return next(int(line.split()[1]) for line in Path(meminfo).read_text().splitlines() if line.startswith("MemAvailable:")) / 1e6
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _one_of(name: str, value, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"[build] {name} is {value!r}; one of {', '.join(known)} is needed.")
