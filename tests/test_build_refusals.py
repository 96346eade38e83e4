"""ps3 build: what it refuses before any work, and what it says."""
import os
import sys
import types
from pathlib import Path

import pytest

from conftest import ROOT

pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

from ps3_sdk.errors import BundleError, ExportError, InputError, RuntimeMissingError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import check_options, rtx_sms
from ps3_sdk.export.engine_sizes import Size, estimate
from ps3_sdk.export.to_engine import Plan
from test_build_engine import frames, options     # noqa: F401, frames is a fixture


@pytest.mark.parametrize("wanted, says", [
    (dict(runtime="tensorrt-rtx", sms=(75,), precision="bf16"), r"bf16 for sm_75 \(RTX 20\).*--precision fp16"),
    (dict(sms=(86,), precision="fp8"), r"fp8 for sm_86 \(RTX 30\).*sm_89 and newer.*--precision fp16"),
    (dict(sms=(87,)), "does not build for .*Jetson Orin.*on that machine with --runtime tensorrt"),
    (dict(sms=(90,)), "not build for .*H100.*on that machine"), (dict(sms=(110,)), "not build for .*Jetson Thor.*on that machine"),
    (dict(runtime="tensorrt", sms=(53,), precision="int8"), "int8 for sm_53.*has no int8 arithmetic.*--precision fp16"),
    (dict(runtime="tensorrt", sms=(62,), precision="int8"), "int8 for sm_62; that GPU has no int8 arithmetic, unlike most that are as new.*--precision fp16"),
    (dict(runtime="tensorrt", sms=(86, 89)), "sm 86, 89 was asked for; TensorRT builds for one GPU.*--runtime tensorrt-rtx"),
    (dict(system=("Windows", "AMD64")), "Windows AMD64; engines are built on Linux.*WSL"),
    (dict(runtime="onnx", precision="bf16"), "bf16 for --runtime onnx"), (dict(runtime="onnx", precision="int8"), "ps3 export CHECKPOINT -o engine.plan --precision int8"),
])
def test_combinations_that_cannot_be(wanted, says):
    with pytest.raises(ExportError, match=says):
        check_options(options(**wanted))


@pytest.mark.parametrize("wanted, says", [
    (dict(runtime="openvino"), "runtime is 'openvino'; one of tensorrt"), (dict(precision="fp64"), "precision is 'fp64'"),
    (dict(max_tokens=0), "max-tokens is 0"), (dict(max_batch=-1), "max-batch is -1"), (dict(workspace_gb=0), "workspace is 0 GB"),
    (dict(workspace_gb=float("inf")), "workspace is inf GB"), (dict(workspace_gb=float("nan")), "workspace is nan GB"),
    (dict(runtime="tensorrt", timing_cache=Path(__file__).parent), "timing-cache .*tests is no file"), (dict(runtime="tensorrt", timing_cache=Path("/no/such/cache")), "no file in a folder"),
    (dict(precision="int8"), "int8 without --calibrate.*choose fp16"), (dict(runtime="onnx", precision="fp32", max_tokens=5), "--max-tokens was given"),
    (dict(runtime="onnx", precision="fp32", sms=(86,)), "--sm was given"), (dict(llm_precision="int3"), "llm-precision is 'int3'; one of fp32, fp16, int4"),
])
def test_values_that_cannot_be(wanted, says):
    with pytest.raises(InputError, match=says):
        check_options(options(**wanted))


def test_the_frame_that_is_measured_on_was_not_calibrated_with(tmp_path):
    from ps3_sdk.export.engine_options import MAX_FRAMES, calibration_frames
    for number in range(100):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"")
    frames, measured = calibration_frames(tmp_path)
    assert measured.name == "099.jpg" and measured not in frames and len(set(frames)) == MAX_FRAMES and frames[0].name == "000.jpg" and frames[-1].name > "090"
    sizes = {"encode": Size(400_000_000)}
    assert estimate(sizes, options(precision="int8", calibrate=tmp_path)).seconds - estimate(sizes, options()).seconds > 25 * 60 * len(frames) / 30
    for path in frames + [tmp_path / f"{number:03}.jpg" for number in range(1, 100)]:
        path.unlink(missing_ok=True)
    (tmp_path / "one.jpg").write_bytes(b"")
    assert calibration_frames(tmp_path) == ([tmp_path / "one.jpg"], tmp_path / "one.jpg")


