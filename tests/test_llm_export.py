"""The language model's network: what the builder makes, beside the PyTorch reference, plain numpy and the golden answers."""
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_llm

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

from ps3_sdk.decode import Decoder, TokenEmbedding
from ps3_sdk.errors import ExportError, RuntimeMissingError
from ps3_sdk.export import llm_builder
from ps3_sdk.export.check import relative_error
from ps3_sdk.export.llm import LLM_PRECISIONS, build_llm, measure_llm, quantise, token_embedding
from ps3_sdk.export.reference.vila.config import LlmConfig
from ps3_sdk.export.reference.fields import Fields
from ps3_sdk.export.reference.vila.llm import Decoder as Reference
from ps3_sdk.export.weights import Checkpoint, load_into
from ps3_sdk.export.write_bundle import SafetensorsLayout
from ps3_sdk.runtimes import ort
from ps3_sdk.tensors import views

try:
    llm_builder.check_packages()
    missing = ""
except RuntimeMissingError as error:
    missing = str(error)
needs_builder = pytest.mark.skipif(bool(missing), reason=missing or "present")

GOLDEN = Path(__file__).parent / "golden" / "vila_hd"
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
MODELS = {
    "plain": {},
    "qwen2 tied, bf16": dict(c=tiny_llm.config(tie_word_embeddings=True), dtype="bf16"),
    "llama, stretched positions, f16, two shards": dict(c=tiny_llm.config("llama", **LINEAR), dtype="f16", shards=2),
    "mistral": dict(c=tiny_llm.config("mistral", num_key_value_heads=4)),
}


def reference(folder, vocabulary=None):
    with torch.device("meta"):
        model = Reference(LlmConfig.parse(Fields.read(folder / "config.json")))
    checkpoint = Checkpoint.open(folder)
    load_into(model, checkpoint, {"lm_head.weight": tuple(model.model.embed_tokens.weight.shape)} if model.lm_head is None else None)
    if vocabulary:
        model.cut_vocabulary(vocabulary)
    return model.eval()


class Member:
    """Just enough of a bundle for an adapter: the network's two members in one file, the weights at an odd place."""

    def __init__(self, path: Path, llm):
        with open(path, "wb") as file:
            file.write(b"\0" * 64 * 7)
            for chunk in llm.layout.chunks(llm.load):
                file.write(chunk)
        onnx_bytes = llm.to_onnx("llm.safetensors", llm.layout.offsets)
        self.path, self.members = path, {"llm.safetensors": llm.layout.size, "llm.onnx": len(onnx_bytes)}
        self.manifest = {"networks": {"llm": {"file": "llm.onnx", "weights": "llm.safetensors", "precision": llm.precision}}}
        self.member = lambda name: onnx_bytes
        self.offset = lambda name: 64 * 7


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="module")
def plain(work):
    """A checkpoint and the work_dir of its builds, which take seconds each and are shared."""
    return tiny_llm.write(work / "plain"), work / "plain work"


@pytest.fixture
def plain_copy(plain, tmp_path):
    """The same with an fp32 build that may be changed."""
    build_llm(*plain)
    shutil.copytree(plain[1], tmp_path / "work")
    return plain[0], tmp_path / "work"


@pytest.fixture(scope="module", params=MODELS)
def built(request, work, plain):
    folder, place = plain if request.param == "plain" else (tiny_llm.write(work / request.param, **MODELS[request.param]), work / f"{request.param} work")
    return folder, build_llm(folder, place)


# -- the graph --------------------------------------------------------------------------------------------------------

@needs_builder
def test_fp32_is_the_reference(built):
    folder, llm = built
    model = reference(folder)
    embed = TokenEmbedding(token_embedding(folder).load())
    for chunk_rows in (9, 512):
        found = measure_llm(Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec, chunk_rows), model, embed)
        assert max(found["hidden"], found["logits"]) <= 1e-5 and found["argmax_agreement"] == 1, found
    assert "64 random tokens" in found["inputs"] and "float32" in found["against"]


