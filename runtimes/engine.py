"""An engine of TensorRT or TensorRT-RTX on the GPU: its buffers, and one run.

All memory of the GPU is taken when a network is opened, from the largest sizes of its profiles; keys and values that stay on the GPU lie
in a pool of blocks, one a look. A run copies its inputs over, enqueues, copies the asked-for outputs back and waits. From the third run of equal
sizes at equal addresses on a CUDA graph is launched: graphs.py captures it, or the vendor's module does by itself.
"""
from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from typing import Mapping, NamedTuple, Sequence

import numpy as np

from ps3_sdk.errors import BundleError, ClosedError, InputError, RuntimeFailedError, RuntimeMissingError

from .cuda_driver import OUT_OF_MEMORY, CudaError
from .device_memory import DeviceTensor, Pool, host_array, host_dtype, is_packed, num_bytes, padded
from .graphs import Graphs
from .trt_vendor import log_of, rebuild_command

TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "INT32": "int32", "UINT8": "uint8", "BOOL": "bool"}


class Context(NamedTuple):
    """An execution context, its inputs that the vendor reads from the host, which must stay where they are, and what it was configured with."""
    vendor: object
    host: dict[str, np.ndarray]
    config: object = None


class EngineNetwork:
    """See base.Network. Outputs that the manifest says stay on the device come as DeviceTensor."""

    def __init__(self, where: str, module, driver, bundle, name: str, stream: int | None, rebuild: str, stays: Sequence[str] = (), kernels=None):
        entry = bundle.manifest["networks"][name]
        self.where, self.name, self.rebuild, self._module, self._driver = where, name, rebuild, module, driver
        self._rebuild_for = functools.partial(rebuild_command, entry["runtime"], bundle.manifest["networks"], name)
        self._ports = {port["name"]: port for port in (*entry["inputs"], *entry["outputs"])}
        self._inputs, self._outputs = ([port["name"] for port in entry[side]] for side in ("inputs", "outputs"))
        self._profiles, self._stays = entry["engine"]["profiles"], list(dict.fromkeys([*entry["engine"]["on_device"], *(each for each in stays if each in self._outputs)]))
        self._lock, self._closed, self._lost, self._kernels = threading.RLock(), False, False, kernels
        self._buffers: dict[str, int] = {}
        self._own: list[int] = []
        self._pool, self._most_bytes, self._graphs = Pool(driver), 0, None
        self._stream, self._stream_is_own = stream, stream is None
        self._contexts, self._engine, self._runtime = [], None, None
        try:
            with driver.current():
                self._open(bundle, log_of(module), entry["file"])
        except CudaError as error:
            failed = self._failed(error, opening=True)      # what is free is asked for before our own is
            self._close(keep_kernels=False)
            raise failed from error
        except BaseException:
            self._close(keep_kernels=False)
            raise

    # -- opening --------------------------------------------------------------------------------------------------

    def _open(self, bundle, log, file: str) -> None:
        if self._stream is not None and not self._driver.has_stream(self._stream):
            raise InputError(f"[{self.where}] the stream {self._stream:#x} is not one of {self._driver.name}, GPU 0, in its primary context, where engines run. Pass a stream made there "
                             "(torch.cuda.Stream(0).cuda_stream), or leave it out.")
        with log.collect():
            try:
                self._runtime = self._module.Runtime(log.logger)
            except TypeError as error:      # what the binding makes of a null pointer
                raise self._unreadable(bundle, log) from error
            self._engine = self._runtime.deserialize_cuda_engine(bundle.member(file))
            if self._engine is None:
                raise self._unreadable(bundle, log)
        self._check_ports(bundle)
        if self._stream is None:
            self._stream = self._driver.new_stream()
        self._reserve(log)

    def _unreadable(self, bundle, log) -> Exception:
        why = log.why()
        if self._runtime is None or log.mentions("driver version is insufficient", "cudaerror 35:"):
            return RuntimeMissingError(f"[{self.where}] the NVIDIA driver is too old for {self._module.__name__} {self._module.__version__} ({why}). Update the driver.")
        if log.mentions("out of memory", "outofmemory", "cudaerror 2:"):
            return RuntimeFailedError(f"[{self.where}] {self.name} does not fit into the GPU's memory, {self._driver.free_bytes() / 1e6:.0f} MB are free ({why}). "
                                      f"Free some, or build with a smaller --max-tokens or a coarser --precision.")
        return BundleError(f"[{self.where}] {self.name} of {bundle.path} is refused by {self._module.__name__} {self._module.__version__}: {why}. It is truncated, altered, or of "
                           f"another machine: copy the file again, or: {self.rebuild}")

    def _check_ports(self, bundle) -> None:
        """The engine's tensors are the manifest's: names, types, direction."""
        engine = self._engine
        found = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        wrong = sorted(set(found) ^ set(self._ports))
        for name in found if not wrong else ():
            dtype = TYPES.get(str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1])
            is_input = str(engine.get_tensor_mode(name)).rsplit(".", 1)[-1] == "INPUT"
            if dtype != self._ports[name]["dtype"] or is_input != (name in self._inputs):
                wrong.append(f"{name} ({dtype})")
        if wrong or engine.num_optimization_profiles != len(self._profiles):
            raise BundleError(f"[{self.where}] the engine {self.name} of {bundle.path} differs from its manifest in {', '.join(wrong[:4]) or 'its profiles'}. {self.rebuild}")

    def _reserve(self, log) -> None:
        """Contexts, one a profile, with one working memory for all, and buffers for the largest sizes."""
        module, engine, driver = self._module, self._engine, self._driver
        self._scratch_size = max(self._scratch_bytes(i) for i in range(len(self._profiles)))
        self._scratch = self._allocate(self._scratch_size)
        self._shape_inputs = [name for name in self._inputs if engine.is_shape_inference_io(name)]
        largest: dict[str, int] = {}
        for index, profile in enumerate(self._profiles):
            with log.collect():
                context = self._new_context(index)
                if context is None:
                    raise RuntimeFailedError(f"[{self.where}] {self.name} cannot be made ready for profile {index}: {log.why()}. Free memory of the GPU, or build with a smaller --max-tokens. {self.rebuild}")
            self._contexts.append(context)
            most = {name: tuple(profile[size][2] if isinstance(size, str) else size for size in self._ports[name]["shape"]) for name in self._inputs}
            shapes = self._set_shapes(context, most, {name: np.full(self._ports[name]["shape"], profile[name][2]) for name in self._shape_inputs})
            for name, shape in {**most, **shapes}.items():
                largest[name] = max(largest.get(name, 0), num_bytes(shape, self._ports[name]["dtype"]))
        driver.synchronize(self._stream)
        for name, size in largest.items():
            resident = name.removeprefix("past_") in self._stays        # lies in blocks; a place is needed for what is empty
            if name not in self._shape_inputs:
                self._buffers[name] = self._allocate(256 if resident else size)
        self._most_bytes = max([largest[name] for name in self._stays], default=0)
        if not hasattr(module, "CudaGraphStrategy"):
            self._graphs = Graphs(driver, self._new_context, self._enqueue)

    def _new_context(self, index: int) -> Context | None:
        """A context for a profile, None where the vendor makes none or refuses the profile."""
        module, engine, strategy = self._module, self._engine, self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(module, "CudaGraphStrategy"):        # TensorRT-RTX captures by itself, once it has finished the kernels of a size
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self._kernels is not None:
                self._kernels.attach(config)
            vendor = engine.create_execution_context(config)
        else:
            config, vendor = None, engine.create_execution_context(strategy)
        if vendor is None:
            return None
        if hasattr(vendor, "set_device_memory"):
            vendor.set_device_memory(self._scratch, self._scratch_size)
        else:       # TensorRT 10.0
            vendor.device_memory = self._scratch
        if not vendor.set_optimization_profile_async(index, self._stream):
            return None
        return Context(vendor, {name: np.zeros(self._ports[name]["shape"], host_dtype(self._ports[name]["dtype"])) for name in self._shape_inputs}, config)

    def _scratch_bytes(self, profile: int) -> int:
        for call in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
            if hasattr(self._engine, call):
                return getattr(self._engine, call)(profile)
        return self._engine.device_memory_size

    def _allocate(self, size: int) -> int:
        address = self._driver.allocate(size)
        self._own.append(address)
        return address

    # -- running --------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, "np.ndarray | DeviceTensor"]:
        """See base.Network. Inputs may also be DeviceTensors, or packed arrays of the same GPU by __cuda_array_interface__."""
        with self._at_work():
            shapes = {name: tuple(inputs[name].shape) for name in self._inputs}
            return self._run(self._profile_of(shapes, inputs), shapes, inputs, outputs)

    @contextmanager
    def _at_work(self):
        """One call at a time, of an open network, with the GPU's context; what fails is told in words."""
        with self._lock:
            self._check_open()
            try:
                with self._driver.current():
                    yield
            except CudaError as error:
                raise self._failed(error) from error

    def _run(self, index: int, shapes, inputs, outputs):
        context, stream, keep_alive = self._contexts[index], self._stream, []
        values = {name: np.asarray(inputs[name]) for name in self._shape_inputs}
        out_shapes = self._set_shapes(context, shapes, values)
        addresses = {name: self._place_input(name, inputs[name], keep_alive) for name in self._inputs if name not in self._shape_inputs}
        places, end = {}, 0
        for name in self._stays:
            if size := num_bytes(out_shapes[name], self._ports[name]["dtype"]):
                places[name], end = end, end + padded(size)
        block = self._pool.take(end) if places else None
        for name in self._outputs:
            addresses[name] = block.address + places[name] if name in places else self._buffers[name]

        def tell(other: Context) -> None:
            if other is not context:        # which knows the sizes
                self._set_shapes(other, shapes, values)
            for name, address in addresses.items():
                other.vendor.set_tensor_address(name, address)

        if self._graphs is None:
            tell(context)
            self._enqueue(context, stream)
        else:
            key = index, tuple(shapes.items()), tuple(value.tobytes() for value in values.values()), tuple(addresses.values())
            self._graphs.run(key, index, context, tell, stream)
        found = {}
        for name in outputs:
            if name in self._stays:
                found[name] = DeviceTensor(self, block, addresses[name], out_shapes[name], self._ports[name]["dtype"])
                continue
            found[name] = np.empty(out_shapes[name], host_dtype(self._ports[name]["dtype"]))
            if found[name].nbytes:
                self._driver.to_host(found[name].ctypes.data, addresses[name], found[name].nbytes, stream)
        self._driver.synchronize(stream)
        return found

    def _enqueue(self, context: Context, stream: int) -> None:
        log = log_of(self._module)
        with log.collect():
            if not context.vendor.execute_async_v3(stream):
                self._driver.synchronize(stream)        # raises when the GPU is lost
                raise RuntimeFailedError(f"[{self.where}] {self.name} failed: {log.why()}. The session can be used further; if it happens again, {self.rebuild}")

    def _set_shapes(self, context: Context, shapes, values) -> dict[str, tuple[int, ...]]:
        """Tell the context the inputs' shapes; returns those of the outputs."""
        for name, shape in shapes.items():
            if not context.vendor.set_input_shape(name, tuple(shape)):
                raise InputError(f"[{self.where}] {self.name} does not take {name} {tuple(shape)}. {self.rebuild}")
        for name, value in values.items():
            context.host[name][...] = value
            context.vendor.set_tensor_address(name, context.host[name].ctypes.data)
        try:
            missing = context.vendor.infer_shapes()
        except RuntimeError as error:
            raise RuntimeFailedError(f"[{self.where}] {self.name}: the sizes of this run cannot be worked out ({log_of(self._module).why(str(error))}). {self.rebuild}") from error
        found = {name: tuple(context.vendor.get_tensor_shape(name)) for name in self._outputs}
        if missing or any(size < 0 for shape in found.values() for size in shape):
            raise RuntimeFailedError(f"[{self.where}] {self.name} cannot tell the sizes of its outputs ({', '.join(missing) or found}). {self.rebuild}")
        return found

    def _place_input(self, name: str, value, keep_alive: list) -> int:
        """Where the engine reads this input. What is on the GPU is copied, too, but for keys and values: to an aligned place that is the same in every run of a graph."""
        dtype, address = self._ports[name]["dtype"], self._address_on_gpu(name, value)
        array = value if address is not None else host_array(value, dtype)
        size, resident = num_bytes(array.shape, dtype), name.removeprefix("past_") in self._stays
        if not size:
            return self._buffers[name]
        keep_alive.append(array)
        if address is None and resident:        # keys and values that were copied to the host, and have no place of their own
            block = self._pool.take(size)
            keep_alive.append(block)
            self._driver.to_device(block.address, array.ctypes.data, size, self._stream)
            return block.address
        if address is None:
            self._driver.to_device(self._buffers[name], array.ctypes.data, size, self._stream)
        elif resident:
            return address
        else:
            self._driver.on_device(self._buffers[name], address, size, self._stream)
        return self._buffers[name]

    def _address_on_gpu(self, name: str, value) -> int | None:
        """None: it lies in host memory. Raises InputError: it is on the GPU, in another type or with gaps."""
        dtype = self._ports[name]["dtype"]
        if isinstance(value, DeviceTensor):
            value.check()
            if value.dtype != dtype:
                raise InputError(f"[{self.where}] {self.name}: {name} is {value.dtype} on the GPU; {dtype} is needed. Use keys and values of this bundle's own looks.")
            return value.address
        device = getattr(value, "__cuda_array_interface__", None)
        if device is None:
            return None
        if not is_packed(device) or np.dtype(device["typestr"]) != host_dtype(dtype):
            raise InputError(f"[{self.where}] {self.name}: {name} is {device['typestr']} on the GPU, packed {dtype} is needed. Convert it there.")
        return device["data"][0]

    def _profile_of(self, shapes, inputs) -> int:
        """The profile that these sizes fit. Raises InputError that says what the engine was made for."""
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            wanted = self._ports[name]["shape"]
            if len(shape) != len(wanted) or any(isinstance(size, int) and size != got for size, got in zip(wanted, shape)):
                raise InputError(f"[{self.where}] {self.name}: {name} has shape {shape}; {tuple(wanted)} is needed.")
            for size, got in zip(wanted, shape):
                if isinstance(size, str) and sizes.setdefault(size, got) != got:
                    raise InputError(f"[{self.where}] {self.name}: {name} has shape {shape}, in which {size} is {got}; another input has {sizes[size]}. Give inputs of one size.")
        for name in self._shape_inputs:
            sizes[name] = int(np.asarray(inputs[name]).reshape(-1)[0])
        for index, profile in enumerate(self._profiles):
            if all(profile[size][0] <= got <= profile[size][2] for size, got in sizes.items()):
                return index
        fits = lambda profile: "; ".join(f"{size} {least}..{most}" if least != most else f"{size} {most}" for size, (least, _, most) in profile.items())
        beyond = {f"max_{size}": sizes[size] for size in ("tokens", "batch") if size in sizes and all(sizes[size] > profile[size][2] for profile in self._profiles)}
        raise InputError(f"[{self.where}] {self.name} was built for {' or '.join(map(fits, self._profiles))}; this run has {', '.join(f'{k} {v}' for k, v in sizes.items())}. Ask for "
                         f"less, or rebuild: {self._rebuild_for(**beyond)}")

    # -- tensors on the device --------------------------------------------------------------------------------------

    def new_tensor(self, parts: Sequence[DeviceTensor]) -> DeviceTensor:
        """Tensors of this network, one after the other along the first dimension, in a block of its own."""
        total = sum(part.nbytes for part in parts)
        if total > self._most_bytes:
            raise InputError(f"[{self.where}] {sum(map(len, parts))} together; {self.name} was built for fewer in one run. Ask with a smaller batch, or rebuild: "
                             f"{self._rebuild_for(max_batch=sum(map(len, parts)))}")
        with self._at_work():
            block, at = self._pool.take(total), 0
            for part in parts:
                part.check()
                self._driver.on_device(block.address + at, part.address, part.nbytes, self._stream)
                at += part.nbytes
            self._driver.synchronize(self._stream)
            return DeviceTensor(self, block, block.address, (sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)

    def to_host(self, tensor: DeviceTensor) -> np.ndarray:
        with self._at_work():
            host = np.empty(tensor.shape, host_dtype(tensor.dtype))
            if host.nbytes:
                self._driver.to_host(host.ctypes.data, tensor.address, host.nbytes, self._stream)
            self._driver.synchronize(self._stream)
            return host

    # -- the end ------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._lost:
            raise ClosedError(f"[{self.where}] {self.name} is closed: the GPU was lost in an earlier run. Open a new session, in a new process.")
        if self._closed:
            raise ClosedError(f"[{self.where}] {self.name} is closed; open a new session: ps3_sdk.Session(...).")

    def _failed(self, error: CudaError, opening: bool = False) -> RuntimeFailedError:
        if error.code == OUT_OF_MEMORY and opening:
            return RuntimeFailedError(f"[{self.where}] {self.name}: the GPU's memory is full, {self._free_text()} are free beside what it has taken so far. Close other programs or sessions, or "
                                      "build with a smaller --max-tokens.")
        if error.code == OUT_OF_MEMORY:
            return RuntimeFailedError(f"[{self.where}] {self.name}: the GPU's memory is full, {self._free_text()} are free. The session can be used further: let go of looks, close other "
                                      "programs, or build with a smaller --max-tokens.")
        self._lost = self._lost or error.lost
        state = "This session is closed; open a new one, in a new process." if error.lost else "The session can be used further."
        return RuntimeFailedError(f"[{self.where}] {self.name}: {'the GPU was lost' if error.lost else 'the GPU failed'} in {error.call} ({error.name}). {state}")

    def _free_text(self) -> str:
        try:
            with self._driver.current():
                return f"{self._driver.free_bytes() / 1e6:.0f} MB"
        except CudaError:
            return "0 MB"

    def close(self) -> None:
        """Give back all memory of the GPU. A second call does nothing."""
        self._close(keep_kernels=True)

    def _close(self, keep_kernels: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                with self._driver.current():
                    self._give_back(self._kernels if keep_kernels else None)
            except CudaError:       # the GPU is gone, and its memory with it
                pass
            finally:
                self._driver.close()

    def _give_back(self, kernels) -> None:
        try:
            if self._graphs is not None:
                self._graphs.close()
            self._contexts = []
            if kernels is not None:
                kernels.save()
        finally:
            self._engine, self._runtime = None, None        # before the memory that they point to
            self._pool.close()
            for address in self._own:
                self._driver.free(address)
            if self._stream_is_own and self._stream:
                self._driver.destroy_stream(self._stream)
