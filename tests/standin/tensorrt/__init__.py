"""What this project calls of TensorRT 10, standing in for it: engines are ONNX, run by ONNX Runtime on the CPU in memory of gpu.Gpu.

It holds callers to the rules of the real one: shapes inside the profile, every address set and allocated, shape inputs on the host, working
memory large enough, nothing used after its owner is gone, no capture before a plain run, no graph launched whose context was told something since. `gpu.GPU.fail` makes it refuse as the real one does: by None and a line in the log.
"""
import enum
import json
import pathlib
import struct
import weakref

import numpy as np
import onnx
import onnxruntime

import gpu

__version__ = "10.3.0"
MAGIC, SCRATCH = b"standin!", 4096
Level = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO")
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
BuilderFlag = enum.Enum("BuilderFlag", "TF32")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 16: DataType.BF16, 7: DataType.INT64}
NUMPY = {1: np.float32, 10: np.float16, 7: np.int64}


class ILogger:
    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class Tensor:
    def __init__(self, value):
        self.name, self.is_shape_tensor = value.name, value.name == "keep"


class Network:
    def __init__(self):
        self.model = None

    num_inputs = property(lambda self: len(self.model.graph.input))

    def get_input(self, index):
        return Tensor(self.model.graph.input[index])


class OnnxParser:
    def __init__(self, network, logger):
        self.network, self.num_errors = network, 0

    def parse_from_file(self, path):
        self.network.model = onnx.load(path)
        return not any(node.domain for node in self.network.model.graph.node)


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *three):
        assert len(three) == 3 and all(list(each) == sorted(each) for each in zip(*three))
        self.shapes[name] = [list(shape) for shape in three]

    set_shape_input = set_shape


class Cache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"timed"


class Config:
    flags_at_first = {BuilderFlag.TF32}

    def __init__(self):
        self.profiles, self.workspace, self.progress_monitor, self.cache, self.flags = [], None, None, None, set(self.flags_at_first)

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.workspace = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return Cache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return not cache.data or cache.data.endswith(b"timed")

    def get_timing_cache(self):
        return self.cache


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == (1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED if hasattr(NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else 0)
        return Network()

    create_builder_config = staticmethod(Config)
    create_optimization_profile = staticmethod(Profile)

    def build_serialized_network(self, network, config):
        if config.workspace is not None and config.workspace < 1 << 20:
            self.logger.log(Level.ERROR, "Could not find any implementation for node MatMul_3 within the workspace")
            return None
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                assert monitor.step_complete("Building engine", step)
            monitor.phase_finish("Building engine")
        assert not any(flag.name == "TF32" for flag in config.flags), "float32 is to be float32"
        head = json.dumps(config.profiles).encode()
        return MAGIC + struct.pack("<Q", len(head)) + head + network.model.SerializeToString(deterministic=True)


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def engine(self, profiles, model):
        return Engine(self, profiles, model)

    def deserialize_cuda_engine(self, data):
        data = bytes(data)
        try:
            if gpu.GPU.fail.get("deserialize"):
                raise ValueError(gpu.GPU.fail["deserialize"])
            assert data.startswith(MAGIC), "magic tag does not match"
            size, = struct.unpack_from("<Q", data, len(MAGIC))
            start = len(MAGIC) + 8
            return self.engine(json.loads(data[start:start + size]), data[start + size:])
        except Exception as error:
            self.logger.log(Level.ERROR, f"IRuntime::deserializeCudaEngine: {error}")
            return None


class Engine:
    def __init__(self, runtime, profiles, model):
        self.runtime, self.profiles, self.model = runtime, profiles, onnx.ModelProto.FromString(model)
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.io = {value.name: (value, mode) for mode, values in (("INPUT", self.model.graph.input), ("OUTPUT", self.model.graph.output)) for value in values}
        self.num_io_tensors, self.num_optimization_profiles = len(self.io), len(profiles)

    def get_tensor_name(self, index):
        return list(self.io)[index]

    def get_tensor_dtype(self, name):
        return TYPES[self.io[name][0].type.tensor_type.elem_type]

    def get_tensor_mode(self, name):
        return TensorIOMode[self.io[name][1]]

    def is_shape_inference_io(self, name):
        return name == "keep"

    def scratch_bytes(self, index):
        return SCRATCH * (index + 1)

    get_device_memory_size_for_profile_v2 = scratch_bytes
    device_memory_size = property(lambda self: self.scratch_bytes(len(self.profiles) - 1))      # all that 10.0 has

    def create_execution_context(self, strategy):
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)

    def dims(self, name):
        return [dim.dim_param or dim.dim_value for dim in self.io[name][0].type.tensor_type.shape.dim]