@needs_builder
def test_fp32_is_plain_numpy_and_so_is_the_fixture(plain):
    c = tiny_llm.config()
    weights, llm = tiny_llm.tensors(c), build_llm(*plain)
    numpy_model = Decoder(tiny_llm.NumpyNetwork(c, weights), llm.spec)
    rows = TokenEmbedding(weights["model.embed_tokens.weight"])(np.arange(30))
    wanted = numpy_model.prefill(rows[20:], numpy_model.prefill(rows[:20]))
    for model in (llm.in_memory(), str(tiny_llm.ONNX)):
        decoder = Decoder(tiny_llm.OrtNetwork(model), llm.spec)
        got = decoder.prefill(rows[20:], decoder.prefill(rows[:20]))
        assert relative_error(got.logits, wanted.logits) <= 1e-5 and relative_error(got.hidden, wanted.hidden) <= 1e-5
        assert all(relative_error(got.kv[name], wanted.kv[name]) <= 1e-5 for name in wanted.kv)


@needs_builder
@pytest.mark.parametrize("precision", LLM_PRECISIONS)
def test_a_runtime_maps_it_out_of_a_bundle(plain, tmp_path, precision):
    folder, place = plain
    llm = build_llm(folder, place, precision)
    path = tmp_path / f"{precision}.plan"
    decoder = Decoder(ort.load(Member(path, llm), "llm"), llm.spec)
    rows = TokenEmbedding(token_embedding(folder).load())(np.arange(20))
    apart = Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec)
    assert relative_error(decoder.prefill(rows).logits, apart.prefill(rows).logits) < (1e-2 if precision == "fp16" else 1e-5)
    stored = views(memoryview(path.read_bytes())[64 * 7:], "the member")
    assert set(stored) == set(llm.weights)
    for name, weight in llm.weights.items():
        assert (weight.load() == stored[name]).all() and weight.num_bytes == stored[name].nbytes
    model = onnx.ModelProto.FromString(llm.to_onnx("llm.safetensors", llm.layout.offsets))
    inside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) + sum(len(a.t.raw_data) for node in model.graph.node for a in node.attribute)
    assert inside < 1024 and isinstance(llm.layout, SafetensorsLayout)


@needs_builder
def test_ports_and_spec_tell_what_the_graph_takes(built):
    _, llm = built
    model = onnx.ModelProto.FromString(llm.in_memory())
    for ports, values in ((llm.inputs, model.graph.input), (llm.outputs, model.graph.output)):
        assert [port.name for port in ports] == [value.name for value in values]
    assert [port.name for port in llm.inputs[:3]] == ["inputs_embeds", "attention_mask", "past_key_values.0.key"]
    assert llm.spec.vocabulary == tiny_llm.VOCABULARY and llm.outputs[1].shape == ("batch", 1, 264)
    assert (llm.spec.width, llm.spec.num_layers, llm.spec.head_width, llm.spec.context_length) == (64, 2, 16, 96)


@needs_builder
def test_reduced_precisions_are_measured(plain):
    folder, place = plain
    model, embed = reference(folder), TokenEmbedding(token_embedding(folder).load())
    errors = {}
    for precision in LLM_PRECISIONS:
        llm = build_llm(folder, place, precision)
        errors[precision] = measure_llm(Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec), model, embed)
    assert errors["fp32"]["logits"] < 1e-5 < errors["fp16"]["logits"] < 0.02 < errors["int4"]["logits"] < 1
    assert errors["fp32"]["argmax_agreement"] == 1 and errors["fp16"]["argmax_agreement"] > 0.9 and errors["int4"]["argmax_agreement"] > 0.2


