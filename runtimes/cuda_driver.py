"""The few calls of the CUDA driver that running an engine takes, by ctypes on libcuda.

The driver's own library is there wherever a GPU can work, on a desktop as on a Jetson, keeps its interface over years, and needs no
package of a matching CUDA release beside TensorRT's. Contexts are the primary ones, which PyTorch and the CUDA runtime use too.
"""
from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import Iterator

from ps3_sdk.errors import RuntimeFailedError, RuntimeMissingError

OUT_OF_MEMORY, NO_DEVICE = 2, 100
LOST = {46, 214, 219, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999}     # the context cannot be used afterwards
NON_BLOCKING, THREAD_LOCAL = 1, 1           # of streams, of captures
CONTEXT_OF_POINTER = 1
DEFAULT_STREAMS = (0, 1, 2)                 # handles that stand for the legacy one and each thread's, of whatever context
_POINTER, _SIZE, _INT, _UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
CALLS = {       # name in the library -> types of its arguments
    "cuInit": [_UINT], "cuDriverGetVersion": [ctypes.POINTER(_INT)], "cuDeviceGetCount": [ctypes.POINTER(_INT)], "cuDeviceGet": [ctypes.POINTER(_INT), _INT],
    "cuDeviceGetName": [ctypes.c_char_p, _INT, _INT], "cuDeviceGetAttribute": [ctypes.POINTER(_INT), _INT, _INT],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(_POINTER), _INT], "cuDevicePrimaryCtxRelease_v2": [_INT], "cuCtxPushCurrent_v2": [_POINTER], "cuCtxPopCurrent_v2": [ctypes.POINTER(_POINTER)], "cuStreamGetCtx": [_POINTER, ctypes.POINTER(_POINTER)],
    "cuPointerGetAttribute": [_POINTER, _INT, _POINTER],
    "cuMemGetInfo_v2": [ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)], "cuMemAlloc_v2": [ctypes.POINTER(_POINTER), _SIZE], "cuMemFree_v2": [_POINTER],
    "cuMemcpyHtoDAsync_v2": [_POINTER, _POINTER, _SIZE, _POINTER], "cuMemcpyDtoHAsync_v2": [_POINTER, _POINTER, _SIZE, _POINTER],
    "cuMemcpyDtoDAsync_v2": [_POINTER, _POINTER, _SIZE, _POINTER], "cuStreamCreate": [ctypes.POINTER(_POINTER), _UINT], "cuStreamDestroy_v2": [_POINTER],
    "cuStreamSynchronize": [_POINTER], "cuStreamBeginCapture_v2": [_POINTER, _INT], "cuStreamEndCapture": [_POINTER, ctypes.POINTER(_POINTER)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong], "cuGraphLaunch": [_POINTER, _POINTER],
    "cuGraphExecDestroy": [_POINTER], "cuGraphDestroy": [_POINTER], "cuGetErrorName": [_INT, ctypes.POINTER(ctypes.c_char_p)]}


class CudaError(RuntimeFailedError):
    """A call of the driver failed. code: its number | lost: whether nothing can run on the GPU in this process any more."""

    def __init__(self, call: str, code: int, name: str):
        super().__init__(f"[cuda] {call} gave {name} ({code}); it must succeed. {_fix(code)}")
        self.call, self.code, self.name, self.lost = call, code, name, code in LOST


def _fix(code: int) -> str:
    if code in LOST:
        return "Start a new process."
    return "Free memory of the GPU: nvidia-smi shows who holds it." if code == OUT_OF_MEMORY else "Check nvidia-smi, and that the driver fits the kernel."