class Context:
    def __init__(self, engine):
        self.engine, self.profile, self.shapes, self.addresses, self.scratch, self.keep = engine, None, {}, {}, None, None
        self.told, self.ran = 0, None       # how often it was told something; and when it last ran plainly

    def set_device_memory(self, address, size):
        gpu.GPU.check(address, size)
        self.scratch = address, size

    @property
    def device_memory(self):
        return self.scratch[0]

    @device_memory.setter
    def device_memory(self, address):       # in 10.0, without a size
        gpu.GPU.check(address, self.engine.device_memory_size)
        self.scratch = address, self.engine.device_memory_size

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return index < len(self.engine.profiles)

    def set_input_shape(self, name, shape):
        self.told += 1
        limits = self.engine.profiles[self.profile].get(name)
        if limits and name != "keep" and not all(low <= size <= high for low, size, high in zip(limits[0], shape, limits[2])):
            return False
        self.shapes[name] = list(shape)
        return True

    def set_tensor_address(self, name, address):
        assert address, f"{name} has no address"
        self.told += 1
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        if "keep" in self.engine.io:
            import ctypes
            self.keep = ctypes.c_int64.from_address(self.addresses["keep"]).value
            low, _, high = (each[0] for each in self.engine.profiles[self.profile]["keep"])
            assert low <= self.keep <= high
        return [name for name, (_, mode) in self.engine.io.items() if mode == "INPUT" and name not in self.shapes]

    def get_tensor_shape(self, name):
        if name in self.shapes:
            return self.shapes[name]
        sizes = {"kept": self.keep}
        for key, shape in self.shapes.items():
            sizes |= {dim: size for dim, size in zip(self.engine.dims(key), shape) if isinstance(dim, str)}
        return [sizes.get(dim, -1) if isinstance(dim, str) else dim for dim in self.engine.dims(name)]

    def execute_async_v3(self, stream):
        assert self.scratch and self.scratch[1] >= self.engine.scratch_bytes(self.profile)
        gpu.GPU.calls.append("execute_async_v3")
        if gpu.GPU.fail.get("execute") or gpu.GPU.fail.get("execute while capturing") and stream in gpu.GPU.capturing:
            return False
        told, captured = self.told, stream in gpu.GPU.capturing
        assert not captured or self.ran == told, "a capture needs a plain run of the same sizes and addresses before it"
        self.ran = told
        missing = set(self.engine.io) - set(self.addresses)
        assert not missing, f"no address of {missing}"
        addresses, shapes, keep = dict(self.addresses), {name: tuple(self.get_tensor_shape(name)) for name in self.engine.io}, self.keep
        me = weakref.ref(self)

        def work():
            assert me() is not None, "the context went before its work was done"
            assert not captured or me().told == told, "a graph whose context was told something since means nothing"
            gpu.GPU.check(*me().scratch)
            inputs, outputs = {}, [name for name, (_, mode) in me().engine.io.items() if mode == "OUTPUT"]
            for name, (value, mode) in me().engine.io.items():
                if mode == "INPUT":
                    inputs[name] = np.array([keep]) if name == "keep" else gpu.GPU.array(addresses[name], shapes[name], NUMPY[value.type.tensor_type.elem_type])
            for name, array in zip(outputs, me().engine.session.run(outputs, inputs)):
                assert array.shape == shapes[name], name
                gpu.GPU.array(addresses[name], array.shape, array.dtype)[...] = array
        gpu.GPU.enqueue(stream, work)
        return True


HERE = pathlib.Path(__file__).parent.parent     # where `gpu` is