@needs_builder
def test_values_beyond_a_precision_are_measured_as_infinite(work):
    c = tiny_llm.config()
    values = tiny_llm.tensors(c)
    values["model.layers.0.mlp.down_proj.weight"] *= 1e5
    folder = tiny_llm.write(work / "large", values=values)
    llm = build_llm(folder, work / "large work", "fp16")
    found = measure_llm(Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec), reference(folder), TokenEmbedding(token_embedding(folder).load()))
    assert found["logits"] == float("inf") and found["argmax_agreement"] == 0


@needs_builder
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_has_the_bytes_of_the_builders_own(plain, work, precision):
    folder, place = plain
    llm = build_llm(folder, place, precision)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", work / f"own {precision}", "-p", precision,
               "-e", llm_builder.PROVIDERS[precision], "-c", work / "cache", "--extra_options", *llm_builder.OPTIONS]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    theirs = onnx.load(work / f"own {precision}" / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    assert set(tensors) == set(llm.weights) and len(tensors) > 15
    assert all((array == llm.load(name)).all() for name, array in tensors.items())


@needs_builder
def test_weights_of_the_checkpoint_are_read_when_they_are_written(plain, monkeypatch):
    """Nothing but vectors is read while the graph is made: a model that does not fit in memory can be exported."""
    folder, place = plain
    build_llm(folder, place)
    read = []
    for way in ("array", "rows"):
        monkeypatch.setattr(Checkpoint, way, lambda self, name, *options, given=getattr(Checkpoint, way): read.append(name) or given(self, name, *options))
    llm = build_llm(folder, place, "int4")
    assert read == []
    for name in llm.layout.order:
        llm.load(name)
    assert len(read) == len(set(read)), "a matrix was quantised twice"


@needs_builder
def test_int4_has_the_bytes_of_the_builders_own(work):
    folder = tiny_llm.write(work / "int4", tiny_llm.config(intermediate_size=80))       # 80 is not a multiple of the block
    llm = build_llm(folder, work / "int4 work", "int4")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", folder, "-o", work / "theirs", "-p", "int4", "-e", "cpu", "-c", work / "cache",
               "--extra_options", *llm_builder.OPTIONS]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    theirs = onnx.load(work / "theirs" / "model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    assert set(tensors) == set(llm.weights) and any(name.endswith("_Q4") for name in tensors)
    for name, array in tensors.items():
        assert (array == llm.load(name)).all(), name
    ours = onnx.ModelProto.FromString(llm.in_memory())
    nodes = lambda model: sorted((node.op_type, tuple(node.input), tuple(node.output), sorted((a.name, a.i) for a in node.attribute)) for node in model.graph.node if node.op_type == "MatMulNBits")
    assert nodes(ours) == nodes(theirs)


def test_quantised_weights_are_within_half_a_step():
    matrix = np.random.Generator(np.random.PCG64(0)).standard_normal((70, 5)).astype(np.float32)
    packed, scales = quantise(matrix)
    assert packed.shape == (5, 3, 16) and scales.shape == (5, 3)
    nibbles = np.stack([packed & 15, packed >> 4], -1).reshape(5, 3, 32).astype(np.float32) - 8
    back = (nibbles * scales[..., None]).reshape(5, 96)[:, :70].T
    steps = np.repeat(np.abs(scales), 32, 1)[:, :70].T
    assert (np.abs(back - matrix) <= steps * 1.001).all() and np.abs(back - matrix).mean() < 0.3 * steps.mean()


@needs_builder
def test_large_tensors_inside_the_graph_are_moved_out(plain_copy):
    folder, place = plain_copy
    path = place / "llm-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    matrix = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("lm_head"))
    name, array = matrix.name, build_llm(folder, place).load(matrix.name)
    model.graph.initializer.remove(matrix)
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array, "value")))
    path.write_bytes(model.SerializeToString())
    llm = build_llm(folder, place)
    assert (llm.load(name) == array).all() and all(node.op_type != "Constant" or node.output[0] != name for node in llm._model.graph.node)
    assert len(llm.to_onnx("llm.safetensors", llm.layout.offsets)) < 40_000
    rows = token_embedding(folder).load()[:9]
    decoder, fixture = (Decoder(tiny_llm.OrtNetwork(model), llm.spec) for model in (llm.in_memory(), str(tiny_llm.ONNX)))
    assert relative_error(decoder.prefill(rows).logits, fixture.prefill(rows).logits) < 1e-5


