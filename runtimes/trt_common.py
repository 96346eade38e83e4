"""What TensorRT and TensorRT-RTX share before anything runs: an engine is checked against this machine. engine.py runs it."""
from __future__ import annotations

import platform
from typing import Sequence

from ps3_sdk.errors import BundleError, RuntimeMissingError

from .cuda_driver import Driver
from .engine import EngineNetwork
from .trt_vendor import rebuild_command, release, vendor

OLDEST_CUDA = {"tensorrt": (12, 0), "tensorrt-rtx": (12, 0)}


def load(runtime: str, where: str, bundle, name: str, stream: int | None = None, stays: Sequence[str] = (), kernels=None) -> EngineNetwork:
    """See base.load; everything about this machine is checked before the engine is touched.

    stream: a CUDA stream's handle, default its own | stays: outputs to leave on the GPU beside those that the manifest says | kernels: a KernelCache, of tensorrt-rtx.
    """
    engine = bundle.manifest["networks"][name]["engine"]
    rebuild = f"Rebuild here: {rebuild_command(runtime, bundle.manifest['networks'], name)}"
    here = f"{platform.system().lower()}-{platform.machine()}"
    if engine["platform"] != here:
        raise BundleError(f"[{where}] {name} of {bundle.path} was built for {engine['platform']}; this is {here}. {rebuild}")
    module = vendor(runtime, where)
    if release(module.__version__) != release(engine["builder"]):
        wanted = ".".join(map(str, release(engine["builder"])))
        raise BundleError(f"[{where}] {name} of {bundle.path} was built by {runtime} {engine['builder']}; here is {module.__version__}, and an engine runs with the release that "
                          f"built it. pip install '{runtime}=={wanted}.*', or: {rebuild}")
    driver = Driver()
    try:
        _check_gpu(runtime, where, driver, bundle, name, rebuild)
    except BaseException:
        driver.close()
        raise
    return EngineNetwork(where, module, driver, bundle, name, stream, rebuild, stays, kernels)


def _check_gpu(runtime: str, where: str, driver, bundle, name: str, rebuild: str) -> None:
    engine = bundle.manifest["networks"][name]["engine"]
    if driver.cuda_version < OLDEST_CUDA[runtime]:
        raise RuntimeMissingError(f"[{where}] the NVIDIA driver serves CUDA up to {'.'.join(map(str, driver.cuda_version))}; {runtime} needs at least "
                                  f"{'.'.join(map(str, OLDEST_CUDA[runtime]))}. Update the driver.")
    if driver.sm not in engine["sms"]:
        built = ", ".join(f"sm_{sm}" for sm in engine["sms"])
        raise BundleError(f"[{where}] {name} of {bundle.path} was built for {built}; this GPU, {driver.name}, is sm_{driver.sm}. "
                          f"Rebuild: {rebuild_command(runtime, bundle.manifest['networks'], name, driver.sm)}")
