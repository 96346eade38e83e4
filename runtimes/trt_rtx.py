"""TensorRT for RTX: engines built ahead for several GPUs, whose kernels are finished on the GPU at the first run."""
from __future__ import annotations

from typing import Sequence

from . import trt_common


def load(bundle, name: str, threads: int = 0, keep: bool = True, stream: int | None = None, stays: Sequence[str] = ()) -> "trt_common.EngineNetwork":
    """See base and trt_common.load. threads, keep: of no meaning here, engines stay on the GPU."""
    return trt_common.load("tensorrt-rtx", "trt_rtx", bundle, name, stream, stays)