# -- the embedding table ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, stored", [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16")])
def test_embedding_rows_are_the_checkpoints(tmp_path, dtype, stored):
    table = token_embedding(tiny_llm.write(tmp_path / "llm", dtype=dtype))
    array = table.load()
    assert table.dtype == stored and table.shape == array.shape == (tiny_llm.VOCABULARY, 64) and table.num_bytes == array.nbytes
    wanted = torch.from_numpy(tiny_llm.tensors(tiny_llm.config())["model.embed_tokens.weight"])[:tiny_llm.VOCABULARY]
    wanted = wanted.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]).float().numpy()
    assert (TokenEmbedding(array)(np.arange(tiny_llm.VOCABULARY)) == wanted).all()
    assert token_embedding(tmp_path / "llm", vocabulary=7).shape == (7, 64)


# -- golden answers ---------------------------------------------------------------------------------------------------

@needs_builder
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="tests/golden/vila_hd is not there")
def test_golden_rows_give_the_golden_answer(work):
    from safetensors.numpy import load_file
    case = json.loads((GOLDEN / "p1_single_after_prompt" / "case.json").read_text())
    tensors = load_file(GOLDEN / "p1_single_after_prompt" / "tensors.safetensors")
    folder = GOLDEN / "models" / "pub_a" / "llm"
    llm = build_llm(folder, work / "golden a")
    decoder = Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec, 300)
    state = decoder.prefill(tensors["inputs_embeds"])
    assert llm.spec.vocabulary == case["llm_vocab_after_resize"] == len(tensors["last_logits"])
    assert relative_error(state.logits, tensors["last_logits"]) <= 1e-5
    generation = decoder.generate(state, TokenEmbedding(token_embedding(folder).load()), stop_ids=(), max_tokens=len(case["greedy_ids"]))
    assert [token.id for token in generation] == case["greedy_ids"]


@needs_builder
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="tests/golden/vila_hd is not there")
def test_rows_without_an_id_are_cut_as_in_the_reference(work):
    """The golden model pub_b has 13 of them, and a tied head."""
    folder = GOLDEN / "models" / "pub_b" / "llm"
    llm = build_llm(folder, work / "golden b")
    model = reference(folder, llm.vocabulary)
    assert llm.vocabulary == 408 == model.vocabulary
    decoder, embed = Decoder(tiny_llm.OrtNetwork(llm.in_memory()), llm.spec), TokenEmbedding(token_embedding(folder).load())
    assert measure_llm(decoder, model, embed, rows=150)["logits"] <= 1e-5
    rows = embed(np.random.Generator(np.random.PCG64(2)).integers(0, 408, 120))
    got = [token.id for token in decoder.generate(decoder.prefill(rows), embed, stop_ids=(), max_tokens=12)]
    wanted, seen = [], torch.from_numpy(rows)[None]
    with torch.inference_mode():
        for _ in range(12):
            wanted.append(int(model.logits(model(seen)[0][0, -1]).argmax()))
            seen = torch.cat([seen, model.embed(torch.tensor(wanted[-1:]))[None]], 1)
    assert got == wanted


# -- what can go wrong ------------------------------------------------------------------------------------------------

