"""Where score, gather and position rows run: on the processor, or on the GPU that the networks run on.

Both have the same methods and give the same values, to the bit (to rounding, where a model keeps its position residuals as rows and columns). What
HostOps makes are numpy arrays; what DeviceOps makes for a network stays on the GPU, and the network takes it from there. What is picked is
decided on the processor in both: a map has 729 values.
"""
from __future__ import annotations

import threading
import weakref
from typing import Sequence

import numpy as np

from . import _core
from .errors import ClosedError, InputError, RuntimeFailedError
from .position import full_residual, position_rows

Picks = dict            # {scale px: ascending int32 patch ids}


class HostOps:
    """The core's loops on the processor. where: "cpu" | why: what keeps them from a GPU | stays: outputs of networks, by network, that ops want left on the GPU."""
    where, stays = "cpu", {}

    def __init__(self, geometry: dict, tables: dict, num_threads: int, why: str = "its networks run there"):
        self.geometry, self.tables, self.num_threads, self.why = geometry, tables, num_threads, why

    def score(self, low_features, view_features, prompt: np.ndarray) -> np.ndarray:
        """(g, g) f32 in (0, 1)"""
        view = None if view_features is None else np.asarray(view_features)
        return _core.score(np.asarray(low_features), view, prompt, self.tables.get("view_prompt_weight"), self.tables.get("view_prompt_bias"))

    def patches(self, frames: Sequence, picks: Sequence[Picks], patch_px: int) -> np.ndarray:
        """(frames, n, 3 * patch_px^2) f32: n patches of each frame, scale by scale."""
        g = self.geometry
        found = np.empty((len(frames), count(picks), 3 * patch_px ** 2), np.float32)
        for frame, each, out in zip(frames, picks, found):
            if frame.device != "cpu":
                raise InputError(f"[gather] the frame lies on {frame.device}; this session gathers on the processor, as {self.why}. Pass Frame.of(frame).cpu(), or open an engine, or "
                                 "an ONNX bundle with device=\"cuda\", where the core has CUDA kernels.")
            for px, ids, part in parts(each):
                _core.gather(frame.core, g["scales_px"][-1], px, patch_px, ids, g["mean"], g["std"], self.num_threads, out[part])
        return found

    def positions(self, picks: Sequence[Picks]) -> np.ndarray:
        """(frames, n, width) f32, what is added to these patches."""
        made = [np.concatenate([position_rows(self.tables, self.geometry, px, ids, self.num_threads) for px, ids in each.items()]) for each in picks]
        return made[0][None] if len(made) == 1 else np.stack(made)

    def close(self) -> None:
        """Let go of the tables."""
        self.tables = {}


