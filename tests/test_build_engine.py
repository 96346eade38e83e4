"""ps3 build: the graphs it types and quantises, what it writes, and real TensorRT-RTX engines where that builder is installed."""
import json
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
import onnxruntime

import ps3_sdk
from conftest import PHOTO, ROOT
from ps3_sdk import cli
from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import ExportError, RuntimeMissingError
from ps3_sdk.export import quantise
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_bundle import profiles_of
from ps3_sdk.export.engine_options import EngineOptions
from ps3_sdk.export.precision import summed_exactly, to_float16, typed
from ps3_sdk.export.standard_onnx import read_network
from ps3_sdk.tensors import from_bfloat16, to_bfloat16

try:
    import tensorrt_rtx
    HAS_RTX = hasattr(tensorrt_rtx, "Builder")
except ImportError:
    HAS_RTX = False
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="needs TensorRT-RTX: pip install 'ps3_sdk[trt-rtx]'")
LINUX = ("Linux", "x86_64")


def options(runtime="tensorrt-rtx", **changes):
    return EngineOptions(runtime, **{"system": LINUX, **changes})


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "boats.jpg").symlink_to(PHOTO)
    return folder


# -- the graphs -------------------------------------------------------------------------------------------------------

def in_memory(graph):
    model = onnx.ModelProto.FromString(graph.to_onnx("unused", dict.fromkeys(graph.weights, 0)))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=np.ascontiguousarray(graph.weights[tensor.name].load()).tobytes()))
    onnx.checker.check_model(model)
    return model


def inputs_of(graph, sizes, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for port in graph.inputs:
        shape = [sizes.get(size, size) for size in port.shape]
        made[port.name] = np.array([sizes["kept"]]) if port.name == "keep" else rng.integers(0, 200, shape) if port.dtype == "int64" else rng.standard_normal(shape, np.float32)
    return made


SIZES = [dict(batch=1, tokens=50, past=0, kept=50), dict(batch=2, tokens=33, past=729, kept=0)]
BOUND = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}


@pytest.fixture(scope="module")
def bundle(seeded):
    with Bundle.open(seeded) as opened:
        yield opened


