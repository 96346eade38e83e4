"""TensorRT 10 and 11: engines built for one GPU, on that GPU. Desktops and servers from pip, Jetsons from JetPack."""
from __future__ import annotations

from typing import Sequence

from . import trt_common


def load(bundle, name: str, threads: int = 0, keep: bool = True, stream: int | None = None, stays: Sequence[str] = ()) -> "trt_common.EngineNetwork":
    """See base and trt_common.load. threads, keep: of no meaning here, engines stay on the GPU."""
    return trt_common.load("tensorrt", "trt", bundle, name, stream, stays)
