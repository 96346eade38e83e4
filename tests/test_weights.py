"""Checkpoints as people have them, whole and broken: what fits loads, what does not is named."""
import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
import numpy as np
import tiny_models
from conftest import ROOT, lacking
from safetensors.torch import save_file

from ps3_sdk.errors import ExportError
from ps3_sdk.export.random_checkpoint import RandomCheckpoint
from ps3_sdk.export.reference.config import Ps3Config
from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.weights import Checkpoint, expected_shapes

VISION = tiny_models.config(text=False)
PRIOR, FC1 = "vision_model.prior_prompt", "vision_model.trunk.blocks.1.mlp.fc1.weight"


def refusal(path) -> str:
    """What is said of a checkpoint that is refused, in the house style."""
    with pytest.raises(ExportError) as caught:
        Ps3Model.from_checkpoint(path)
    message = str(caught.value)
    assert message.startswith("[") and message.rstrip().endswith("."), message
    return message


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("scales", ["1.5k", "4k"])
def test_a_checkpoint_loads_whole(tmp_path, family, scales):
    values = tiny_models.config(family, scales)
    model = Ps3Model.from_checkpoint(tiny_models.write(tmp_path, values))
    source = RandomCheckpoint(Ps3Config.from_dict(values))
    state = model.state_dict()
    assert set(state) == set(source.keys()) and not model.training
    for key, tensor in state.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, source.tensor(key)), key


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_becomes_f32_exactly(tmp_path, dtype):
    checkpoint = Checkpoint.open(tiny_models.write(tmp_path, VISION, dtype=dtype))
    assert checkpoint.dtype(PRIOR) == dtype.upper()
    want = RandomCheckpoint(Ps3Config.from_dict(VISION)).tensor(PRIOR).to(tiny_models.DTYPES[dtype]).float()
    assert torch.equal(checkpoint.tensor(PRIOR), want)
    assert checkpoint.array(PRIOR).dtype == np.float32 and checkpoint.array(PRIOR).shape == checkpoint.shape(PRIOR)


def test_shards_equal_one_file(tmp_path):
    one, three = Checkpoint.open(tiny_models.write(tmp_path / "one", VISION)), Checkpoint.open(tiny_models.write(tmp_path / "three", VISION, shards=3))
    assert one.keys() == three.keys() == sorted(expected_shapes(Ps3Config.from_dict(VISION)))
    assert all(torch.equal(one.tensor(key), three.tensor(key)) for key in one.keys())


def test_opening_reads_no_tensor(tmp_path, monkeypatch):
    """Headers tell names, shapes and dtypes; a checkpoint of gigabytes opens at once."""
    folder = tiny_models.write(tmp_path, VISION)
    monkeypatch.setattr(Checkpoint, "tensor", None)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.shape(PRIOR) == (32,) and checkpoint.dtype(PRIOR) == "F32" and PRIOR in checkpoint and "other" not in checkpoint


def test_the_older_key_for_scales(tmp_path):
    values = dict(VISION)
    values["s3_scales"] = values.pop("ps3_scales")
    assert Ps3Model.from_checkpoint(tiny_models.write(tmp_path, values)).config.vision.scales_px == (378, 756, 1512)


def test_the_contrast_may_be_in_the_checkpoint(tmp_path):
    folder = tiny_models.write(tmp_path, VISION, change={"logit_scale": torch.tensor(2.3), "logit_bias": torch.tensor([-4.0])})
    Ps3Model.from_checkpoint(folder)
    assert Checkpoint.open(folder).tensor("logit_scale").item() == pytest.approx(2.3)


def test_every_bad_key_is_named_at_once(tmp_path):
    folder = tiny_models.write(tmp_path, VISION, change={PRIOR: None, "vision_model.trunk.norm.bias": None, "vision_model.trunk.cls_token": torch.zeros(1, 1, 32),
                                                         "head.weight": torch.zeros(2), FC1: torch.zeros(7, 32)})
    message = refusal(folder)
    assert not lacking(message, f"{PRIOR} is missing", "vision_model.trunk.norm.bias is missing", "vision_model.trunk.cls_token is unknown", "head.weight is unknown", f"{FC1} has shape [7, 32] and must have [119, 32]")
    assert "5 keys" in message


def test_missing_shards_are_named(tmp_path):
    folder = tiny_models.write(tmp_path, VISION, shards=4)
    for i in (2, 4):
        (folder / f"model-0000{i}-of-00004.safetensors").unlink()
    message = refusal(folder)
    assert not lacking(message, "model-00002-of-00004.safetensors", "model-00004-of-00004.safetensors")
    assert "model-00001" not in message