@pytest.mark.parametrize("name", ["encode", "score_features", "pool", "encode_prompt"])
@pytest.mark.parametrize("precision, twin", [("fp32", False), ("fp16", False), ("fp16", True), ("bf16", True), ("fp16", "engine")])
def test_typed_networks_say_the_same(bundle, name, precision, twin):
    model = onnx.ModelProto.FromString(bytes(bundle.member(f"{name}.onnx")))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.numpy_helper.from_array(bundle.tensors(f"{name}.safetensors")[tensor.name].copy(), tensor.name))
    original = onnxruntime.InferenceSession(model.SerializeToString())
    graph = summed_exactly(typed(read_network(bundle, name), precision)) if twin == "engine" else typed(read_network(bundle, name), precision, twin)
    made = onnxruntime.InferenceSession(in_memory(graph).SerializeToString())
    names = [port.name for port in graph.outputs]
    for sizes in SIZES:
        given = inputs_of(read_network(bundle, name), sizes)
        typed_in = {port.name: given[port.name].astype(port.dtype) for port in graph.inputs}
        for port, got, want in zip(graph.outputs, made.run(names, typed_in), original.run(names, given)):
            assert got.dtype == port.dtype and got.shape == want.shape
            error = np.abs(got.astype(np.float64) - want).max(initial=0) / max(np.abs(want).max(initial=0), 1e-30)
            assert error <= BOUND[precision], port.name
            assert precision == "fp32" or not want.size or error > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_normalisation_and_residuals_stay_float32(bundle, precision):
    graph = typed(read_network(bundle, "encode"), precision)
    model = onnx.shape_inference.infer_shapes(in_memory(graph), strict_mode=False)
    types_ = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    types_ |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    narrow = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    seen = {}
    for node in model.graph.node:
        seen.setdefault(node.op_type, set()).update(types_[value] for value in node.input if value in types_)
        assert not node.domain, "an engine builder knows standard operators only"
    assert seen["LayerNormalization"] == {onnx.TensorProto.FLOAT} and seen["MatMul"] == seen["Softmax"] == {narrow}
    residuals = [node for node in model.graph.node if node.op_type == "Add" and all(value not in graph.weights for value in node.input)]
    assert len(residuals) == 1 + 2 * bundle.manifest["geometry"]["depth"]
    assert all(types_[value] == onnx.TensorProto.FLOAT for node in residuals for value in node.output if value in types_)
    ports = {port.name: port.dtype for port in (*graph.inputs, *graph.outputs)}
    assert ports["patches"] == ports["tokens"] == "float32" and ports["past_key_0"] == ports["value_2"] == ("float16" if precision == "fp16" else "bfloat16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_product_with_a_weight_is_said_to_add_up_in_float32(bundle, precision):
    graph = summed_exactly(typed(read_network(bundle, "encode"), precision))
    made, read = {node.output[0]: node for node in graph.nodes}, Counter(value for node in graph.nodes for value in node.input)
    stored = {"fp16": "F16", "bf16": "BF16"}[precision]
    products = [node for node in graph.nodes if node.op_type == "MatMul" and made.get(node.input[1], node).input[0] in graph.weights]
    assert len(products) == 1 + 6 * bundle.manifest["geometry"]["depth"]
    for node in products:
        assert [made[value].op_type for value in node.input] == ["Cast", "Cast"] and graph.weights[made[node.input[1]].input[0]].dtype == stored
        assert all(read[value] == 1 for value in node.input), "casts of its own"
    assert not any(node.op_type == "MatMul" and node.input[1] in graph.weights for node in graph.nodes)


def test_attention_is_whole_and_nothing_superfluous_is_left(bundle):
    kinds = [node.op_type for node in read_network(bundle, "encode").nodes]
    depth = bundle.manifest["geometry"]["depth"]
    assert kinds.count("Softmax") == depth and not {"MultiHeadAttention", "Split"} & set(kinds)
    assert kinds.count("Slice") == 3 * depth, "keys, values and features, nothing cut to be joined again"


def test_roundings_are_the_nearest():
    values = np.array([1.0, 1.00390625, 1.01171875, -3.3e38, 0.0, 1e-40], np.float32)
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), torch.from_numpy(values).to(torch.bfloat16).float().numpy())
    assert to_bfloat16(np.float32([1.0]))[0] == 0x3F80
    with pytest.raises(ExportError, match="values up to 7e.04; float16 ends at 65504. Build with --precision bf16"):
        to_float16(np.float32([7e4]), "w")


@pytest.mark.parametrize("precision, bound", [("int8", 0.01), ("fp8", 0.05), ("int4", 0.12)])
def test_quantised_weights_in_the_engine_are_those_that_were_measured(bundle, precision, bound):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((128, 24)).astype(np.float16)
    scales, values = quantise._rounding(lambda: matrix, precision)
    fine = quantise._dequantised(values(), scales(), precision)
    assert np.abs(fine - matrix).max() / np.abs(matrix).max() < bound
    packed = quantise._packed(values(), precision)
    if precision == "int4":
        low, high = (packed & 0xF).astype(np.int8), (packed >> 4).astype(np.int8)
        both = np.stack([low, high], 1).reshape(128, 24)
        np.testing.assert_array_equal(np.where(both > 7, both - 16, both), values())
    elif precision == "int8":
        np.testing.assert_array_equal(packed, values())
    else:
        import ml_dtypes
        np.testing.assert_array_equal(packed.view(ml_dtypes.float8_e4m3fn).astype(np.float32), values())


# -- what is written ------------------------------------------------------------------------------------------------------

def test_the_dry_run_estimates_and_writes_nothing(seeded, tmp_path, capsys):
    assert cli.main(["build", str(seeded), "-o", str(tmp_path / "x.plan"), "--runtime", "tensorrt-rtx", "--sm", "86", "89", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "expected" in out and "RAM" in out and "encode_prompt" in out and "sm_86 (RTX 30), sm_89 (RTX 40)" in out
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["encoder", "vlm"])
def test_a_dry_run_of_a_checkpoint_says_what_one_of_its_bundle_says(tmp_path, capsys, kind):
    tiny_models = pytest.importorskip("tiny_models", reason="needs ps3_sdk[export]")
    if kind == "vlm":       # the embedded bundle was made of this one
        checkpoint, plan = ROOT / "training/model", "default"
    else:
        checkpoint, plan = tiny_models.write(tmp_path / "model", tiny_models.config()), tmp_path / "a.plan"
        assert cli.main(["export", str(checkpoint), "-o", str(plan)]) == 0
    capsys.readouterr()
    said = []
    for source in (checkpoint, plan):
        assert cli.main(["build", str(source), "-o", str(tmp_path / "x.plan"), "--runtime", "onnx", "--dry-run"]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if " MB" in line])
    assert said[0] == said[1] and len(said[0]) >= 4 and not (tmp_path / "x.plan").exists()


