"""TensorRT for RTX: engines built ahead for several GPUs, whose kernels are finished on the GPU at the first run."""
from __future__ import annotations

from typing import Sequence

from . import trt_common
from .kernel_cache import KernelCache


def load(bundle, name: str, threads: int = 0, keep: bool = True, stream: int | None = None, stays: Sequence[str] = (),
         kernel_cache=None) -> "trt_common.EngineNetwork":
    """See base and trt_common.load. threads, keep: of no meaning here, engines stay on the GPU. kernel_cache: a folder for KernelCache, default none."""
    kernels = None if kernel_cache is None else KernelCache(kernel_cache, bundle, name)
    return trt_common.load("tensorrt-rtx", "trt_rtx", bundle, name, stream, stays, kernels)
