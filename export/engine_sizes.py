"""The sizes that engines are asked for, held to the model that they are of; and what a build will take.

Expected sizes and times come from benchmarks/engines.py and are estimates. Neither RAM nor time depends on --max-tokens or --max-batch: TensorRT-RTX 1.7 took the
same for 80,000 patches and for 500 frames. What grows is memory of the GPU, which the builder refuses beyond its workspace.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ps3_sdk.budget import fitting
from ps3_sdk.errors import InputError

from .engine_options import CALIBRATED, EngineOptions, _free_ram_gb, calibration_frames, named

QUANTISED = (*CALIBRATED, "int4")
BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.1, "int8": 1.1, "int4": 0.7}      # of encode; the rest of a quantised model is fp16
BYTES_PER_PRODUCT = 140_000                     # code of an engine, which other operators share
SECONDS_PER_GB, SECONDS_EACH = 70.0, 1.2        # of weights, two thirds of it for measuring the error; of network
TIMES_QUANTISED = 2.0                           # as long, at most: weights are rounded, and measured again while layers go back to fp16
SECONDS_PER_FRAME = 150.0                       # of calibration; of a billion weights of encode, on two cores
RAM_BASE_GB, RAM_PER_GB = 0.55, 3.55            # while building: base + this times the largest network
WORKSPACE_BYTES = 64 << 30                      # that TensorRT-RTX 1.7 takes where nothing else is said
LARGEST_GPU_BYTES = 288 << 30                   # of a B300
HELD = 6                                        # vectors of the encoder's width that a patch takes at once, in the engine's precision, besides its pixels


class Size(NamedTuple):
    """Of a network. products: matrix products and convolutions."""
    weights: int
    products: int = 0


def check_sizes(options: EngineOptions, manifest: dict) -> None:
    """Raises InputError: a --max-tokens with which some high-res scale would have no patch, or more than the model has; sizes that take more memory than a builder gives.

    manifest: of the source; its geometry and language are read.
    """
    g, tokens = manifest["geometry"], options.max_tokens
    least, most = least_tokens(manifest), sum((px // g["patch_px"]) ** 2 for px in g["scales_px"][1:]) + _carried(manifest)
    if tokens is not None and tokens < least:
        r = _block_side(manifest)
        share = "a patch" if r == 1 else f"a block of {r} x {r} patches, a row of the language model,"
        raise InputError(f"[build] max-tokens is {tokens}; a look shares them among {len(g['per_look'])} high-res scales, and each gets {share} from {least} on. "
                         "Leave it out, or give more.")
    if tokens is not None and tokens > most:
        raise InputError(f"[build] max-tokens is {tokens}; a look of this model has at most {most}, all patches of its high-res scales. Leave it out, or give less.")
    if options.runtime == "onnx":
        return
    rtx, needed, sizes = options.runtime == "tensorrt-rtx", gpu_bytes(options, manifest), options.sizes_given
    given = (options.workspace_bytes or WORKSPACE_BYTES) if rtx else LARGEST_GPU_BYTES      # TensorRT's workspace is for what a layer needs besides
    if needed > given:
        at = f"with {' and '.join(sizes)} " if sizes else ""
        raise InputError(f"[build] {at}an engine takes at least {needed / 2**30:.2f} GB of the GPU for what is computed in between; {'the workspace is' if rtx else 'the largest GPUs have'} "
                         f"{given / 2**30:g} GB. Give {'less' if sizes else 'a smaller --max-tokens'}{', or a larger --workspace' if rtx else ''}.")


def least_tokens(manifest: dict) -> int:
    """The least --max-tokens with which a look has patches of every high-res scale that the model looks at; for a language model a whole block of each."""
    shares = [count for count in manifest["geometry"]["per_look"] if count]
    full, block = sum(shares), _block_side(manifest) ** 2
    return min(max((-(-block * full // count) for count in shares), default=1), max(full, 1)) + _carried(manifest)


def looks_of(options: EngineOptions, manifest: dict) -> str | None:
    """What a smaller --max-tokens than the ask that a bundle is made for comes to, in words."""
    per_look, language = manifest["geometry"]["per_look"], manifest.get("language") or {}
    wanted, looks = language.get("num_tokens"), language.get("num_looks", 1)
    if wanted is None:
        wanted = sum(per_look) * looks if isinstance(looks, int) else sum(per_look)     # else "all" of a checkpoint's
    of_one = sum(per_look) if options.max_tokens is None else sum(fitting(manifest["geometry"], options.max_tokens - _carried(manifest))["per_look"])
    return f"an ask, {wanted} patches by default, is made in {-(-wanted // of_one)} looks of at most {of_one}" if of_one < min(wanted, sum(per_look)) else None


def _block_side(manifest: dict) -> int:
    return manifest["language"]["downsample"] if manifest.get("language") else 1


def _carried(manifest: dict) -> int:
    """Patches that whole blocks carry from one look to the next, at most."""
    return _block_side(manifest) ** 2 - 1


def gpu_bytes(options: EngineOptions, manifest: dict) -> int:
    """What an engine holds at once between its inputs and outputs, at the largest sizes and at least."""
    g, each = manifest["geometry"], 4 if options.precision == "fp32" else 2
    look = options.max_tokens or sum(g["per_look"]) + _carried(manifest)
    patches = max(look, (g["scales_px"][0] // g["patch_px"]) ** 2)
    view = (g["view_px"] // g["view_patch_px"]) ** 2 * 3 * g["view_patch_px"] ** 2 if g["view_px"] else 0
    return options.max_batch * each * max(patches * (3 * g["patch_px"] ** 2 + HELD * g["width"]), view)


# -- what a build takes ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Estimate:
    """plan_bytes: by network | gpu_mb: at least, None where the bundle is for any sizes | looks: see looks_of."""
    plan_bytes: dict[str, int]
    ram_gb: float
    seconds: float
    disk_bytes: int
    gpu_mb: float | None = None
    looks: str | None = None

    def lines(self, options: EngineOptions) -> list[str]:
        rows = [f"{name:<15}{size / 1e6:9.1f} MB" for name, size in self.plan_bytes.items()]
        free = _free_ram_gb()
        target = f" for {', '.join(map(named, options.sms))}" if options.sms else ""
        lines = [f"would build {options.runtime} in {options.precision}{target}; expected, by what other builds took:", *rows,
                 f"in all        {sum(self.plan_bytes.values()) / 1e6:10.1f} MB, {self.disk_bytes / 1e9:.1f} GB of disk while building",
                 f"RAM           {self.ram_gb:10.1f} GB" + (f" (free here: {free:.1f})" if free is not None else ""),
                 f"time          {self.seconds:10.0f} s on two cores" + (", more where kernels are timed on the GPU" if options.runtime == "tensorrt" else "")]
        lines += [] if self.gpu_mb is None else [f"GPU memory    {self.gpu_mb:10.1f} MB at least, for what is computed in between at the largest sizes"]
        return lines + ([] if self.looks is None else [self.looks])


def estimate(sizes: dict[str, Size], options: EngineOptions, manifest: dict | None = None) -> Estimate:
    """sizes: of each network | manifest: of the source, for what depends on the number of patches."""
    code, quantised = 0 if options.runtime == "onnx" else BYTES_PER_PRODUCT, options.precision in QUANTISED
    half = max(BYTES_PER_WEIGHT[options.precision], 2.0)        # of networks that are not quantised; and what an encoder takes while it is
    bytes_each = lambda name: BYTES_PER_WEIGHT[options.precision] if name == "encode" else half
    plans = {name: int(size.weights * bytes_each(name)) + size.products * code for name, size in sizes.items()}
    whole = {name: size.weights * half + size.products * code for name, size in sizes.items()}
    largest = max(size.weights for size in sizes.values()) * 8 if options.runtime == "onnx" else RAM_PER_GB * max(whole.values())
    seconds = (SECONDS_EACH * len(plans) + SECONDS_PER_GB * sum(whole.values()) / 1e9) * (TIMES_QUANTISED if quantised else 1)
    if options.precision in CALIBRATED and options.calibrate is not None:
        seconds += SECONDS_PER_FRAME * len(calibration_frames(options.calibrate)[0]) * sizes["encode"].weights / 1e9
    on_gpu = None if options.runtime == "onnx" or manifest is None else gpu_bytes(options, manifest) / 1e6
    return Estimate(plans, RAM_BASE_GB + largest / 1e9, seconds, int(3 * sum(whole.values())), on_gpu, None if manifest is None else looks_of(options, manifest))