def test_a_dry_run_fetches_nothing(tmp_path, capsys):
    assert cli.main(["build", "nvidia/none-such", "-o", str(tmp_path / "x.plan"), "--runtime", "onnx", "--dry-run"]) == 1
    assert "a dry run fetches nothing" in capsys.readouterr().err


def test_profiles_are_the_two_passes(bundle):
    look = sum(bundle.manifest["geometry"]["per_look"])
    low, high = profiles_of("encode", bundle.manifest, options(max_batch=3))
    assert low == {"batch": (1, 1, 3), "tokens": (729,) * 3, "past": (0,) * 3, "keep": (729,) * 3}
    assert high == {"batch": (1, 1, 3), "tokens": (1, look, look), "past": (729,) * 3, "keep": (0,) * 3}
    assert profiles_of("encode", bundle.manifest, options(max_tokens=9000))[1]["tokens"] == (1, look, 9000)


def test_a_precision_too_coarse_is_refused_before_anything_is_built(seeded, tmp_path, monkeypatch):
    from ps3_sdk import verify
    monkeypatch.setitem(verify.LIMITS, "fp16", (1e-6, 0.99, 0.9999))
    with pytest.raises(ExportError, match=r"in fp16 encode_low is off by .*Nothing was written. Build with --precision bf16 or fp32"):
        build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp16"))
    assert not os.listdir(tmp_path)


@needs_rtx
def test_real_engines_for_three_gpus_are_the_same_twice(seeded, tmp_path):
    for name in ("a.plan", "b.plan"):
        build_engine(seeded, tmp_path / name, options(sms=(86, 89, 120)))
    with Bundle.open(tmp_path / "a.plan") as a, Bundle.open(tmp_path / "b.plan") as b:
        record = a.manifest["networks"]["encode"]["engine"]
        assert record["sms"] == [86, 89, 120] and record["builder"] == tensorrt_rtx.__version__
        assert bytes(a.member("encode.engine")[:4]) == b"vtrt"
        assert all(entry["max_relative_error"] <= 5e-3 for entry in a.manifest["parity"].values()) and a.manifest["verify"]["picked_overlap"] >= 0.99
        assert "not yet run on the device" in a.manifest["parity"]["encode_high"]["inputs"]
        same = a.manifest["members"] == b.manifest["members"]
    if not same:
        import ctypes
        if ctypes.CDLL(None).personality(0xFFFFFFFF) == -1 or ctypes.CDLL(None).personality(0x40000) == -1:
            pytest.skip("this container forbids fixed addresses, without which the builder's tables come in any order")
    assert same


@needs_rtx
@pytest.mark.parametrize("precision, sms", [("bf16", (86,)), ("fp8", (89, 120)), ("int8", (86,)), ("fp32", (86,))])
def test_real_engines_in_every_precision(seeded, tmp_path, frames, precision, sms):
    lines = build_engine(seeded, tmp_path / "a.plan", options(sms=sms, precision=precision, calibrate=frames if precision in ("fp8", "int8") else None))
    with Bundle.open(tmp_path / "a.plan") as made:
        assert made.manifest["networks"]["encode"]["precision"] == precision
        assert made.manifest["verify"]["on_a_frame"] == (precision in ("fp8", "int8"))
    assert precision not in ("fp8", "int8") or re.search(rf"{precision} in (\d+) of \1 linear layers", lines[0])


