"""The one door to every export: what it refuses before weights are fetched and read, and what a bundle calls its model."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
import tiny_models
from conftest import PHOTO, ROOT

from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import ExportError, InputError, RuntimeMissingError
from ps3_sdk.export import export_checkpoint as door, llm_builder
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.check_picture import read_picture
from ps3_sdk.export.engine_options import EngineOptions
from ps3_sdk.export.export_checkpoint import export_checkpoint, vision_networks
from ps3_sdk.export.make_bundle import called
from ps3_sdk.session import DEFAULT_BUNDLE

VILA, ENCODER = {"model_type": "llava_topdown_llama"}, {"model_type": "ps3"}


def folder_of(path, config):
    path.mkdir()
    if config is not None:
        (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("config, given, says", [
    (VILA, {"check_frame": PHOTO}, "--check-frame was given; VILA-HD's stages"), (VILA, {"tokenizer": "t.json"}, "--tokenizer was given; VILA-HD's own"),
    (ENCODER, {"llm_precision": "int4"}, "--llm-precision was given; a PS3 encoder has no language model"), (ENCODER, {"work_dir": "work"}, "--work-dir was given; an encoder"),
    (VILA, {"revision": "main"}, "revision main was given, and .* is a folder"), (ENCODER, {"revision": "main"}, "revision main was given, and .* is a folder")])
def test_what_a_kind_of_checkpoint_does_not_know_is_refused(tmp_path, config, given, says):
    with pytest.raises(ExportError, match=rf"^\[\w+\] .*{says}.*Leave it out"):
        export_checkpoint(str(folder_of(tmp_path / "model", config)), tmp_path / "x.plan", **given)


@pytest.mark.parametrize("config, says", [(None, "config.json does not exist"), ('{"model_type": "ps', "config.json is not JSON.*Download it again"),
                                          ({"model_type": "llava_llama", "vision_tower_cfg": {}}, "Pass its vision_tower folder"), ({"model_type": "clip"}, "Pass a PS3 checkpoint")])
def test_a_folder_of_another_model_is_told_by_its_configuration(tmp_path, config, says):
    """It has no weights where an encoder has them, so that is not what is wrong with it."""
    folder = folder_of(tmp_path / "model", config)
    for call in (lambda: export_checkpoint(str(folder), tmp_path / "x.plan"), lambda: vision_networks(folder)):
        with pytest.raises(ExportError, match=rf"^\[config\] .*{says}"):
            call()


def test_nothing_is_fetched_for_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("something is fetched"))
    for place, says in ((tmp_path / "no" / "x.plan", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(ExportError, match=rf"^\[export\] .*{says}"):
            export_checkpoint("nvidia/none-such", place)


def test_missing_packages_are_told_before_weights_are_fetched(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder, fetched = folder_of(tmp_path / "0123abc", VILA), []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, revision, allow_patterns: (fetched.append(allow_patterns), str(folder))[1])

    def missing():
        raise RuntimeMissingError("[llm] onnxruntime-genai is not installed.")
    monkeypatch.setattr(llm_builder, "check_packages", missing)
    with pytest.raises(RuntimeMissingError, match="onnxruntime-genai"):
        export_checkpoint("nvidia/some-vila", tmp_path / "x.plan")
    assert fetched == [["config.json"]]


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_models.write(tmp_path / "my-encoder", tiny_models.config(text=False)))
    export_checkpoint(".", tmp_path / "x.plan")
    with Bundle.open(tmp_path / "x.plan") as bundle:
        assert bundle.manifest["model"]["name"] == "my-encoder" and bundle.manifest["model"]["source"] == "folder my-encoder"
    assert called("owner/name", "0123abc") == "owner/name" and called("..", None) == tmp_path.name


def test_a_picture_to_measure_on_is_seen_as_an_ask_sees_it(tmp_path):
    rng, exif = np.random.default_rng(0), Image.Exif()
    picture = Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8))
    exif[0x0112] = 6        # lies on its side
    picture.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), np.rot90(np.asarray(picture), -1))
    data = bytearray((tmp_path / "turned.png").read_bytes())
    data[data.rindex(b"IDAT") + 3] ^= 0xFF      # of the second, so that the header is well
    (tmp_path / "damaged.png").write_bytes(data)
    with pytest.raises(InputError, match=r"^\[frame\] file .*damaged.png .*damaged"):
        read_picture(tmp_path / "damaged.png")


# -- a build exports first -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config, passed_on", [(VILA, None), (ENCODER, PHOTO)])
def test_a_build_measures_on_its_frame_whatever_the_export_takes(tmp_path, monkeypatch, config, passed_on):
    exports = []

    def exported(checkpoint, output, **given):
        exports.append(given)
        shutil.copy(DEFAULT_BUNDLE, output)
    monkeypatch.setattr(door, "export_checkpoint", exported)
    build_engine(folder_of(tmp_path / "model", config), tmp_path / "x.plan", EngineOptions("onnx", precision="fp32", check_frame=PHOTO, llm_precision="int4"))
    assert exports[0]["check_frame"] == passed_on and exports[0]["llm_precision"] == "int4"
    with Bundle.open(tmp_path / "x.plan") as made:
        assert made.manifest["verify"]["on_a_frame"]


@pytest.mark.parametrize("source", ["default", DEFAULT_BUNDLE])
def test_a_bundles_language_model_stays_as_it_is(tmp_path, source):
    with pytest.raises(InputError, match="--llm-precision was given; .* is a bundle, whose language model stays"):
        build_engine(source, tmp_path / "x.plan", EngineOptions("onnx", precision="fp32", llm_precision="int4"))


def test_the_benchmarks_half_precision_bundle_is_made(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import full_size
    monkeypatch.setattr(full_size, "SO400M", tiny_models.config(text=False))
    full_size.export_random(tmp_path / "fp16.plan", "fp16")
    with Bundle.open(tmp_path / "fp16.plan") as bundle:
        assert bundle.manifest["networks"]["encode"]["precision"] == "fp16"
    assert [path.name for path in Path(tmp_path).iterdir()] == ["fp16.plan"]
