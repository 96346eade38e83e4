"""What the benchmarks of the core share: the machine in words, medians of repeated calls, growth of memory, a seeded map."""
from __future__ import annotations

import os
import platform
import statistics
import time

import numpy as np
from ps3_sdk import _core

SCALES_PX, PATCH_PX, BASE_PX = [378, 756, 1512, 3780], 14, 3780
HALF = ([0.5] * 3, [0.5] * 3)


def machine() -> dict:
    """CPU, cores this process may use, versions, and the load of the last minute: figures of a busy machine are not to be trusted."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "load": round(os.getloadavg()[0], 2), "python": platform.python_version(), "numpy": np.__version__, **_core.build_info()}


def clock_networks(session) -> list[float]:
    """Counts, from now on, the seconds spent inside of a session's networks, in the one entry of the list."""
    inside = [0.0]

    def clocked(run):
        def timed(*arguments):
            start = time.perf_counter()
            try:
                return run(*arguments)
            finally:
                inside[0] += time.perf_counter() - start
        return timed
    for network in session._networks.values():
        network.run = clocked(network.run)
        if hasattr(network, "run_into"):
            network.run_into = clocked(network.run_into)
    return inside


def measure_ms(call, repeat: int) -> list[float]:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def median(values) -> float:
    return float(statistics.median(values))


def memory_growth_mb(call) -> float | None:
    """Peak resident memory during call above what was resident before it; None where the kernel does not tell."""
    def status(key):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again from here
        before = status("VmRSS:")
        call()
        return max(0.0, status("VmHWM:") - before)
    except (OSError, StopIteration):
        return None


def frames(height: int, width: int, seed: int = 0) -> dict:
    """{"RGB": Frame, "NV12": Frame} of seeded noise, and the RGB pixels under "pixels"."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    luma, chroma = np.ascontiguousarray(pixels[..., 1]), np.ascontiguousarray(pixels[:height // 2, :, 0])
    return {"pixels": pixels, "RGB": _core.Frame("RGB", [pixels], height, width), "NV12": _core.Frame("NV12", [luma, chroma], height, width)}


def picks(seed: int = 0) -> dict[int, np.ndarray]:
    """Patch ids per high-res scale of one full look, picked by select() from a map: whole blocks, as in use."""
    prob = np.random.default_rng(seed).random((27, 27), dtype=np.float32)
    counts = _core.per_look(SCALES_PX, 2560)
    grids = [size // PATCH_PX for size in SCALES_PX[1:]]
    return {size: _core.select(prob, grid, grid, count, np.zeros(grid * grid, np.uint8))
            for size, grid, count in zip(SCALES_PX[1:], grids, counts)}


def buffers(ids: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """One output per scale, its pages already there, as a session keeps them."""
    return {size: np.full((len(each), 3 * PATCH_PX ** 2), np.nan, np.float32) for size, each in ids.items()}


def gather_all(frame, ids: dict[int, np.ndarray], out: dict[int, np.ndarray], threads: int) -> None:
    for size, each in ids.items():
        _core.gather(frame, BASE_PX, size, PATCH_PX, each, *HALF, threads, out[size])