@needs_rtx
def test_layers_go_back_to_half_precision_until_every_stage_is_within_its_limit(seeded, tmp_path, frames, monkeypatch):
    from ps3_sdk import verify
    wanted = options(sms=(86,), precision="int8", calibrate=frames)

    def built(name):
        said = []
        lines = build_engine(seeded, tmp_path / name, wanted, progress=said.append)
        with Bundle.open(tmp_path / name) as made:
            worst = max(made.manifest["parity"][stage]["max_relative_error"] for stage in ("encode_low", "encode_high"))
        some, every = map(int, re.search(r"int8 in (\d+) of (\d+) linear layers", lines[0]).groups())
        return worst, some, every, [line for line in said if "stay in float16" in line]
    worst, some, every, said = built("free.plan")
    assert some == every and not said
    monkeypatch.setitem(verify.LIMITS, "int8", (0.8 * worst, 0.0, 0.0))
    better, fewer, every, said = built("held.plan")
    assert better <= 0.8 * worst and 0 < fewer < every and len(said) >= 1 and said[-1].endswith(f"{every - fewer} layers stay in float16")
    assert said[0].startswith("encode_")
    monkeypatch.setitem(verify.LIMITS, "int8", (1e-9, 0.0, 0.0))
    with pytest.raises(ExportError, match="in int8 encode_.* Nothing was written. Build with --precision fp16"):
        built("never.plan")
    assert not (tmp_path / "never.plan").exists()


@needs_rtx
def test_real_engines_of_the_embedded_bundle(tmp_path):
    lines = build_engine("default", tmp_path / "d.plan", options(sms=(86, 89, 120), check_frame=ROOT / "examples/frames/panel_4k.jpg"))
    assert "sm_86" in lines[0] and "sm_120" in lines[0]
    with Bundle.open(tmp_path / "d.plan") as made:
        networks, parity = made.manifest["networks"], made.manifest["parity"]
        assert {name for name, entry in networks.items() if entry["runtime"] == "tensorrt-rtx"} == set(networks) - {"decode"}, "the language model stays with ONNX Runtime"
        said, = re.findall(r"in all +([\d.]+) MB", "\n".join(build_engine("default", tmp_path / "x.plan", options(sms=(86, 89, 120)), dry_run=True)))
        assert float(said) == pytest.approx(sum(size for name, size in made.members.items() if name.endswith(".engine")) / 1e6, rel=0.3), "the dry run's estimate"
        assert max(entry["max_relative_error"] for entry in parity.values()) <= 5e-3 and made.manifest["verify"]["picked_overlap"] >= 0.99
        # the plan of this release says what a product adds up in: 2 is float32, 0 any type
        sums = {name: Counter(re.findall(rb"accumulation_type=(\d+)", bytes(made.member(f"{name}.engine")))) for name in ("encode", "score_features", "project")}
        assert all(each == {b"2": sum(each.values())} and each for each in sums.values()), sums


