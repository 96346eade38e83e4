"""Where score, gather and position rows run: on the processor, or on the GPU that the networks run on.

Both have the same methods and give the same values, to the bit (to rounding, where a model keeps its position residuals as rows and columns). What
HostOps makes are numpy arrays; what DeviceOps makes for a network are DeviceTensors, and the network takes them on the GPU. What is picked is
decided on the processor in both: a map has 729 values.
"""
from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Sequence

import numpy as np

from . import _core
from .errors import ClosedError, InputError, RuntimeFailedError
from .position import full_residual, position_rows

STEP_BYTES = 4 << 20     # of blocks on a GPU; smaller ones are powers of two
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

    def placed(self, frames: Sequence) -> list:
        """The frames where patches() reads them."""
        return list(frames)

    def patches(self, frames: Sequence, picks: Sequence[Picks], patch_px: int) -> np.ndarray:
        """(frames, n, 3 * patch_px^2) f32: n patches of each frame, scale by scale."""
        return self.together(frames, [(picks, patch_px)])[0]

    def together(self, frames: Sequence, wanted: Sequence[tuple[Sequence[Picks], int]]) -> list[np.ndarray]:
        """What patches() gives for each (picks, patch_px) of wanted. Cut together: whole frames at several scales share work."""
        g, found = self.geometry, [np.empty((len(frames), count(picks), 3 * patch_px ** 2), np.float32) for picks, patch_px in wanted]
        for i, frame in enumerate(frames):
            if frame.device != "cpu":
                raise InputError(f"[gather] the frame lies on {frame.device}; this session gathers on the processor, as {self.why}. Pass Frame.of(frame).cpu(), or open an engine, or "
                                 "an ONNX bundle with device=\"cuda\", where the core has CUDA kernels.")
            every = [(px, patch_px, ids, out[i, part]) for (picks, patch_px), out in zip(wanted, found) for px, ids, part in parts(picks[i])]
            _core.gather_parts(frame.core, g["scales_px"][-1], every, g["mean"], g["std"], self.num_threads)
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

    def __init__(self, geometry: dict, tables: dict, stream: int | None = None, num_threads: int = 0):
        from .runtimes.cuda_driver import Driver
        from .runtimes.device_memory import Pool
        self.geometry, self._stream, self._lock, self._residuals = geometry, stream, threading.RLock(), {}
        self._cuda, self._driver = None, Driver()
        self._pool = Pool(self._driver)
        try:
            with self._driver.current():
                self._cuda = _core.Cuda(stream or 0, 0, num_threads)
                self._table, self._weight, self._bias = (self._cuda.upload(np.ascontiguousarray(tables[name])) if name in tables else None
                                                         for name in ("position", "view_prompt_weight", "view_prompt_bias"))
                for px in geometry["scales_px"]:
                    residual = full_residual(tables, geometry, px)
                    self._residuals[px] = None if residual is None else self._cuda.upload(residual)
            self.positions([{geometry["scales_px"][-1]: np.zeros(1, np.int32)}])
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _at_work(self):
        """One call at a time, with the GPU's context; gives the core's ops."""
        with self._lock:
            if self._cuda is None:
                raise ClosedError("[cuda] the session of these ops is closed; open a new one: ps3_sdk.Session(...).")
            with self._driver.current():
                yield self._cuda

    @property
    def copies(self) -> dict:
        """How often and how much was copied between host and GPU by these ops: to_device, to_device_bytes, to_host, to_host_bytes."""
        with self._at_work() as cuda:
            return cuda.copies

    def score(self, low_features, view_features, prompt: np.ndarray) -> np.ndarray:
        if not np.isfinite(prompt).all():
            raise InputError(f"[score] the prompt holds {int((~np.isfinite(prompt)).sum())} NaN or infinite values. Check what made it.")
        with self._at_work() as cuda:
            query = self._put(prompt)
            low, view = (self._put(each) if isinstance(each, np.ndarray) else each for each in (low_features, view_features))
            g = self.geometry["scales_px"][0] // self.geometry["patch_px"]
            prob = cuda.download(cuda.score(low, view, query, self._weight, self._bias, self._new((g, g))))
        if not np.isfinite(prob).all():
            raise InputError("[score] features or prompt hold values that make a probability NaN. Check the frame and what made the prompt.")
        return prob

    def placed(self, frames: Sequence) -> list:
        """Frames of the host copied to the GPU, each once however often it is gathered from; frames of the GPU themselves."""
        with self._at_work() as cuda:
            found = []
            for frame in frames:
                found.append(frame if frame.device != "cpu" else frame.copied(lambda plane: self._put(plane, "uint8")))
            cuda.synchronize()
        return found

    def patches(self, frames: Sequence, picks: Sequence[Picks], patch_px: int):
        g, shape = self.geometry, (len(frames), count(picks), 3 * patch_px ** 2)
        with self._at_work() as cuda:
            found = self._new(shape)
            for frame in filter(_is_the_users, frames):
                self._check_context(frame)
            if self._stream and any(_is_the_users(frame) for frame in frames):
                cuda.order_after(0)         # which what wrote the frame comes before
            for i, (frame, each) in enumerate(zip(frames, picks)):
                cuda.gather(frame.core, g["scales_px"][-1], [(px, patch_px, ids, found[i][part]) for px, ids, part in parts(each)], g["mean"], g["std"])
            cuda.synchronize()
        return found

    def together(self, frames: Sequence, wanted: Sequence[tuple[Sequence[Picks], int]]) -> list:
        return [self.patches(frames, *each) for each in wanted]

    def positions(self, picks: Sequence[Picks]):
        g = self.geometry
        with self._at_work() as cuda:
            found = self._new((len(picks), count(picks), g["width"]))
            for i, each in enumerate(picks):
                for px, ids, part in parts(each):
                    cuda.position_rows(self._table, g["position_grid"], px // g["patch_px"], ids, self._residuals[px], g["position"] == "crop", found[i][part])
            cuda.synchronize()
        return found

    def _check_context(self, frame) -> None:
        if not all(self._driver.has_memory(plane.__array_interface__["data"][0]) for plane in frame._planes):
            raise InputError("[gather] the frame's memory is of another CUDA context than the GPU's primary one, where networks and kernels run. Allocate it there: with PyTorch and CuPy it "
                             "is so by itself, with PyCUDA by pycuda.autoprimaryctx in place of pycuda.autoinit.")

    def to_host(self, tensor) -> np.ndarray:
        """A copy of a tensor that these ops made."""
        with self._at_work() as cuda:
            return cuda.download(tensor)

    def close(self) -> None:
        """Give back the GPU's memory, also that of tensors which are still in use: they say so. A second call does nothing."""
        with self._lock:
            if self._pool.closed:
                return
            from .runtimes.cuda_driver import CudaError
            try:
                with self._driver.current():
                    self._cuda = self._table = self._weight = self._bias = None
                    self._residuals = {}
                    self._pool.close()
            except CudaError:       # the GPU is gone, and its memory with it
                self._cuda = None
            finally:
                self._driver.close()

    def _new(self, shape: Sequence[int], dtype: str = "float32"):
        """A DeviceTensor with garbage in it. Its block is rounded up, so that a few more patches fit into one that is there."""
        from .runtimes.cuda_driver import OUT_OF_MEMORY, CudaError
        from .runtimes.device_memory import BYTES, DeviceTensor
        num_bytes = BYTES[dtype] * int(np.prod(shape))
        rounded = 1 << max(num_bytes - 1, 255).bit_length() if num_bytes <= STEP_BYTES else -(-num_bytes // STEP_BYTES) * STEP_BYTES
        try:
            block = self._pool.take(rounded)
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            raise RuntimeFailedError(f"[gather] the GPU's memory is full, {num_bytes / 1e6:.0f} MB are needed. The session can be used further: let go of looks, close other programs, or ask "
                                     "with fewer tokens or a smaller batch.") from error
        return DeviceTensor(self, block, block.address, shape, dtype)

    def _put(self, array: np.ndarray, dtype: str = "float32"):
        made = self._new(array.shape, dtype)
        self._cuda.upload(np.ascontiguousarray(array, dtype), made)
        return made


def _is_the_users(frame) -> bool:
    """Whether it lies on the GPU and was not placed there by ops."""
    from .runtimes.device_memory import DeviceTensor
    return frame.device != "cpu" and not isinstance(frame._planes[0], DeviceTensor)


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
