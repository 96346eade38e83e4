"""Engines of TensorRT-RTX and older releases of TensorRT, driven as in test_trt_runtime.py with stand-ins of the vendor's module and of the GPU."""
import contextlib
import gc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from ps3_sdk.errors import BundleError, InputError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import EngineOptions
from test_trt_runtime import TOKENS, gpu, rows      # noqa: F401, gpu is a fixture


@pytest.fixture(scope="module")
def plans(seeded, standin, tmp_path_factory):
    """{runtime: engine.plan} of the stand-ins, fp16."""
    folder = tmp_path_factory.mktemp("plans")
    for runtime, sms in (("tensorrt", ()), ("tensorrt-rtx", (86, 120))):
        build_engine(seeded, folder / f"{runtime}.plan", EngineOptions(runtime, sms=sms, max_tokens=2559, max_batch=2))
    return {runtime: folder / f"{runtime}.plan" for runtime in ("tensorrt", "tensorrt-rtx")}


@pytest.mark.parametrize("sm", [86, 120])
def test_engines_of_tensorrt_rtx_run_on_each_gpu_that_they_are_for(plans, gpu, photo, sm):
    with ps3_sdk.Session(plans["tensorrt"], verify=False) as other:
        wanted = other.encode(photo, "a boat", tokens=TOKENS).tokens
    gpu.sm = sm
    with ps3_sdk.Session(plans["tensorrt-rtx"], verify=False) as session:
        found = [session.encode(photo, "a boat", tokens=TOKENS).tokens for _ in range(3)]
        assert "WHOLE_GRAPH_CAPTURE" in gpu.calls and not gpu.graphs, "it captures by itself, once the kernels of a size are finished"
        with pytest.raises(InputError, match=r"\[trt_rtx\] encode was built for .*--runtime tensorrt-rtx --sm 86 120 .*--max-tokens 2600"):
            session.encode_high(*rows(session, 2600, 2600), session.look(photo).kv)
    for tokens in found:
        np.testing.assert_array_equal(tokens, wanted)
    gc.collect()
    assert not gpu.memory and not gpu.contexts


def finished(gpu, plan, photo, folder, **more):
    """How many kernels a session that is opened, asked and closed had to finish."""
    gpu.calls.clear()
    with ps3_sdk.Session(plan, verify=False, kernel_cache=folder, **more) as session:
        session.encode(photo, "a boat", tokens=TOKENS)
    return gpu.calls.count("a kernel is finished")


def test_finished_kernels_are_kept_for_the_next_process(plans, gpu, photo, tmp_path):
    gpu.sm, plan = 86, plans["tensorrt-rtx"]
    first = finished(gpu, plan, photo, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert first >= 3 and len(kept) == 4, "one file an engine"
    assert finished(gpu, plan, photo, tmp_path) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    gpu.sm = 120
    assert finished(gpu, plan, photo, tmp_path) == first, "those of another GPU are of no use"
    assert finished(gpu, plan, photo, tmp_path) == 0
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])        # the robot was switched off
    assert finished(gpu, plan, photo, tmp_path) == first
    assert finished(gpu, plan, photo, tmp_path) == 0


def test_finished_kernels_are_kept_when_nobody_closes_the_session(plans, gpu, photo, tmp_path):
    gpu.sm = 86
    session = ps3_sdk.Session(plans["tensorrt-rtx"], verify=False, kernel_cache=tmp_path)
    session.encode(photo, "a boat", tokens=TOKENS)
    del session
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 4 and not gpu.memory


def test_a_kernel_cache_that_cannot_be_is_refused_and_a_full_disk_is_told(plans, gpu, photo, tmp_path, monkeypatch):
    gpu.sm = 86
    with pytest.raises(InputError, match=r"\[session\] .* cannot be written: there is no folder .*nowhere"):
        ps3_sdk.Session(plans["tensorrt-rtx"], verify=False, kernel_cache=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"kernel_cache was given; .* has no engine of TensorRT-RTX"):
        ps3_sdk.Session(plans["tensorrt"], verify=False, kernel_cache=tmp_path)

    @contextlib.contextmanager
    def full(path):
        raise OSError(28, "No space left on device")
        yield
    monkeypatch.setattr("ps3_sdk.runtimes.kernel_cache.replaced", full)
    with pytest.warns(UserWarning, match="was not written: No space left on device. The next session finishes these kernels anew"):
        finished(gpu, plans["tensorrt-rtx"], photo, tmp_path)
    assert not gpu.memory and not list(tmp_path.iterdir())


