"""ONNX Runtime on an NVIDIA GPU: the networks of an ONNX bundle as they are, without building an engine first.

Inputs and outputs are bound, not passed: what one network makes for another to read (the keys and values of a look, those of the
language model) stays in the GPU's memory, everything else is copied where it is needed. Memory comes from ONNX Runtime's own arena,
which keeps what it has once taken.
"""
from __future__ import annotations

import re
import threading
from contextlib import contextmanager, nullcontext
from typing import Mapping, Sequence

import numpy as np

from ps3_sdk.errors import ClosedError, RuntimeFailedError, RuntimeMissingError

from . import ort
from .cuda_driver import LOST, Driver

PROVIDER, DEVICE = "CUDAExecutionProvider", "cuda"
FULL = re.compile(r"Failed to allocate memory|out of memory|CUDA failure 2\b|BFCArena")
CODE = re.compile(r"CUDA failure (\d+)")


def load(bundle, name: str, threads: int = 0, keep: bool = True, stream: int | None = None, stays: Sequence[str] = ()) -> "OrtCudaNetwork":
    """See base. stream: a CUDA stream's handle to run on, default ONNX Runtime's own | stays: outputs to leave on the GPU beside keys and values."""
    try:
        onnxruntime = ort.module()
    except ImportError as error:
        raise RuntimeMissingError("[ort_cuda] ONNX Runtime is not installed; its build for GPUs is needed. pip install onnxruntime-gpu") from error
    if PROVIDER not in onnxruntime.get_available_providers():
        raise RuntimeMissingError(f"[ort_cuda] onnxruntime {onnxruntime.__version__} here has {', '.join(onnxruntime.get_available_providers())}; {PROVIDER} is needed. "
                                  "Both packages lie in one folder, and the CPU's was written last: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu, "
                                  "or leave device out to run on the CPU.")
    entry = bundle.manifest["networks"][name]
    if any(port["name"].startswith("past_key_values.") and port["dtype"] == "float32" for port in entry["inputs"]):
        # a language model in float32: its GroupQueryAttention is there for half precision alone, so all its rows would go to the processor and back
        return ort.load(bundle, name, threads, keep)
    options = {"use_tf32": "0"} if entry["precision"] == "fp32" else {}     # fp32 means fp32, as on the CPU
    if stream is not None:
        options["user_compute_stream"] = str(stream)
    driver = _driver()
    with current(driver):
        session = ort.open_session(bundle, name, threads, [(PROVIDER, options if PROVIDER != "CPUExecutionProvider" else {})])
    if session.get_providers()[0] != PROVIDER:      # it falls back to the CPU without a word to its caller
        if driver is not None:
            driver.close()
        raise RuntimeMissingError(f"[ort_cuda] onnxruntime {onnxruntime.__version__} cannot start {PROVIDER} here; a GPU, its driver and the CUDA and cuDNN libraries of that "
                                  "version are needed. Check nvidia-smi, pip install 'onnxruntime-gpu[cuda,cudnn]', or leave device out to run on the CPU.")
    return OrtCudaNetwork(session, name, onnxruntime.RunOptions(), [port["name"] for port in entry["inputs"]], stays, driver)


def _driver() -> Driver | None:
    """Of the GPU that the provider runs on; None where there is none, and the provider says so."""
    try:
        return Driver()
    except RuntimeMissingError:
        return None


def current(driver: Driver | None):
    """ONNX Runtime makes its GPU this thread's and leaves it so; after this block it is again the one that was."""
    return nullcontext() if driver is None else driver.current()


def _failed(name: str, inputs: Mapping[str, np.ndarray], error: Exception) -> RuntimeFailedError:
    """What ONNX Runtime says, and what to do: its words are all there is to tell a full memory and a lost GPU from other failures."""
    text = str(error)
    if FULL.search(text):
        return RuntimeFailedError(f"[ort_cuda] {name}: the GPU's memory is full ({ort.first_line(error)}). The session can be used further: let go of looks, close other programs, or ask with "
                                  "fewer tokens or a smaller batch.")
    if (lost := CODE.search(text)) and int(lost[1]) in LOST:
        return RuntimeFailedError(f"[ort_cuda] {name}: the GPU was lost (CUDA error {lost[1]}: {ort.first_line(error)}). Open a new session, in a new process.")
    return ort.failed(name, inputs, error, "ort_cuda")