@needs_builder
def test_a_finished_build_is_used_again_and_a_changed_checkpoint_is_not(work):
    folder, place, said = tiny_llm.write(work / "again"), work / "again work", []
    build_llm(folder, place, progress=said.append)
    assert "llm: graph of 2 layers" in said and sorted(path.name for path in place.iterdir()) == ["llm-fp32.json", "llm-fp32.onnx"]
    before = (place / "llm-fp32.onnx").stat().st_mtime_ns
    build_llm(folder, place, "int4")        # is made from the fp32 graph
    assert (place / "llm-fp32.onnx").stat().st_mtime_ns == before
    tiny_llm.write(folder, seed=1)
    build_llm(folder, place)
    assert (place / "llm-fp32.onnx").stat().st_mtime_ns > before


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise llm_builder.importlib.metadata.PackageNotFoundError(name)
    folder = tiny_llm.write(tmp_path / "llm")
    monkeypatch.setattr(llm_builder.importlib.metadata, "version", absent)
    with pytest.raises(RuntimeMissingError, match=r"^\[llm\] .*onnxruntime-genai 0.18 .*pip install 'ps3_sdk\[vlm\]'"):
        build_llm(folder, tmp_path / "work")
    monkeypatch.setattr(llm_builder.importlib.metadata, "version", lambda name: {"onnxruntime-genai": "0.18.2", "transformers": "4.49.0"}[name])
    with pytest.raises(RuntimeMissingError, match="transformers is 4.49.0; 5.23 or newer"):
        build_llm(folder, tmp_path / "work")


def fake_builder(monkeypatch, tmp_path, script):
    monkeypatch.setattr(llm_builder, "check_packages", lambda: {})
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("script, words", [
    ("echo 'ValueError: odd'; exit 1", "failed: ValueError: odd.*llm folder is complete"), ("kill -9 $$", f"signal {int(signal.SIGKILL)}.*out of memory"),
    ("echo 'OSError: [Errno 28] No space left on device'; echo bye; exit 1", "Free some space"), ("exit 3", "exit code 3")])
def test_a_failing_builder_leaves_nothing_behind(tmp_path, monkeypatch, script, words):
    folder = tiny_llm.write(tmp_path / "llm")
    fake_builder(monkeypatch, tmp_path, script)
    with pytest.raises(ExportError, match=rf"^\[llm\] onnxruntime-genai's builder .*{words}"):
        build_llm(folder, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


@needs_builder
def test_another_builders_graph_is_refused(plain_copy):
    folder, place = plain_copy
    path = place / "llm-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[0]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="the builder's graph has outputs"):
        build_llm(folder, place)
    model.graph.initializer[-1].name = "lm_head.Gemm.weight"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="has a matrix lm_head.Gemm.weight of F32 .*none of this checkpoint"):
        build_llm(folder, place)
    path.write_bytes(b"no graph")
    with pytest.raises(ExportError, match="cannot be read"):
        build_llm(folder, place)


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "config.json").write_text(json.dumps(tiny_llm.config() | {"model_type": "gpt2"})), "model_type"),
    (lambda folder: (folder / "config.json").write_text(json.dumps(tiny_llm.config(num_hidden_layers=3))), "layers.2.* is missing"),
    (lambda folder: (folder / "config.json").write_text(json.dumps(tiny_llm.config(vocab_size=300))), r"embed_tokens.weight has shape \[264, 64\] and must have \[300, 64\]"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
    (lambda folder: shutil.copy(folder / "config.json", folder / "model.safetensors"), "not a safetensors file"),
])
def test_a_damaged_folder_is_named_before_anything_is_built(tmp_path, monkeypatch, damage, words):
    folder = tiny_llm.write(tmp_path / "llm")
    damage(folder)
    fake_builder(monkeypatch, tmp_path, "exit 9")
    with pytest.raises(ExportError, match=f"(?s){words}"):
        build_llm(folder, tmp_path / "work")


def test_precisions_are_named(tmp_path):
    with pytest.raises(ExportError, match=r"^\[llm\] precision is 'int3'; one of fp32, fp16, int4"):
        build_llm(tmp_path, tmp_path, "int3")
