"""From a checkpoint folder to the answer: ps3 export, Session on a real photograph, and the PyTorch reference beside it.

The reference is held to ps3-torch by test_reference_conformance.py, so equal here means equal to the public model.
"""
import zipfile

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")

import tiny_models
from conftest import PHOTO
from safetensors.numpy import load

from ps3_sdk import Session, cli
from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.export.check import relative_error
from ps3_sdk.export.make_bundle import make_bundle
from ps3_sdk.export.reference.model import Ps3Model

BOUND = 1e-5


def normalised(photo, base):
    """The reference's preprocessing: squash by Pillow (horizontal pass first), to [-1, 1]."""
    squashed = Image.fromarray(photo).resize((base, photo.shape[0]), Image.Resampling.BICUBIC).resize((base, base), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


@pytest.fixture(scope="module", params=[("siglip", "1.5k"), ("siglip2", "4k"), ("c-radio", "1.5k"), ("c-radio", "4k")], ids="-".join)
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write(folder / "checkpoint", tiny_models.config(*request.param))
    make_bundle(str(folder / "checkpoint"), folder / "engine.plan")
    with Session(folder / "engine.plan") as session:
        yield session, Ps3Model.from_checkpoint(folder / "checkpoint")


@pytest.mark.parametrize("prompt, budget", [("a boat", dict(looks=1)), ("", dict(looks=2)), ("the sky over the lake", dict(tokens=300))])
def test_session_equals_the_reference(exported, photo, prompt, budget):
    session, model = exported
    pixels = normalised(photo, session.base_px)
    ours = session.encode(photo, prompt, **budget)
    query = session.encode_prompt(prompt).vector
    with torch.inference_mode():
        theirs = model(pixels, prompt=torch.from_numpy(query.copy())[None], num_looks=budget.get("looks"), num_tokens=budget.get("tokens"))
    assert relative_error(ours.prob_at(session.geometry["scales_px"][1]), theirs.probs[0][0].numpy()) <= BOUND
    for i, (px, ids) in enumerate(ours.picked.items()):
        prob = theirs.probs[i][0].flatten().numpy()
        wanted = np.flatnonzero(theirs.maps[i][0].flatten().numpy())
        assert np.allclose(np.sort(prob[ids]), np.sort(prob[wanted]), rtol=0, atol=1e-6), f"{px} px: other probabilities were picked"
    if all(np.array_equal(ids, np.flatnonzero(theirs.maps[i][0].flatten().numpy())) for i, ids in enumerate(ours.picked.values())):
        assert relative_error(ours.tokens, theirs.tokens[0].numpy()) <= BOUND
    else:
        pytest.fail("the same tie rule picked other patches")


def test_text_and_choices_equal_the_reference(exported, photo):
    session, model = exported
    ids, _ = session._tokenizer("the name plate")
    with torch.inference_mode():
        theirs = model.encode_prompt(torch.from_numpy(ids))
    ours = session.encode_prompt("the name plate")
    assert relative_error(ours.vector, theirs.prompt[0].numpy()) <= BOUND and relative_error(ours.pooled, theirs.pooled[0].numpy()) <= BOUND
    answer = session.ask(photo, "the boat", choices=["red", "green"], tokens=100)
    high = torch.from_numpy(session.encode(photo, "the boat", tokens=100).high_tokens.copy())[None]
    with torch.inference_mode():
        pooled = model.pool(high)[0]
        for choice in answer.choices:
            text = torch.from_numpy(session.encode_prompt(choice.text).pooled)
            assert choice.similarity == pytest.approx(torch.cosine_similarity(text, pooled, dim=0).item(), abs=1e-5)


def test_a_vision_only_checkpoint_takes_vectors_and_the_prior(tmp_path, photo):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k", text=False))
    assert cli.main(["export", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "engine.plan")]) == 0
    with Session(tmp_path / "engine.plan") as session:
        assert len(session.encode(photo, prompt_embedding=np.ones(32, np.float32), tokens=50).high_tokens)
        assert len(session.encode(photo, tokens=50).high_tokens)
        with pytest.raises(InputError, match="no text tower"):
            session.ask(photo, "a boat")
        with pytest.raises(InputError, match="no text tower"):
            session.ask(photo, "", choices=["red"], tokens=8)


@pytest.mark.parametrize("shards, dtype", [(3, "f32"), (1, "bf16"), (2, "f16")])
def test_shards_and_half_precision_export_the_same_way(tmp_path, shards, dtype):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k", text=False), shards=shards, dtype=dtype)
    make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")
    with Session(tmp_path / "engine.plan") as session:
        assert all(stage["max_relative_error"] <= BOUND for stage in session.bundle.manifest["parity"].values())


