"""An export that stopped goes on from the networks it had finished."""
import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
pytest.importorskip("onnx", reason="needs ps3_sdk[export]")
from golden_vila import ROOT

from ps3_sdk.errors import ExportError, RuntimeMissingError
from ps3_sdk.export.kept import Kept
from ps3_sdk.export.llm_builder import check_packages
from ps3_sdk.export.write_bundle import BundleWriter, SafetensorsLayout

try:
    check_packages()
    missing = ""
except RuntimeMissingError as error:
    missing = str(error)
needs_builder = pytest.mark.skipif(bool(missing), reason=missing or "present")
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.uint8), "c": np.empty((0, 4), np.float32)}
LAYOUT = SafetensorsLayout({"a": ("F32", (2, 3)), "b": ("U8", (5,)), "c": ("F32", (0, 4))})


class Sink:
    """Stands in for a BundleWriter."""

    def add_tensors(self, name, layout, load):
        self.bytes = b"".join(bytes(chunk) for chunk in layout.chunks(load))


def add(folder, about, load=TENSORS.__getitem__):
    sink, kept = Sink(), Kept(folder, about)
    found = kept.add_tensors(sink, "n.safetensors", LAYOUT, load)
    return found, sink.bytes, kept


def unwanted(name):
    raise AssertionError(f"{name} is made again")


def test_a_finished_member_is_not_made_again(tmp_path):
    straight = add(None, {})[1]
    assert add(tmp_path / "work", {"seed": 1})[:2] == (False, straight)
    found, again, kept = add(tmp_path / "work", {"seed": 1}, unwanted)
    assert found and again == straight
    assert not add(tmp_path / "work", {"seed": 2})[0], "made of something else"
    (tmp_path / "work" / "n.safetensors").write_bytes(straight[:-1])
    assert not add(tmp_path / "work", {"seed": 2})[0], "cut short"
    kept.remove()
    assert list((tmp_path / "work").iterdir()) == []


def test_an_unfinished_member_is_not_taken_for_finished(tmp_path):
    def full(name):
        if name == "b":
            raise OSError(28, "No space left on device")
        return TENSORS[name]
    with pytest.raises(ExportError, match=r"No space left on device. What was finished before is still in .*free some space and export again"):
        add(tmp_path, {}, full)
    assert list(tmp_path.iterdir()) == []
    assert not add(tmp_path, {})[0]


@needs_builder
def test_an_interrupted_export_reads_what_is_left_of_the_checkpoint(tmp_path, monkeypatch):
    from ps3_sdk.export.make_vlm import make_vlm
    folder, said, work = shutil.copytree(ROOT / "models" / "pub_c", tmp_path / "checkpoint"), [], tmp_path / "work"
    make_vlm(str(folder), tmp_path / "straight.plan")
    add_bytes = BundleWriter.add_bytes

    def full_disk(self, name, data):
        if name == "decode.onnx":
            raise ExportError("[write_bundle] No space left on device")
        add_bytes(self, name, data)
    monkeypatch.setattr(BundleWriter, "add_bytes", full_disk)
    with pytest.raises(ExportError, match="No space left"):
        make_vlm(str(folder), tmp_path / "engine.plan", work_dir=work)
    assert not (tmp_path / "engine.plan").exists() and (work / "encode.safetensors").exists()
    monkeypatch.setattr(BundleWriter, "add_bytes", add_bytes)
    make_vlm(str(folder), tmp_path / "engine.plan", work_dir=work, progress=said.append)
    made_before = [line for line in said if line.endswith("made before")]
    assert len(made_before) == 5 and "llm-fp32.onnx is already built" in "\n".join(said), said
    assert (tmp_path / "engine.plan").read_bytes() == (tmp_path / "straight.plan").read_bytes()
    assert sorted(path.name for path in work.iterdir()) == ["llm-fp32.json", "llm-fp32.onnx"]


@needs_builder
def test_an_export_that_goes_on_with_another_configuration_is_made_anew(tmp_path, monkeypatch):
    """Rotary tables come from config.json alone: no weight file and no shape tells that they are others."""
    from ps3_sdk.export.make_vlm import make_vlm
    folder, work = shutil.copytree(ROOT / "models" / "pub_c", tmp_path / "checkpoint"), tmp_path / "work"
    monkeypatch.setattr(Kept, "remove", lambda self: None)      # as if it had stopped just before
    make_vlm(str(folder), tmp_path / "first.plan", work_dir=work)
    config = folder / "llm" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 77.0}))
    make_vlm(str(folder), tmp_path / "again.plan", work_dir=work)
    make_vlm(str(folder), tmp_path / "straight.plan")
    assert (tmp_path / "again.plan").read_bytes() == (tmp_path / "straight.plan").read_bytes()


@needs_builder
def test_a_language_model_tried_apart_has_the_same_error(tmp_path, monkeypatch):
    from ps3_sdk.export import make_bundle as making
    from ps3_sdk.export.make_vlm import make_vlm
    make_vlm(str(ROOT / "models" / "pub_c"), tmp_path / "here.plan")
    monkeypatch.setattr(making, "LARGE_BYTES", 0)
    make_vlm(str(ROOT / "models" / "pub_c"), tmp_path / "apart.plan")
    assert (tmp_path / "apart.plan").read_bytes() == (tmp_path / "here.plan").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apart.plan", "here.plan"]
