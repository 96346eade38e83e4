"""One ONNX file -> one engine, by the vendor's builder. Nothing about PS3 in here.

    engine = build(module, "encode.onnx", Plan(profiles=[{"tokens": (1, 729, 2559), ...}], ...), progress)

The same code drives TensorRT 10 and 11 and TensorRT-RTX 1.x: what only one of them has is asked for with hasattr.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ps3_sdk.atomic import replaced
from ps3_sdk.errors import ExportError
from ps3_sdk.runtimes.trt_vendor import log_of

Profile = dict[str, tuple[int, int, int]]       # symbolic size or name of a shape input -> least, best, most


@dataclass(frozen=True)
class Plan:
    """inputs: {name: shape of sizes and symbolic names} | sms: compute capabilities to build for; empty: the GPU of this machine | precision, sizes_given: what was asked
    for, as --max-tokens 4000, so that an error does not advise it."""
    name: str
    inputs: dict[str, tuple[int | str, ...]]
    profiles: tuple[Profile, ...]
    sms: tuple[int, ...] = ()
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    precision: str = ""
    sizes_given: tuple[str, ...] = ()


def build(module, onnx_path: str | Path, plan: Plan, progress: Callable[[str], None] = lambda line: None) -> memoryview:
    """The serialised engine. Raises ExportError with the builder's own reason."""
    log = log_of(module)
    with log.collect():
        builder = _builder(module, log)
        flags = module.NetworkDefinitionCreationFlag
        wanted = [getattr(flags, name) for name in ("STRONGLY_TYPED",) if hasattr(flags, name)]      # TensorRT 11 knows no other way
        network = builder.create_network(sum(1 << int(flag) for flag in wanted))
        parser = module.OnnxParser(network, log.logger)
        if not parser.parse_from_file(str(onnx_path)):
            why = "; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, 2))) or log.why()
            raise ExportError(f"[build] {_version(module)} does not read the network {plan.name}: {' '.join(why.split())[:400]}. Upgrade it, or use --runtime onnx.")
        config = builder.create_builder_config()
        _set_flags(module, config)
        if plan.workspace_bytes is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
        _set_gpus(module, config, plan)
        for profile in plan.profiles:
            _add_profile(builder, config, network, plan, profile)
        cache = _timing_cache(module, config, plan)
        monitor = _monitor(module, plan.name, progress)
        if monitor is not None:
            config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ExportError(f"[build] {_version(module)} did not build {plan.name}: {log.why()}. {_fix(log, plan)}")
        if cache is not None:
            _keep(plan.timing_cache, memoryview(config.get_timing_cache().serialize()), progress)
        return memoryview(engine)


def _builder(module, log):
    try:
        return module.Builder(log.logger)
    except TypeError as error:      # pybind11's word for a nullptr
        needed = "Install it again" if hasattr(module, "ComputeCapability") else "The GPU's driver is too old for it, or missing: update the driver, or install the TensorRT of the driver's CUDA"
        raise ExportError(f"[build] {_version(module)} gives no builder: {log.why(str(error)).rstrip('.')}. {needed}.") from error


def _version(module) -> str:
    return f"{module.__name__.replace('_', '-')} {module.__version__}"