class OrtCudaNetwork:
    """See base.Network. An output X stays on the GPU where the network has an input past_X: it is what the next look reads."""

    def __init__(self, session, name: str, run_options, inputs: Sequence[str], stays: Sequence[str] = (), driver: Driver | None = None):
        self._session, self._name, self._run_options, self._inputs, self._stays, self._driver = session, name, run_options, frozenset(inputs), frozenset(stays), driver
        self._free, self._running, self._closed = threading.Condition(), 0, False

    @contextmanager
    def _at_work(self, inputs: Mapping):
        """A run, and what is said when it fails. It reads memory of the session's own by its address, so close() waits for it."""
        with self._free:
            if self._closed:
                raise ClosedError(f"[ort_cuda] {self._name} is closed; open a new session: ps3_sdk.Session(...).")
            self._running += 1
        try:
            with current(self._driver):
                yield
        except Exception as error:
            raise _failed(self._name, inputs, error) from error
        finally:
            with self._free:
                self._running -= 1
                self._free.notify_all()

    def close(self) -> None:
        """No run begins after this; it returns when those that have begun are done. A second call does nothing."""
        with self._free:
            first, self._closed = not self._closed, True
            self._free.wait_for(lambda: not self._running)
        if first and self._driver is not None:
            self._driver.close()

    def run(self, inputs: Mapping[str, "np.ndarray | OnDevice"], outputs: Sequence[str]) -> dict[str, "np.ndarray | OnDevice"]:
        stays = {key for key in outputs if f"past_{key}" in self._inputs or key in self._stays}
        with self._at_work(inputs):
            binding = self._bound_to(inputs)
            for key in outputs:
                binding.bind_output(key, DEVICE if key in stays else "cpu")
            self._session.run_with_iobinding(binding, self._run_options)
            return {key: OnDevice(value) if key in stays else value.numpy() for key, value in zip(outputs, binding.get_outputs())}

    def run_into(self, inputs: Mapping[str, "np.ndarray | OnDevice"], arrays: Mapping[str, np.ndarray]) -> None:
        with self._at_work(inputs):
            binding = self._bound_to(inputs)
            for key, array in arrays.items():
                binding.bind_output(key, "cpu", 0, array.dtype, list(array.shape), array.ctypes.data)
            self._session.run_with_iobinding(binding, self._run_options)

    def _bound_to(self, inputs: Mapping[str, "np.ndarray | OnDevice"]):
        binding = self._session.io_binding()
        for key, value in inputs.items():
            if isinstance(value, OnDevice):
                binding.bind_input(key, DEVICE, 0, value.element_type, list(value.shape), value.address)
            elif (device := getattr(value, "__cuda_array_interface__", None)) is not None:
                binding.bind_input(key, DEVICE, 0, np.dtype(device["typestr"]), list(device["shape"]), device["data"][0])
            else:
                binding.bind_cpu_input(key, np.ascontiguousarray(value))
        return binding

    def bound(self, arrays: Mapping[str, np.ndarray]) -> "BoundOrtCudaNetwork":
        return BoundOrtCudaNetwork(self._session, self._name, self._run_options, arrays, self._driver)