def test_int8_is_smaller_less_exact_and_says_so(tmp_path, photo):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k", text=False, width=64))
    size = {}
    for precision in ("fp32", "int8"):
        plan = tmp_path / f"{precision}.plan"
        make_bundle(str(tmp_path / "checkpoint"), plan, precision=precision)
        with Session(plan) as session:
            size[precision] = session.bundle.members["encode.safetensors"]
            error = session.bundle.manifest["parity"]["encode_high"]["max_relative_error"]
            assert error <= BOUND if precision == "fp32" else 1e-4 < error < 0.1
            assert session.bundle.manifest["networks"]["encode"]["precision"] == precision
            if precision == "int8":         # two products of an input of 255 must fit 16 bits, or some processors cut them off
                stored = load(zipfile.ZipFile(plan).read("encode.safetensors"))
                assert {2 * 255 * int(abs(values.astype(int)).max()) for values in stored.values() if values.dtype == np.int8} == {32130}
            encoding = session.encode(photo, tokens=200)
            fp32 = encoding if precision == "fp32" else fp32
            assert 0 <= relative_error(encoding.tokens[:729], fp32.tokens[:729]) < 0.1
            assert any("int8 is off by" in note and "--check-frame" in note for note in session.notes) == (precision == "int8")
    make_bundle(str(tmp_path / "checkpoint"), tmp_path / "seen.plan", precision="int8", check_frame=PHOTO)
    with Session(tmp_path / "seen.plan") as session:
        assert "the frame given" in session.bundle.manifest["parity"]["encode_high"]["inputs"] and not any("int8" in note for note in session.notes)
        assert "3840x2160" in session.bundle.manifest["parity"]["gather"]["inputs"]
    with pytest.raises(InputError, match=r"^\[frame\] file .*seen.plan is not a picture"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "x.plan", check_frame=tmp_path / "seen.plan")
    assert size["int8"] < 0.6 * size["fp32"]      # patch embedding, norms and biases stay fp32
    with pytest.raises(ExportError, match="precision is 'fp4'"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "x.plan", precision="fp4")


def test_the_same_checkpoint_twice_gives_the_same_bytes(tmp_path):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k"))
    for name in "ab":
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_wrong_network_is_not_sealed(tmp_path, monkeypatch):
    from ps3_sdk.export import to_onnx
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k"))
    monkeypatch.setattr(to_onnx, "TRUNK_EPSILON", 1e-2)
    with pytest.raises(ExportError, match="encode_low is off by"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_while_exporting_leaves_what_was_there(tmp_path, monkeypatch):
    from ps3_sdk.export.write_bundle import BundleWriter
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k"))
    (tmp_path / "engine.plan").write_bytes(b"the bundle of yesterday")
    written = []

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            written.append(len(data))
            if sum(written) > 200_000:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    enter = BundleWriter.__enter__

    def on_a_full_disk(writer):
        enter(writer)
        writer._file = FullDisk(writer._file)
        return writer
    monkeypatch.setattr(BundleWriter, "__enter__", on_a_full_disk)
    with pytest.raises(ExportError, match="No space left"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")
    assert (tmp_path / "engine.plan").read_bytes() == b"the bundle of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "engine.plan"]


def test_a_tokenizer_that_is_not_there_says_what_to_pass(tmp_path):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k"))
    (tmp_path / "checkpoint" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match="--tokenizer"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")


@pytest.mark.parametrize("files, wanted", [({}, 0), ({"special_tokens_map.json": '{"pad_token": "<end>"}'}, 1), ({"special_tokens_map.json": '{"pad_token": {"content": "<end>"}}'}, 1),
                                           ({"special_tokens_map.json": "broken"}, 0)])
def test_texts_are_padded_as_the_tokenizers_own_files_say(tmp_path, files, wanted):
    """SigLIP's tokenizer pads with </s>, SigLIP2's with <pad>; neither says so in tokenizer.json."""
    import json
    folder = tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"padding": None}))
    for name, content in files.items():
        (folder / name).write_text(content)
    make_bundle(str(folder), tmp_path / "engine.plan")
    with Session(tmp_path / "engine.plan") as session:
        assert session.bundle.manifest["text"]["pad_id"] == wanted
        assert session._tokenizer("a")[0][0, -1] == wanted


def test_position_residuals_of_rows_and_columns_equal_the_reference(tmp_path, photo):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "4k", text=False, factored_pos_emb=True))
    make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")
    with Session(tmp_path / "engine.plan") as session:
        model = Ps3Model.from_checkpoint(tmp_path / "checkpoint")
        assert model.vision_model.pos_emb_residual_rows[2].abs().mean() > 0.01
        ours = session.encode(photo, tokens=500)
        with torch.inference_mode():
            theirs = model(normalised(photo, session.base_px), num_tokens=500)
        assert all(np.array_equal(ids, np.flatnonzero(theirs.maps[i][0].flatten().numpy())) for i, ids in enumerate(ours.picked.values()))
        assert relative_error(ours.tokens, theirs.tokens[0].numpy()) <= BOUND
        assert max(session.bundle.tensors("tables.safetensors")[f"position_row_{px}"].shape[0] for px in (756, 1512, 3780)) == 270
