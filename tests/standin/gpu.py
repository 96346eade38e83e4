"""A GPU that is none: memory of the host, and streams that do nothing until somebody waits for them.

Has the methods of runtimes.cuda_driver.Driver. Reading or writing memory that is not allocated, or more than was allocated, is an error; so is
waiting while capturing. `fail` makes a call fail as the real driver would.
"""
import contextlib
import ctypes
import threading

import numpy as np

from ps3_sdk.runtimes.cuda_driver import CudaError


class Gpu:
    """State of the one GPU: what the vendor's stand-in and every Driver see."""
    def __init__(self, sm=87, cuda_version=(12, 6), memory_bytes=8 << 30):
        self.sm, self.cuda_version, self.memory_bytes = sm, cuda_version, memory_bytes
        self.memory, self.queues, self.capturing, self.graphs = {}, {}, {}, {}
        self.calls, self.fail, self.contexts = [], {}, 0
        self.captured_on, self.waited_for = [], []
        self.elsewhere = set()      # addresses of other contexts
        self.thread = threading.local()         # .stack: contexts that are current in a thread, the last one on top

    @property
    def stack(self):
        if not hasattr(self.thread, "stack"):
            self.thread.stack = []
        return self.thread.stack

    def check_current(self):
        assert self.stack and self.stack[-1] == "primary", "the GPU's own context is not current in this thread"

    def check(self, address, size):
        for start, buffer in self.memory.items():
            if start <= address and address + size <= start + len(buffer):
                return
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def array(self, address, shape, dtype):
        count = int(np.prod(shape, dtype=np.int64))
        if not count:
            return np.empty(shape, dtype)
        self.check(address, count * np.dtype(dtype).itemsize)
        return np.ctypeslib.as_array((ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)).view(dtype).reshape(shape)

    def enqueue(self, stream, work):
        (self.capturing[stream] if stream in self.capturing else self.queues[stream]).append(work)


GPU = Gpu()


class Driver:
    def __init__(self, index=0):
        self.gpu = GPU
        self.gpu.contexts += 1
        self.name, self.sm, self.cuda_version = "Stand-in", GPU.sm, GPU.cuda_version

    def _call(self, name):
        self.gpu.check_current()
        self.gpu.calls.append(name)
        if name in self.gpu.fail:
            code, word = self.gpu.fail[name]
            raise CudaError(name, code, word)

    @contextlib.contextmanager
    def current(self):
        if "context" in self.gpu.fail:
            raise CudaError("cuCtxPushCurrent_v2", *self.gpu.fail["context"])
        self.gpu.stack.append("primary")
        try:
            yield
        finally:
            self.gpu.stack.pop()

    def has_memory(self, address):
        return address not in self.gpu.elsewhere

    def has_stream(self, stream):
        return stream in (0, 1, 2) or stream in self.gpu.queues

    def free_bytes(self):
        self.gpu.check_current()
        return self._free_bytes()

    def _free_bytes(self):
        return self.gpu.memory_bytes - sum(map(len, self.gpu.memory.values()))

    def allocate(self, num_bytes):
        self._call("cuMemAlloc_v2")
        if num_bytes > self._free_bytes():
            raise CudaError("cuMemAlloc_v2", 2, "CUDA_ERROR_OUT_OF_MEMORY")
        buffer = (ctypes.c_uint8 * max(num_bytes, 256))()
        ctypes.memset(buffer, 0xA5, len(buffer))         # so that what was never written shows
        self.gpu.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address):
        with self.current():
            self._call("cuMemFree_v2")
        del self.gpu.memory[address]

    def to_device(self, address, host, num_bytes, stream):
        self._call("cuMemcpyHtoDAsync_v2")
        self.gpu.check(address, num_bytes)
        staged = ctypes.string_at(host, num_bytes)       # as the driver does with pageable memory
        self.gpu.enqueue(stream, lambda: ctypes.memmove(address, staged, num_bytes))

    def to_host(self, host, address, num_bytes, stream):
        self._call("cuMemcpyDtoHAsync_v2")

        def copy():
            self.gpu.check(address, num_bytes)
            ctypes.memmove(host, address, num_bytes)
        self.gpu.enqueue(stream, copy)

    def on_device(self, target, source, num_bytes, stream):
        self._call("cuMemcpyDtoDAsync_v2")

        def copy():
            self.gpu.check(source, num_bytes)
            self.gpu.check(target, num_bytes)
            ctypes.memmove(target, source, num_bytes)
        self.gpu.enqueue(stream, copy)

    def new_stream(self):
        self.gpu.check_current()
        stream = 1000 + len(self.gpu.queues)
        self.gpu.queues[stream] = []
        return stream

    def destroy_stream(self, stream):
        del self.gpu.queues[stream]

    def synchronize(self, stream):
        self._call("cuStreamSynchronize")
        assert stream not in self.gpu.capturing, "a capture may not wait"
        self.gpu.waited_for.append(stream)
        work, self.gpu.queues[stream] = self.gpu.queues[stream], []
        for each in work:
            each()

    def begin_capture(self, stream):
        self._call("cuStreamBeginCapture_v2")
        self.gpu.captured_on.append(stream)
        self.gpu.capturing[stream] = []

    def end_capture(self, stream):
        work = self.gpu.capturing.pop(stream)
        if "capture" in self.gpu.fail:
            return 0
        ready = 5000 + len(self.gpu.calls)
        self.gpu.graphs[ready] = work
        return ready

    def launch(self, ready, stream):
        self._call("cuGraphLaunch")
        for work in self.gpu.graphs[ready]:
            self.gpu.enqueue(stream, work)

    def destroy_graph(self, ready):
        del self.gpu.graphs[ready]

    def close(self):
        self.gpu.contexts -= 1