def _set_flags(module, config) -> None:
    """float32 means float32: TF32, on by default, rounds like float16. And all memory of a run is the caller's where the vendor can do so, or no run can be captured."""
    known = getattr(module, "BuilderFlag", None)
    if hasattr(known, "TF32"):
        config.clear_flag(known.TF32)
    if hasattr(known, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(known.REQUIRE_USER_ALLOCATION)


def _set_gpus(module, config, plan: Plan) -> None:
    if not plan.sms:
        return
    if not hasattr(config, "set_compute_capability"):
        raise ExportError(f"[build] {_version(module)} builds for the GPU of this machine alone; sm {', '.join(map(str, plan.sms))} was asked for. Leave --sm out, and build "
                          "where the engine will run.")
    config.num_compute_capabilities = len(plan.sms)
    for index, sm in enumerate(plan.sms):
        if not config.set_compute_capability(getattr(module.ComputeCapability, f"SM{sm}"), index):
            raise ExportError(f"[build] {_version(module)} does not build for sm_{sm}. Leave it out of --sm.")


def _add_profile(builder, config, network, plan: Plan, sizes: Profile) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = plan.inputs[tensor.name]
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *[(value,) for value in sizes[tensor.name]])
        elif any(isinstance(size, str) for size in shape):
            profile.set_shape(tensor.name, *[tuple(sizes[size][i] if isinstance(size, str) else size for size in shape) for i in range(3)])
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"[build] {plan.name}: the builder refuses the sizes {sizes}; least, best and most must ascend. Choose another --max-tokens or --max-batch.")


def _timing_cache(module, config, plan: Plan):
    if plan.timing_cache is None:
        return None
    try:
        known = plan.timing_cache.read_bytes() if plan.timing_cache.is_file() else b""
    except OSError as error:
        raise ExportError(f"[build] the timing cache {plan.timing_cache} cannot be read: {error.strerror}. Leave --timing-cache out, or choose another file.") from error
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ExportError(f"[build] the timing cache {plan.timing_cache} is of another GPU or TensorRT. Remove it, or choose another file.")
    return cache


def _keep(path: Path, known: memoryview, progress: Callable[[str], None]) -> None:
    """Write the timing cache. The engine is there and does not need it, so a place that cannot be written is a note."""
    try:
        with replaced(path) as beside:
            Path(beside).write_bytes(known)
    except OSError as error:
        progress(f"note: the timing cache {path} cannot be written: {error.strerror or error}. The engine is not affected. Choose a writable place with room, or kernels are timed again next time.")


def _monitor(module, name: str, progress: Callable[[str], None]):
    """The builder's progress in tenths of its outermost phase; None where the builder has no monitor."""
    if not hasattr(module, "IProgressMonitor"):
        return None

    class Monitor(module.IProgressMonitor):
        def __init__(self):
            module.IProgressMonitor.__init__(self)
            self.outer, self.steps, self.interrupted = None, 1, False

        def phase_start(self, phase_name, parent_phase, num_steps):
            if parent_phase is None:
                self.outer, self.steps = phase_name, max(num_steps, 1)

        def step_complete(self, phase_name, step):
            try:
                if phase_name == self.outer:
                    progress(f"build {name}: {100 * (step + 1) // self.steps} %")
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name):
            pass

    return Monitor()


def _fix(log, plan: Plan) -> str:
    if log.mentions("outofmemory", "out of memory", "insufficient memory", "cudaerror 2:"):
        return f"{smaller(plan)}, build where there is more memory, or give it a larger --workspace."
    if log.mentions("workspace", "could not find any implementation", "no implementation", "no tactics"):
        return f"Give it a larger --workspace{'' if plan.workspace_bytes is None else f' than {plan.workspace_bytes / 2**30:g}'}, or leave it out."
    if log.mentions("driver version is insufficient", "cudaerror 35:", "no cuda-capable", "cudaerror 100:"):
        return "It builds on the GPU of this machine: install a driver for it, or build for other GPUs with --runtime tensorrt-rtx --sm."
    if log.mentions("overflow", "overflown"):
        return f"{smaller(plan)}."
    if log.mentions("hw-specific", "not supported"):
        return "Choose another --precision or leave that GPU out of --sm."
    return f"Try --precision {'fp32' if plan.precision == 'fp16' else 'fp16'}; if that does not help, report it with this message."


def smaller(plan: Plan) -> str:
    """What takes less memory than what was asked for."""
    return f"Give less than {' and '.join(plan.sizes_given)}" if plan.sizes_given else "Give a smaller --max-tokens"
