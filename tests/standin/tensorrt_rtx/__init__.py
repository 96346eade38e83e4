"""TensorRT-RTX where it differs from the stand-in of TensorRT: engines are for the GPUs that were named when they were built, there is no timing cache, and
graphs are captured inside, as a context's configuration says."""
import enum
import json

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


class RuntimeConfig:
    cuda_graph_strategy, strategy = CudaGraphStrategy.DISABLED, None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy


class Engine(tensorrt.Engine):
    create_runtime_config = staticmethod(RuntimeConfig)

    def create_execution_context(self, config):
        if isinstance(config, RuntimeConfig):
            gpu.GPU.calls.append(config.cuda_graph_strategy.name)
            config = config.strategy
        return super().create_execution_context(config)
