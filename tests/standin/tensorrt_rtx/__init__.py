"""TensorRT-RTX where it differs from the stand-in of TensorRT: engines are for the GPUs that were named when they were built, there is no timing cache, and
graphs are captured inside, as a context's configuration says."""
import enum
import json
import weakref

import gpu
import tensorrt
from tensorrt import *      # noqa: F403

__version__ = "1.7.1.116"
ComputeCapability = enum.Enum("ComputeCapability", "CURRENT SM75 SM80 SM86 SM89 SM120")
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
BuilderFlag = enum.Enum("BuilderFlag", "TF32 REQUIRE_USER_ALLOCATION")
MAGIC = b"for rtx!"


class Config(tensorrt.Config):
    create_timing_cache = set_timing_cache = get_timing_cache = property()
    flags_at_first = {BuilderFlag.TF32}

    def __init__(self):
        super().__init__()
        self.capabilities = []

    @property
    def num_compute_capabilities(self):
        return len(self.capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count):
        self.capabilities = [None] * count

    def set_compute_capability(self, capability, index):
        self.capabilities[index] = capability
        return True


class Builder(tensorrt.Builder):
    create_builder_config = staticmethod(Config)

    def build_serialized_network(self, network, config):
        assert config.capabilities and None not in config.capabilities, "every GPU that was announced is named"
        assert BuilderFlag.REQUIRE_USER_ALLOCATION in config.flags, "else a run may take memory, and cannot be captured"
        return MAGIC + json.dumps([int(each.name[2:]) for each in config.capabilities]).encode().ljust(64) + super().build_serialized_network(network, config)


class Runtime(tensorrt.Runtime):
    def engine(self, profiles, model):
        return Engine(self, profiles, model)

    def deserialize_cuda_engine(self, data):
        data = bytes(data)
        if not data.startswith(MAGIC) or gpu.GPU.sm not in json.loads(data[len(MAGIC):len(MAGIC) + 64]):
            self.logger.log(tensorrt.Level.ERROR, "the engine is for other GPUs")
            return None
        return super().deserialize_cuda_engine(data[len(MAGIC) + 64:])


class RuntimeCache:
    """Kernels finished so far: of which GPU, and of what runs."""
    def __init__(self, engine):
        self.engine, self.gpu, self.kernels = weakref.ref(engine), gpu.GPU.sm, set()

    def deserialize(self, blob):
        found = json.loads(bytes(blob))
        if found["gpu"] != self.gpu:
            return False
        self.kernels |= set(found["kernels"])
        return True

    def serialize(self):
        assert self.engine() is not None, "the engine went before its kernels were taken out"
        return json.dumps({"gpu": self.gpu, "kernels": sorted(self.kernels)}).encode()


class RuntimeConfig:
    cuda_graph_strategy, strategy, cache = CudaGraphStrategy.DISABLED, None, None

    def __init__(self, engine):
        self.engine = engine

    def create_runtime_cache(self):
        return RuntimeCache(self.engine)

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class Engine(tensorrt.Engine):
    def create_runtime_config(self):
        return RuntimeConfig(self)

    def create_execution_context(self, config):
        if isinstance(config, RuntimeConfig):
            assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED      # noqa: F405
            gpu.GPU.calls.append(config.cuda_graph_strategy.name)
            return Context(self, config.cache)
        return super().create_execution_context(config)


class Context(tensorrt.Context):
    def __init__(self, engine, cache):
        super().__init__(engine)
        self.cache = cache

    def execute_async_v3(self, stream):
        kernel = json.dumps([self.profile, self.shapes])
        if self.cache is not None and kernel not in self.cache.kernels:
            gpu.GPU.calls.append("a kernel is finished")
            self.cache.kernels.add(kernel)
        return super().execute_async_v3(stream)