def test_what_is_expected_is_what_was_measured():
    """The table of docs/engines.md: fp16, the largest plan is encode's."""
    for weights, products, least, most in ((412_145_136, 217, 3.5, 3.7), (1_661_568, 65, 0.55, 0.6)):
        assert least <= estimate({"encode": Size(weights, products), "pool": Size(weights // 30, 8)}, options()).ram_gb <= most


@pytest.mark.parametrize("dry_run", [True, False])
def test_fewer_patches_than_scales_are_refused_before_any_work(seeded, tmp_path, monkeypatch, standin, dry_run):
    monkeypatch.setattr("ps3_sdk.export.build_engine.read_network", lambda *_: pytest.fail("a network is read"))
    for few in (1, 2):
        with pytest.raises(InputError, match=rf"max-tokens is {few}; a look shares them among 3 high-res scales, and each gets a patch from \d+ on"):
            build_engine(seeded, tmp_path / "x.plan", options("tensorrt", max_tokens=few), dry_run=dry_run)
    assert not os.listdir(tmp_path)
    pytest.importorskip("torch", reason="needs ps3_sdk[export]")
    monkeypatch.setattr("ps3_sdk.export.export_checkpoint.export_checkpoint", lambda *_, **__: pytest.fail("a checkpoint is exported"))
    for checkpoint in (ROOT / "training/model", ROOT / "training/model/vision_tower"):
        with pytest.raises(InputError, match="a look shares them among 3 high-res scales"):
            build_engine(checkpoint, tmp_path / "x.plan", options("tensorrt", max_tokens=2), dry_run=dry_run)


def test_a_timing_cache_that_cannot_be_written_is_refused_before_any_work(seeded, tmp_path, monkeypatch, standin):
    monkeypatch.setattr("ps3_sdk.export.build_engine.read_network", lambda *_: pytest.fail("a network is read"))
    with pytest.raises(InputError, match=r"^\[build\] /proc/kernels.cache cannot be written"):
        build_engine(seeded, tmp_path / "x.plan", options("tensorrt", timing_cache=Path("/proc/kernels.cache")))
    assert not os.listdir(tmp_path)


def test_a_timing_cache_that_fails_at_the_end_costs_nothing(tmp_path, monkeypatch):
    from ps3_sdk.export import to_engine
    (tmp_path / "kernels.cache").write_bytes(b"old")
    lines = []

    def full(self, data):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        to_engine._keep(tmp_path / "kernels.cache", memoryview(b"new"), lines.append)
    assert "kernels.cache cannot be written: No space left on device. The engine is not affected" in lines[0]
    assert (tmp_path / "kernels.cache").read_bytes() == b"old" and os.listdir(tmp_path) == ["kernels.cache"]


def test_an_engine_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    import json
    from ps3_sdk.export import build_apart
    (tmp_path / "request.json").write_text(json.dumps({"runtime": "tensorrt", "onnx": "x.onnx", "plan": dict(name="encode", inputs={}, profiles=[], sms=[], timing_cache=None)}))

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(build_apart, "vendor", lambda *_: None)
    monkeypatch.setattr(build_apart, "build", lambda *_: b"engine")
    monkeypatch.setattr(Path, "write_bytes", full)
    build_apart.main([str(tmp_path), build_apart.FIXED])
    said = json.loads((tmp_path / "answer.json").read_text())
    assert "cannot be written to (No space left on device); encode.engine lies there" in said and "Free some space" in said and not (tmp_path / "encode.engine").exists()
    with pytest.raises(ExportError, match="request.json lies there until.*Free some space"):
        build_apart.build_apart("tensorrt", tmp_path / "x.onnx", Plan("encode", {}, ()), tmp_path, print)


def test_calibration_needs_the_users_own_pictures(tmp_path, frames):
    (tmp_path / "empty").mkdir()
    for folder, says in ((tmp_path / "empty", "holds no picture.*wrong ranges in silence"), (tmp_path / "missing", "is no folder")):
        with pytest.raises(InputError, match=says):
            check_options(options(precision="int8", calibrate=folder))
    with pytest.raises(InputError, match="fp16 needs no calibration"):
        check_options(options(calibrate=frames))


def test_gpus_that_a_release_does_not_know():
    module = types.SimpleNamespace(__version__="1.0", ComputeCapability=type("C", (), {"SM86": 0, "SM89": 1, "SM75": 2, "NONE": 3}))
    assert rtx_sms(options(), module) == (86, 89) and rtx_sms(options(sms=(75,)), module) == (75,)
    with pytest.raises(ExportError, match="does not build for sm_120.*upgrade"):
        rtx_sms(options(sms=(86, 120)), module)


def test_a_release_that_knows_more_gpus_may_build_for_them(seeded, tmp_path, monkeypatch):
    newer = types.SimpleNamespace(__version__="9.0", ComputeCapability=type("C", (), {"SM86": 0, "SM110": 1}))
    monkeypatch.setattr("ps3_sdk.export.build_engine.vendor", lambda runtime, where: newer)
    for sms in ((), (110,)):
        lines = build_engine(seeded, tmp_path / "x.plan", options(sms=sms), dry_run=True)
        assert "sm_110 (Jetson Thor)" in lines[0]
    with pytest.raises(ExportError, match="does not build for sm_120"):
        build_engine(seeded, tmp_path / "x.plan", options(sms=(120,)), dry_run=True)


def test_a_builder_that_says_much_does_not_hang(tmp_path, monkeypatch):
    from ps3_sdk.export import build_apart
    from ps3_sdk.export.to_engine import Plan
    says = "import sys; sys.stderr.write('much noise ' * 40_000); print('half done'); sys.exit(3)"
    monkeypatch.setattr(build_apart, "module", lambda *words: [sys.executable, "-c", says])
    lines = []
    with pytest.raises(ExportError, match=r"builder of encode died \(exit status 3\); .*much noise"):
        build_apart.build_apart("tensorrt", tmp_path / "x.onnx", Plan("encode", {}, (), (), None), tmp_path, lines.append)
    assert lines == ["half done"]


def test_bundles_that_are_no_source(seeded, tmp_path, monkeypatch):
    build_engine(seeded, tmp_path / "half.plan", options("onnx", precision="fp16"))
    with pytest.raises(ExportError, match="fp16 for onnxruntime; engines are built from float32"):
        build_engine(tmp_path / "half.plan", tmp_path / "x.plan", options("onnx", precision="fp32"))
    (tmp_path / "no.plan").write_bytes(b"nothing")
    with pytest.raises(BundleError):
        build_engine(tmp_path / "no.plan", tmp_path / "x.plan", options("onnx", precision="fp32"))
    def nothing(*_):
        raise AssertionError("a place that cannot be written is refused before any work")
    monkeypatch.setattr("ps3_sdk.export.build_engine.read_network", nothing)
    for place, says in ((tmp_path / "no" / "x.plan", "there is no folder"), (tmp_path, "is a folder; what is written is one file"), (Path("/proc/x.plan"), "/proc/x.plan cannot be written")):
        with pytest.raises(ExportError, match=says):
            build_engine(seeded, place, options("onnx", precision="fp32"))
    assert sorted(os.listdir(tmp_path)) == ["half.plan", "no.plan"], "nothing half-written is left behind"


def test_a_builder_that_is_not_installed_names_its_extra(seeded, tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for runtime, extra in (("tensorrt", "trt"), ("tensorrt-rtx", "trt-rtx")):
        with pytest.raises(RuntimeMissingError, match=rf"\[build\] {runtime} .*pip install 'ps3_sdk\[{extra}\]'"):
            build_engine(seeded, tmp_path / "x.plan", options(runtime))
    folder = types.ModuleType("tensorrt_rtx")       # what Python makes of an empty folder of that name
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", folder)
    with pytest.raises(RuntimeMissingError, match="is not tensorrt-rtx"):
        build_engine(seeded, tmp_path / "x.plan", options())


def test_tensorrt_without_a_gpu(seeded, tmp_path, monkeypatch):
    from ps3_sdk.runtimes import cuda_driver
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.3.0"))

    def none(*_):
        raise RuntimeMissingError("[cuda] there is no NVIDIA driver here.")
    monkeypatch.setattr(cuda_driver, "Driver", none)
    with pytest.raises(ExportError, match="TensorRT builds on the GPU that the engine is for; there is no NVIDIA driver here"):
        build_engine(seeded, tmp_path / "x.plan", options("tensorrt"))