class Driver:
    """The driver and one GPU. Raises RuntimeMissingError that says what is missing: the driver, a GPU, or a call of a newer driver."""

    def __init__(self, index: int = 0, library: str = "libcuda.so.1"):
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise RuntimeMissingError(f"[cuda] there is no NVIDIA driver here ({library} cannot be loaded); an engine runs on an NVIDIA GPU alone. Install the driver, or use an "
                                      "ONNX bundle, which runs on the CPU: ps3 build PLAN_OR_CHECKPOINT -o engine.plan --runtime onnx") from error
        for name, types in CALLS.items():
            try:
                getattr(self._library, name).argtypes = types
            except AttributeError as error:
                raise RuntimeMissingError(f"[cuda] the NVIDIA driver here has no {name}; a driver for CUDA 12 or newer is needed. Update it.") from error
        count, device, context = _INT(), _INT(), _POINTER()
        code = self._library.cuInit(0)
        if code == 0:
            self._call("cuDeviceGetCount", ctypes.byref(count))
        if code == NO_DEVICE or code == 0 and index >= count.value:
            raise RuntimeMissingError(f"[cuda] the NVIDIA driver sees {count.value} GPUs; number {index} is needed. Check nvidia-smi, and whether a container was given the GPU.")
        if code:
            raise RuntimeMissingError(f"[cuda] the NVIDIA driver does not start ({self._name(code)}); it must match the kernel's module. Reinstall it, or restart after its update.")
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._device = device.value
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        name = ctypes.create_string_buffer(200)
        self._call("cuDeviceGetName", name, 200, device)
        self.name = name.value.decode("utf-8", "replace")
        self.sm = 10 * self._attribute(75) + self._attribute(76)
        version = _INT()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.cuda_version = (version.value // 1000, version.value % 1000 // 10)     # the newest CUDA that this driver serves

    @contextmanager
    def current(self) -> Iterator[None]:
        """The GPU's context is this thread's while the block runs, then again the one that was: the user's PyTorch on another GPU, or a context of pycuda."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._library.cuCtxPopCurrent_v2(ctypes.byref(_POINTER()))

    def has_stream(self, stream: int) -> bool:
        """Whether a stream is of this GPU's context."""
        if stream in DEFAULT_STREAMS:
            return True
        context = _POINTER()
        self._call("cuStreamGetCtx", stream, ctypes.byref(context))
        return context.value == self._context.value

    def has_memory(self, address: int) -> bool:
        """Whether an address is not known to be another context's, whose memory this one's kernels must not read: it would be the end of both."""
        context = _POINTER()
        code = self._library.cuPointerGetAttribute(ctypes.byref(context), CONTEXT_OF_POINTER, address)
        return code != 0 or context.value in (None, self._context.value)        # of memory from pools, and of the host's, it is not told

    def free_bytes(self) -> int:
        free, total = _SIZE(), _SIZE()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, num_bytes: int) -> int:
        address = _POINTER()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(num_bytes, 256))
        return address.value

    def free(self, address: int) -> None:
        with self.current():
            self._call("cuMemFree_v2", address)

    def to_device(self, address: int, host: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync_v2", address, host, num_bytes, stream)

    def to_host(self, host: int, address: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync_v2", host, address, num_bytes, stream)

    def on_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync_v2", target, source, num_bytes, stream)

    def new_stream(self) -> int:
        stream = _POINTER()
        self._call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        return stream.value

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy_v2", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        self._call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The captured work, ready to be launched; 0 where it could not be captured."""
        graph, ready = _POINTER(), _POINTER()
        if self._library.cuStreamEndCapture(stream, ctypes.byref(graph)) or not graph.value:
            return 0
        code = self._library.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, 0)
        self._library.cuGraphDestroy(graph)
        return 0 if code else ready.value

    def launch(self, ready: int, stream: int) -> None:
        self._call("cuGraphLaunch", ready, stream)

    def destroy_graph(self, ready: int) -> None:
        self._call("cuGraphExecDestroy", ready)

    def close(self) -> None:
        """Let go of the GPU. A second call does nothing."""
        if self._context is not None:
            self._context = None
            self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    def _attribute(self, number: int) -> int:
        value = _INT()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _name(self, code: int) -> str:
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
        return text.value.decode() if known else f"error {code}"

    def _call(self, name: str, *arguments) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(name, code, self._name(code))