class DeviceOps:
    """The core's kernels on the first GPU, where the networks run; tables are copied there when it is made, and one row is made to see that all work.

    Frames of the GPU are read in place, those in host memory are copied over as they are, a byte a channel. Every method is done when it
    returns, on whatever stream it ran. From several threads one call runs at a time. stream: a CUDA stream's handle, default the legacy one.
    Raises RuntimeMissingError: the core has no kernels, none for this GPU, or there is no driver or GPU; RuntimeFailedError: the tables do not fit.
    """
    where, stays = "cuda", {"encode": ("features",), "score_features": ("low_features", "view_features")}

    def __init__(self, geometry: dict, tables: dict, stream: int | None = None):
        self.geometry, self._stream, self._lock, self._pool = geometry, stream, threading.RLock(), _Pool()
        self._cuda = _core.Cuda(stream or 0, 0)
        self._table, self._weight, self._bias = (self._cuda.upload(np.ascontiguousarray(tables[name])) if name in tables else None
                                                 for name in ("position", "view_prompt_weight", "view_prompt_bias"))
        self._residuals = {}
        for px in geometry["scales_px"]:
            residual = full_residual(tables, geometry, px)
            self._residuals[px] = None if residual is None else self._cuda.upload(residual)
        self.positions([{geometry["scales_px"][-1]: np.zeros(1, np.int32)}])

    @property
    def copies(self) -> dict:
        """How often and how much was copied between host and GPU by these ops: to_device, to_device_bytes, to_host, to_host_bytes."""
        return self._on_gpu().copies

    def score(self, low_features, view_features, prompt: np.ndarray) -> np.ndarray:
        if not np.isfinite(prompt).all():
            raise InputError(f"[score] the prompt holds {int((~np.isfinite(prompt)).sum())} NaN or infinite values. Check what made it.")
        with self._lock:
            cuda, query = self._on_gpu(), self._put(prompt)
            low, view = (self._put(each) if isinstance(each, np.ndarray) else each for each in (low_features, view_features))
            g = self.geometry["scales_px"][0] // self.geometry["patch_px"]
            prob = cuda.download(cuda.score(low, view, query, self._weight, self._bias, self._new((g, g))))
        if not np.isfinite(prob).all():
            raise InputError("[score] features or prompt hold values that make a probability NaN. Check the frame and what made the prompt.")
        return prob

    def patches(self, frames: Sequence, picks: Sequence[Picks], patch_px: int) -> "DeviceRows":
        g, shape = self.geometry, (len(frames), count(picks), 3 * patch_px ** 2)
        with self._lock:
            cuda, found = self._on_gpu(), self._new(shape)
            if self._stream and any(frame.device != "cpu" for frame in frames):
                cuda.order_after(0)         # which what wrote the frame comes before
            for i, (frame, each) in enumerate(zip(frames, picks)):
                cuda.gather(frame.core, g["scales_px"][-1], [(px, patch_px, ids, found[i][part]) for px, ids, part in parts(each)], g["mean"], g["std"])
            cuda.synchronize()
        return found

    def positions(self, picks: Sequence[Picks]) -> "DeviceRows":
        g = self.geometry
        with self._lock:
            cuda, found = self._on_gpu(), self._new((len(picks), count(picks), g["width"]))
            for i, each in enumerate(picks):
                for px, ids, part in parts(each):
                    cuda.position_rows(self._table, g["position_grid"], px // g["patch_px"], ids, self._residuals[px], g["position"] == "crop", found[i][part])
            cuda.synchronize()
        return found

    def to_host(self, rows: "DeviceRows") -> np.ndarray:
        with self._lock:
            return self._on_gpu().download(rows)

    def close(self) -> None:
        """Give back the GPU's memory, that of arrays that are still in use when they are forgotten. A second call does nothing."""
        with self._lock:
            self._cuda = self._table = self._weight = self._bias = None
            self._residuals = {}
            self._pool.close()

    def _on_gpu(self):
        if self._cuda is None:
            raise ClosedError("[cuda] the session of these ops is closed; open a new one: ps3_sdk.Session(...).")
        return self._cuda

    def _new(self, shape) -> "DeviceRows":
        return DeviceRows(self, self._pool.take(self._cuda, 4 * int(np.prod(shape))), shape)

    def _put(self, array: np.ndarray) -> "DeviceRows":
        made = self._new(array.shape)
        self._cuda.upload(np.ascontiguousarray(array, np.float32), made)
        return made


class _Pool:
    """Memory of the GPU that comes back when its last array is forgotten and is given out again: no allocation after the first few asks."""

    def __init__(self):
        self._free: dict[int, list] = {}
        self._closed = False
        self._lock = threading.RLock()          # the end of an array may be noticed while this thread is in here

    def take(self, cuda, num_bytes: int) -> "_Memory":
        size = 1 << max(num_bytes - 1, 255).bit_length()        # of the next power of two, so that a little more fits next time
        with self._lock:
            free = self._free.setdefault(size, [])
            array = free.pop() if free else None
        return _Memory(self, self._taken(cuda, size) if array is None else array)

    def _taken(self, cuda, size: int):
        try:
            return cuda.empty((size,), "uint8")
        except RuntimeFailedError:
            with self._lock:
                self._free.clear()              # what is kept in other sizes goes first
            return cuda.empty((size,), "uint8")

    def give_back(self, array) -> None:
        with self._lock:
            if not self._closed:
                self._free.setdefault(array.shape[0], []).append(array)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._free.clear()


class _Memory:
    def __init__(self, pool: _Pool, array):
        self.array = array
        weakref.finalize(self, pool.give_back, array)


class DeviceRows:
    """A packed f32 array on the GPU. shape | rows[3], rows[2:5], rows[None] are views | numpy.asarray copies it to the host."""

    def __init__(self, ops: DeviceOps, memory: _Memory, shape: Sequence[int], offset_bytes: int = 0):
        self._ops, self._memory, self.shape, self._offset = ops, memory, tuple(shape), offset_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | None) -> "DeviceRows":
        if index is None:
            return self._view((1, *self.shape), 0)
        if isinstance(index, slice):
            start, end, step = index.indices(len(self))
            if step != 1:
                raise IndexError("an array on the GPU is cut in steps of 1 along its first dimension")
            return self._view((max(end - start, 0), *self.shape[1:]), start)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._view(self.shape[1:], index)

    def _view(self, shape: Sequence[int], start: int) -> "DeviceRows":
        return DeviceRows(self._ops, self._memory, shape, self._offset + start * self._row_bytes())

    def _row_bytes(self) -> int:
        return 4 * int(np.prod(self.shape[1:]))

    @property
    def __cuda_array_interface__(self) -> dict:
        return {"shape": self.shape, "typestr": "<f4", "data": (self._memory.array.data_ptr + self._offset, False), "strides": None, "version": 3}

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        host = self._ops.to_host(self)
        return host if dtype is None else host.astype(dtype)


def parts(picks: Picks):
    """(scale px, ids, where its rows are among all) of each scale."""
    start = 0
    for px, ids in picks.items():
        yield px, ids, slice(start, start + len(ids))
        start += len(ids)


def count(picks: Sequence[Picks]) -> int:
    """Patches of each frame. Raises InputError: not equally many."""
    numbers = {sum(map(len, each.values())) for each in picks}
    if len(numbers) != 1:
        raise InputError(f"[gather] {' and '.join(map(str, sorted(numbers)))} patches were picked of frames that go through the network together; equally many are needed.")
    return numbers.pop()
