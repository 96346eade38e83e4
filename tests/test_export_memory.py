"""Exports of models that fit in memory only once: networks tried in a process of their own, weights read piece by piece."""
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
import tiny_models

from ps3_sdk.errors import ExportError
from ps3_sdk.export import apart, make_bundle as making, weights
from ps3_sdk.export.make_bundle import make_bundle
from ps3_sdk.export.random_checkpoint import RandomCheckpoint
from ps3_sdk.export.reference.config import Ps3Config
from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.streaming import Streamed
from ps3_sdk.export.weights import Checkpoint


def test_networks_tried_apart_give_the_same_bundle(tmp_path, monkeypatch):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip2", "1.5k"))
    make_bundle(str(tmp_path / "checkpoint"), tmp_path / "here.plan")
    monkeypatch.setattr(making, "LARGE_BYTES", 0)
    monkeypatch.setattr(apart, "LARGE_BYTES", 0)
    make_bundle(str(tmp_path / "checkpoint"), tmp_path / "apart.plan")
    assert (tmp_path / "apart.plan").read_bytes() == (tmp_path / "here.plan").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart.plan", "checkpoint", "here.plan"]


def test_a_network_that_dies_apart_leaves_nothing(tmp_path, monkeypatch):
    tiny_models.write(tmp_path / "checkpoint", tiny_models.config("siglip", "1.5k", text=False))
    monkeypatch.setattr(making, "LARGE_BYTES", 0)
    monkeypatch.setattr(apart.sys, "executable", "/bin/false")
    with pytest.raises(ExportError, match="the network encode did not run: exit status 1. Nothing was written"):
        make_bundle(str(tmp_path / "checkpoint"), tmp_path / "engine.plan")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_tensors_read_in_pieces_are_whole(tmp_path, monkeypatch, dtype):
    values = tiny_models.config(text=False)
    folder = tiny_models.write(tmp_path, values, dtype=dtype)
    monkeypatch.setattr(weights, "_PIECE", 7)
    checkpoint, source = Checkpoint.open(folder), RandomCheckpoint(Ps3Config.from_dict(values))
    for key in checkpoint.keys()[::5]:
        want = source.tensor(key).to(tiny_models.DTYPES[dtype]).float().numpy()
        assert np.array_equal(checkpoint.array(key), want) and checkpoint.array(key).flags.writeable, key


def test_a_checkpoint_cut_short_after_it_was_opened(tmp_path):
    folder = tiny_models.write(tmp_path, tiny_models.config(text=False))
    checkpoint = Checkpoint.open(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(ExportError, match="cannot be read"):
        for key in checkpoint.keys():
            checkpoint.array(key)


def test_weights_outside_the_blocks_are_there_only_when_asked_for():
    config = Ps3Config.from_dict(tiny_models.config())
    with torch.device("meta"):
        model = Ps3Model(config)
    streamed, prior = Streamed(model, RandomCheckpoint(config)), "vision_model.prior_prompt"
    on_meta = lambda: {key for key, tensor in model.state_dict().items() if tensor.is_meta}
    everything = on_meta()
    assert everything == set(model.state_dict())
    with streamed.resident("text_model.", prior):
        here = everything - on_meta()
        assert prior in here and "text_model.token_embedding.weight" in here and not any("resblocks" in key or "trunk" in key for key in here)
    assert on_meta() == everything


def test_free_memory_counts_what_only_caches_files(tmp_path):
    from ps3_sdk.export.engine_options import _free_ram_gb
    (tmp_path / "meminfo").write_text("MemTotal:       24684000 kB\nMemFree:          473000 kB\nMemAvailable:   16735232 kB\n")
    assert _free_ram_gb(tmp_path / "meminfo") == pytest.approx(16.735232) and _free_ram_gb(tmp_path / "nothing") is None