def test_a_tensorrt_rtx_that_cannot_capture_by_itself_has_its_runs_captured(plans, gpu, photo, monkeypatch):
    """Before 1.2."""
    import tensorrt_rtx
    monkeypatch.delattr(tensorrt_rtx, "CudaGraphStrategy")
    gpu.sm = 86
    with ps3_sdk.Session(plans["tensorrt-rtx"], verify=False) as session:
        first, *others = (session.encode(photo, "a boat", tokens=TOKENS).tokens for _ in range(4))
        assert gpu.graphs and "cuGraphLaunch" in gpu.calls
    for tokens in others:
        np.testing.assert_array_equal(tokens, first)


def test_engines_of_tensorrt_rtx_are_refused_where_they_do_not_fit(plans, gpu, monkeypatch):
    with pytest.raises(BundleError, match=r"\[trt_rtx\] encode of .* was built for sm_86, sm_120; this GPU, Stand-in, is sm_87. Rebuild: ps3 build .* --runtime tensorrt "):
        ps3_sdk.Session(plans["tensorrt-rtx"], verify=False)
    gpu.sm = 89
    with pytest.raises(BundleError, match="is sm_89. Rebuild: ps3 build .* --runtime tensorrt-rtx --sm 86 89 120"):
        ps3_sdk.Session(plans["tensorrt-rtx"], verify=False)
    gpu.sm = 120
    import tensorrt_rtx
    monkeypatch.setattr(tensorrt_rtx, "__version__", "1.6.0.1")
    with pytest.raises(BundleError, match="was built by tensorrt-rtx 1.7.1.116; here is 1.6.0.1"):
        ps3_sdk.Session(plans["tensorrt-rtx"], verify=False)


def test_releases_that_lack_newer_calls_are_driven_by_older_ones(plans, gpu, photo, monkeypatch):
    """TensorRT 10.0: working memory is set and asked for in other ways."""
    import tensorrt
    with ps3_sdk.Session(plans["tensorrt"], verify=False) as session:
        wanted = session.encode(photo, "a boat", tokens=TOKENS).tokens
    monkeypatch.delattr(tensorrt.Context, "set_device_memory")
    monkeypatch.delattr(tensorrt.Engine, "get_device_memory_size_for_profile_v2")
    with ps3_sdk.Session(plans["tensorrt"], verify=False) as session:
        for _ in range(3):
            np.testing.assert_array_equal(session.encode(photo, "a boat", tokens=TOKENS).tokens, wanted)


def test_releases_that_lack_older_calls_are_driven_by_newer_ones(plans, gpu, photo, monkeypatch, tmp_path):
    """TensorRT 11: every network is strongly typed, and working memory is told by profile alone."""
    import enum
    import tensorrt
    from ps3_sdk.export.to_engine import Plan, build
    monkeypatch.delattr(tensorrt.Engine, "device_memory_size")
    monkeypatch.delattr(tensorrt.Context, "device_memory")
    monkeypatch.setattr(tensorrt, "NetworkDefinitionCreationFlag", enum.IntEnum("NetworkDefinitionCreationFlag", {"PREFER_AOT_PYTHON_PLUGINS": 2}))
    with ps3_sdk.Session(plans["tensorrt"], verify=False) as session:
        assert session.encode(photo, "a boat", tokens=TOKENS).picked
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]), ir_version=9), tmp_path / "g.onnx")
    assert bytes(build(tensorrt, tmp_path / "g.onnx", Plan("encode", {"x": ("tokens", 4)}, ({"tokens": (1, 2, 3)},)))).startswith(tensorrt.MAGIC)
