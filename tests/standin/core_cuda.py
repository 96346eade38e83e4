"""What ps3_sdk calls of _core.Cuda, standing in for it: the processor's ops in memory of gpu.Gpu, done when the stream is waited for.

Until then what they write holds garbage, so a missing wait shows; so does reading what was freed.
"""
import weakref

import gpu
import numpy as np

from ps3_sdk import _core
from ps3_sdk.errors import InputError, RuntimeFailedError


class Array:
    def __init__(self, address, shape, dtype, owner):
        self.data_ptr, self.shape, self.dtype, self._owner = address, tuple(shape), np.dtype(dtype), owner
        self.__cuda_array_interface__ = {"shape": self.shape, "typestr": self.dtype.str, "data": (address, False), "strides": None, "version": 3}


class Memory:
    def __init__(self, num_bytes):
        try:
            self.address = gpu.Driver.allocate(Driverless, num_bytes)
        except gpu.CudaError as error:
            raise RuntimeFailedError("[cuda] no device memory (cudaErrorMemoryAllocation). Free some, or use a smaller budget.") from error
        weakref.finalize(self, gpu.GPU.memory.pop, self.address, None)


class Driverless:
    """The part of gpu.Driver that allocates."""
    gpu = gpu.GPU
    _free_bytes = staticmethod(lambda: gpu.Driver._free_bytes(Driverless))
    _call = staticmethod(lambda name: gpu.GPU.calls.append(name))


class OnGpu:
    """A frame's core that lies on the stand-in's GPU: gathered from without a copy."""
    device = "cuda:0"

    def __init__(self, core):
        self.core = core


class Placed(OnGpu):
    """The core of a frame whose planes were copied there: they are read each time, so a plane that was freed shows."""

    def __init__(self, make, planes):
        self._make, self._planes = make, planes

    @property
    def core(self):
        return self._make([Cuda._view(plane) for plane in self._planes])


def frame(format, planes, height, width, *how, make=_core.Frame):
    """In place of _core.Frame."""
    if any(isinstance(plane, np.ndarray) for plane in planes):
        return make(format, planes, height, width, *how)
    return Placed(lambda views: make(format, views, height, width, *how), planes)


class Cuda:
    made = []

    def __init__(self, stream=0, device=-1, num_threads=0):
        gpu.GPU.check_current()
        self.stream, self.device, self.num_threads, self._queue, self.ordered = stream, device, num_threads, [], []
        self.copies = dict.fromkeys(("to_device", "to_device_bytes", "to_host", "to_host_bytes"), 0)
        Cuda.made.append(self)

    def empty(self, shape, dtype="float32"):
        memory = Memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return Array(memory.address, shape, dtype, memory)

    def upload(self, array, out=None):
        gpu.GPU.check_current()
        made = self.empty(array.shape, array.dtype) if out is None else out
        self._view(made)[...] = array
        self._count("to_device", array.nbytes)
        return made

    def download(self, array):
        self.synchronize()
        self._count("to_host", self._view(array).nbytes)
        return self._view(array).copy()

    def order_after(self, stream):
        self.ordered.append(stream)

    def synchronize(self):
        gpu.GPU.check_current()
        if "kernels" in gpu.GPU.fail:
            self._queue = []
            raise RuntimeFailedError(gpu.GPU.fail["kernels"])
        work, self._queue = self._queue, []
        for each in work:
            each()

    def gather(self, frame, base_px, parts, mean, std, dtype="float32"):
        gpu.GPU.check_current()
        if isinstance(frame, OnGpu):
            frame = frame.core
        else:
            self._count("to_device", frame.height * frame.width)
        for px, patch, ids, out in parts:
            ids = self._ids(ids)
            self._queue.append(lambda px=px, patch=patch, ids=ids, out=out: _core.gather(frame, base_px, px, patch, ids, mean, std, 1, self._view(out)))

    def score(self, features, view_features, prompt, view_weight, view_bias, out=None):
        def work():
            arrays = [None if each is None else self._view(each).copy() for each in (features, view_features, prompt, view_weight, view_bias)]
            try:
                self._view(out)[...] = _core.score(*arrays)
            except InputError:                  # the kernel refuses no values
                self._view(out)[...] = np.nan
        self._queue.append(work)
        return out

    def position_rows(self, table, g, n, ids, residual=None, crop=False, out=None):
        ids = self._ids(ids)

        def work():
            self._view(out)[...] = _core.position_rows(self._view(table), g, n, ids, None if residual is None else self._view(residual), crop, 1)
        self._queue.append(work)

    def _ids(self, ids):
        self._count("to_device", ids.nbytes)
        return ids.copy()

    def _count(self, way, num_bytes):
        self.copies[way] += 1
        self.copies[f"{way}_bytes"] += num_bytes

    @staticmethod
    def _view(array):
        interface = array.__cuda_array_interface__
        return gpu.GPU.array(interface["data"][0], interface["shape"], np.dtype(interface["typestr"]))