@needs_rtx
def test_real_engines_in_int4(tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs ps3_sdk[export]")
    source = tiny_models.write(tmp_path / "model", tiny_models.config(width=64, text=False))
    lines = build_engine(source, tmp_path / "a.plan", options(sms=(89,), precision="int4"))
    assert "int4 in " in lines[0]
    with pytest.raises(ExportError, match="int4 would change no layer"):
        build_engine(tiny_models.write(tmp_path / "narrow", tiny_models.config(width=32, text=False)), tmp_path / "b.plan", options(sms=(89,), precision="int4"))


@needs_rtx
def test_a_real_engine_is_refused_where_there_is_no_driver(seeded, tmp_path):
    try:
        from ps3_sdk.runtimes.cuda_driver import Driver
        Driver().close()
        pytest.skip("there is a GPU here")
    except RuntimeMissingError:
        pass
    build_engine(seeded, tmp_path / "a.plan", options(sms=(86,)))
    with pytest.raises(RuntimeMissingError, match="no NVIDIA driver here.*--runtime onnx"):
        ps3_sdk.Session(tmp_path / "a.plan")


def test_layers_go_back_to_float16_while_a_stage_is_off(bundle):
    graph = read_network(bundle, "encode")
    names = quantise.layers(graph)
    wanted = quantise.Quantisation("int8", {name: quantise.Range(10.0 if i == 3 else 1.0, 1.0) for i, name in enumerate(names)})
    fewer = wanted.without_worst(graph)
    assert names[3] in fewer.left_out and fewer.num_quantised(graph) == len(names) - len(fewer.left_out) < len(names)
    while fewer is not None:
        last, fewer = fewer, fewer.without_worst(graph)
    assert last.num_quantised(graph) > 0


def test_the_script_of_the_checkout_is_the_command(seeded, tmp_path):
    result = subprocess.run([sys.executable, ROOT / "export" / "build_engine.py", seeded, "-o", tmp_path / "x.plan", "--runtime", "onnx", "--dry-run"], capture_output=True,
                            text=True, cwd=tmp_path)
    assert result.returncode == 0 and "would build onnx in fp32" in result.stdout, result.stderr


def test_a_float32_bundle_for_onnx_has_the_very_networks(seeded, tmp_path):
    build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp32"))
    with Bundle.open(seeded) as source, Bundle.open(tmp_path / "x.plan") as made:
        assert made.manifest["networks"] == source.manifest["networks"] and made.manifest["verify"]["picked_overlap"] == 1
        assert made.manifest["members"] == source.manifest["members"] | {"reference.safetensors": made.manifest["members"]["reference.safetensors"]}
        for stage, entry in made.manifest["parity"].items():
            assert entry["max_relative_error"] == source.manifest["parity"][stage]["max_relative_error"]


@pytest.fixture
def opened(monkeypatch):
    """[(name of a network, members of the bundle it is opened from)]"""
    from ps3_sdk.runtimes import ort
    seen, load = [], ort.load
    monkeypatch.setattr(ort, "load", lambda bundle, name, *rest, **more: (seen.append((name, set(bundle.members))), load(bundle, name, *rest, **more))[1])
    return seen


def test_a_language_model_that_is_not_built_is_neither_opened_nor_copied_nor_measured(tmp_path, opened):
    build_engine("default", tmp_path / "x.plan", options("onnx", precision="fp16"))
    assert [name for name, _ in opened].count("decode") == 1, "for its reference values alone"
    assert len(opened) == 9 and "decode.safetensors" in opened[0][1] and "decode.safetensors" not in opened[-1][1], "not in the networks that are measured"
    with Bundle.open(ps3_sdk.session.DEFAULT_BUNDLE) as source, Bundle.open(tmp_path / "x.plan") as made:
        assert made.manifest["parity"]["decode"] == source.manifest["parity"]["decode"] and "fp16" in made.manifest["parity"]["project"]["inputs"]
        assert made.manifest["networks"]["decode"] == source.manifest["networks"]["decode"] and made.members["decode.safetensors"] == source.members["decode.safetensors"]
        assert "decode.logits" in made.tensors("reference.safetensors")


def test_what_was_not_built_keeps_its_certificate():
    from ps3_sdk.export.engine_bundle import _manifest
    from ps3_sdk.verify import Report
    with Bundle.open(ps3_sdk.session.DEFAULT_BUNDLE) as source:
        made = _manifest(source.manifest, options("onnx"), Report({"encode_low": 0.5, "gather": 0.5, "decode": 0.5}, 1.0, None), True, np.empty((9, 16, 3)), None, "fp16")
        assert made["parity"]["encode_low"]["max_relative_error"] > 0.5
        assert all(made["parity"][stage] == source.manifest["parity"][stage] for stage in ("decode", "gather") if stage in source.manifest["parity"])


def test_calibration_opens_no_language_model(opened):
    from ps3_sdk.export.calibrate import measure_ranges
    with Bundle.open(ps3_sdk.session.DEFAULT_BUNDLE) as source:
        assert measure_ranges(source, [ROOT / "examples/frames/panel_4k.jpg"])
    assert "encode" in dict(opened) and "decode" not in dict(opened)


def test_memory_of_each_session_is_given_back_before_the_next(seeded, tmp_path, monkeypatch):
    from ps3_sdk.export import engine_bundle
    said = []
    monkeypatch.setattr(engine_bundle, "let_go", lambda arrays: said.append("let go"))
    build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp16"), progress=lambda line: said.append(line[:3]))
    assert [line for line in said if line in ("run", "let go")] == ["run", "let go", "run", "let go"]


def test_the_bundle_is_json_and_complete(seeded, tmp_path):
    build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp32", check_frame=PHOTO))
    with Bundle.open(tmp_path / "x.plan") as made:
        text = json.loads(bytes(made.member("manifest.json")))
        assert text["verify"]["on_a_frame"] and "3840x2160" in text["parity"]["encode_low"]["inputs"] and text["parity"]["encode_low"]["max_relative_error"] < 1e-5