class OnDevice:
    """A tensor in the GPU's memory, or rows `start` to `end` of one, or such a single row. numpy.asarray copies it to the host."""

    def __init__(self, value, start: int = 0, end: int | None = None, one: bool = False):
        self.value, self.start, self._one = value, start, one
        whole = value.shape()
        rows = whole[0] - start if end is None else end - start
        self.shape = tuple(whole[1:]) if one else (rows, *whole[1:])
        self.element_type = value.element_type()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def address(self) -> int:
        whole = self.value.shape()
        return self.value.data_ptr() + self.start * (self.value.tensor_size_in_bytes() // max(whole[0], 1))

    @property
    def __cuda_array_interface__(self) -> dict:
        dtype = {1: "<f4", 10: "<f2"}.get(self.element_type)         # of ONNX
        if dtype is None:
            raise AttributeError(f"element type {self.element_type} of ONNX has no word in this interface here")
        return {"shape": self.shape, "typestr": dtype, "data": (self.address, True), "strides": None, "version": 3}

    def __getitem__(self, index: "slice | int") -> "OnDevice":
        if self._one:
            raise IndexError("a single row on the GPU is not cut further")
        if not isinstance(index, slice):
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            return OnDevice(self.value, self.start + index, self.start + index + 1, one=True)
        start, end, step = index.indices(len(self))
        if step != 1:
            raise IndexError("a tensor on the GPU is cut in steps of 1 along its first dimension")
        return OnDevice(self.value, self.start + start, self.start + max(start, end))

    def copy(self) -> "OnDevice":
        return self         # what was written once never changes

    @staticmethod
    def joined(parts: Sequence["OnDevice"]) -> "OnDevice | np.ndarray":
        """One after the other: where they are neighbouring rows of one tensor, as looks made together have, these; else copied to the host."""
        first, ends = parts[0], [part.start + len(part) for part in parts]
        if all(part.value is first.value and part.start == end for part, end in zip(parts[1:], ends)):
            return OnDevice(first.value, first.start, ends[-1])
        return np.concatenate([np.asarray(part) for part in parts])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        host = self.value.numpy()
        host = host[self.start] if self._one else host[self.start:self.start + len(self)]
        return host if dtype is None else host.astype(dtype)


class BoundOrtCudaNetwork:
    """A network some of whose inputs and outputs stay in the GPU's memory from run to run; see base.Bindable.

    arrays are copied there once; to_host() brings back what runs have written since. Inputs are bound for each run anew: where an operator
    that reads one runs on the processor, binding is what copies it there.
    """

    def __init__(self, session, name: str, run_options, arrays: Mapping[str, np.ndarray], driver: Driver | None = None):
        self._session, self._name, self._run_options, self._driver = session, name, run_options, driver
        with current(driver):
            self._bind(session, arrays)

    def _bind(self, session, arrays: Mapping[str, np.ndarray]) -> None:
        from onnxruntime import OrtValue
        self._binding, self._outputs, self._arrays = session.io_binding(), [], {id(array): array for array in arrays.values()}
        self._values = {key: OrtValue.ortvalue_from_numpy(array, DEVICE, 0) for key, array in self._arrays.items()}
        inputs = {value.name for value in session.get_inputs()}
        self._inputs = {key: self._values[id(array)] for key, array in arrays.items() if key in inputs}
        for key, array in arrays.items():
            if key not in inputs:
                self._binding.bind_ortvalue_output(key, self._values[id(array)])
                self._outputs.append(key)

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            with current(self._driver):
                return self._run(inputs, outputs)
        except Exception as error:
            raise _failed(self._name, inputs, error) from error

    def _run(self, inputs, outputs) -> dict[str, np.ndarray]:
        for key, value in self._inputs.items():
            self._binding.bind_ortvalue_input(key, value)
        for key, array in inputs.items():
            self._binding.bind_cpu_input(key, array)
        for key in outputs:
            self._binding.bind_output(key)
        self._outputs += [key for key in outputs if key not in self._outputs]
        self._session.run_with_iobinding(self._binding, self._run_options)
        found = self._binding.get_outputs()
        return {key: found[self._outputs.index(key)].numpy() for key in outputs}

    def to_host(self) -> None:
        """Copy what lies on the GPU into the arrays."""
        with current(self._driver):
            for key, array in self._arrays.items():
                array[...] = self._values[key].numpy()