@pytest.mark.parametrize("damage,words", [
    (lambda index: index["weight_map"].pop(PRIOR), [f"{PRIOR} is in a shard and not listed"]),
    (lambda index: index["weight_map"].update(ghost=index["weight_map"][PRIOR]), ["ghost is listed and in no shard"]),
    (lambda index: index["weight_map"].update(ghost="../../elsewhere.safetensors"), ["plain file names"]),
    (lambda index: index["weight_map"].update(ghost=3), ["plain file names"]),
    (lambda index: index.pop("weight_map"), ["weight_map"]),
    (lambda index: index.update(weight_map=["a"]), ["weight_map"]),
], ids=["unlisted", "ghost", "traversal", "number", "no-map", "list"])
def test_an_index_that_lies(tmp_path, damage, words):
    folder = tiny_models.write(tmp_path, VISION, shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    damage(index)
    path.write_text(json.dumps(index))
    assert not lacking(refusal(folder), *words)


def test_one_key_in_two_shards(tmp_path):
    folder = tiny_models.write(tmp_path, VISION, shards=2)
    save_file({PRIOR: torch.zeros(32)}, folder / "extra.safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["extra"] = "extra.safetensors"
    path.write_text(json.dumps(index))
    assert not lacking(refusal(folder), PRIOR, "another shard")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\xff" * 64,
                                     (2 ** 62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"], ids=["empty", "lfs", "noise", "huge", "list"])
def test_not_a_safetensors_file(tmp_path, content):
    folder = tiny_models.write(tmp_path, VISION)
    (folder / "model.safetensors").write_bytes(content)
    assert not lacking(refusal(folder), "model.safetensors", "not a safetensors file")


def test_a_truncated_file(tmp_path):
    folder = tiny_models.write(tmp_path, VISION)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert not lacking(refusal(folder), "not a safetensors file")


def test_a_dtype_that_is_no_float(tmp_path):
    assert not lacking(refusal(tiny_models.write(tmp_path, VISION, change={PRIOR: torch.zeros(32, dtype=torch.int8)})), PRIOR, "I8", "BF16")


def test_no_weights_at_all(tmp_path):
    folder = tiny_models.write(tmp_path, VISION)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert not lacking(refusal(folder), "model.safetensors", "pytorch_model.bin")


def test_no_config(tmp_path):
    (tiny_models.write(tmp_path, VISION) / "config.json").unlink()
    assert not lacking(refusal(tmp_path), "config.json does not exist")


@pytest.mark.parametrize("path", ["no/such/folder", "./nothing", "missing", "a/b/c"])
def test_no_such_folder(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert not lacking(refusal(path), path)


def test_a_hub_id_without_the_hub_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert not lacking(refusal("nvidia/PS3-4K-SigLIP2"), "huggingface_hub", "pip install 'ps3-sdk[export]'")


@pytest.mark.parametrize("error,words", [
    ("GatedRepoError", ["consent", "https://huggingface.co/nvidia/PS3-4K-SigLIP2", "hf auth login"]),
    ("RepositoryNotFoundError", ["neither a folder here nor a repository"]),
    ("RevisionNotFoundError", ["no revision main2"]),
    ("LocalEntryNotFoundError", ["cannot be fetched", "pass the folder"]),
    ("OSError", ["cannot be fetched", "pass the folder"]),
])
def test_what_the_hub_refuses_becomes_a_next_step(monkeypatch, error, words):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from huggingface_hub import errors
    kind = OSError if error == "OSError" else getattr(errors, error)

    def refuse(*args, **kwargs):
        made = kind.__new__(kind)       # their constructors take a response of whichever HTTP package the hub's client uses
        Exception.__init__(made, "the hub says no")
        raise made

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ExportError) as caught:
        Checkpoint.open("nvidia/PS3-4K-SigLIP2", "main2")
    for word in words:
        assert word in str(caught.value)


def test_a_hub_snapshot_is_a_folder_with_a_commit(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder = tiny_models.write(tmp_path / "0123abc", VISION)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, revision, allow_patterns: str(folder))
    checkpoint = Checkpoint.open("nvidia/PS3-4K-SigLIP2")
    assert (checkpoint.source, checkpoint.revision, checkpoint.folder) == ("nvidia/PS3-4K-SigLIP2", "0123abc", folder)


def test_golden_vision_towers_fit():
    """Vision towers that VILA itself saved: no key missing, unknown or misshapen."""
    towers = sorted((ROOT / "tests" / "golden" / "vila_hd").glob("models/*/vision_tower"))
    assert len(towers) == 3
    for tower in towers:
        model = Ps3Model.from_checkpoint(tower)
        assert model.text_model is None and set(model.state_dict()) == set(Checkpoint.open(tower).keys())
