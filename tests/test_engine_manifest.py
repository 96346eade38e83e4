"""What a manifest may say about engines and reference values, and what it may not."""
import copy

import pytest

import hostile_bundles
from ps3_sdk.errors import BundleError
from ps3_sdk.manifest import check_manifest

MOST = 2559
PROFILES = {"encode": {"batch": [1, 1, 1], "tokens": [1, MOST, MOST], "past": [0, 4, 4], "keep": [0, 0, 4]}, "pool": {"batch": [1, 1, 1], "tokens": [1, MOST, MOST]}}


def with_engines():
    manifest = hostile_bundles.manifest()
    manifest["members"] = {name: {"bytes": 1, "sha256": "0" * 64} for name in ("tables.safetensors", "tokenizer.json", "reference.safetensors")}
    for name, entry in manifest["networks"].items():
        entry |= {"runtime": "tensorrt-rtx", "file": f"{name}.engine", "weights": None, "precision": "fp16", "engine": {
            "builder": "1.7.1.116", "platform": "linux-x86_64", "sms": [86, 89], "workspace_bytes": None, "on_device": ["key_0", "value_0"] if name == "encode" else [],
            "profiles": [PROFILES.get(name, {"batch": [1, 1, 2]})]}}
        manifest["members"][entry["file"]] = {"bytes": 1, "sha256": "0" * 64}
    manifest["verify"] = {"file": "reference.safetensors", "prompt": "a sign", "against": "PyTorch", "on_a_frame": False, "measured_on": "a CPU", "picked_overlap": 1.0,
                          "embedding_cosine": None}
    return manifest


def test_an_honest_one_passes():
    check_manifest(with_engines(), "here")


def put(*path, value):
    def change(manifest):
        *way, last = path
        for key in way:
            manifest = manifest[key]
        manifest[last] = value
    return change


ENCODE = ("networks", "encode", "engine")


@pytest.mark.parametrize("change, says", [
    (put("networks", "encode", "runtime", value="onnxruntime"), "engine belongs to tensorrt"),
    (lambda manifest: manifest["networks"]["encode"].pop("engine"), "engine belongs to tensorrt"),
    (put("networks", "encode", "weights", value="reference.safetensors"), "an engine holds its own weights"),
    (put(*ENCODE, "on_device", value=["tokens_too"]), "names what is no output"),
    (put(*ENCODE, "profiles", value=[{"batch": [1, 1, 1]}]), "each gives batch, past, tokens"),
    (put(*ENCODE, "profiles", 0, "tokens", value=[9, 5, 1]), "as least, best, most"),
    (put(*ENCODE, "profiles", 0, "tokens", value=[1, 5]), "profiles"),
    (put(*ENCODE, "sms", value=[]), "sms has 0 entries"), (put(*ENCODE, "sms", value=["86"]), "sms"),
    (put(*ENCODE, "platform", value="windows-amd64"), "platform"), (put(*ENCODE, "builder", value="latest"), "builder"),
    (put(*ENCODE, "plugin", value="x.so"), "plugin is unknown"),
    (put("verify", "file", value="../x.safetensors"), "verify.file"), (put("verify", "file", value="missing.safetensors"), "not among the members"),
    (put("verify", "file", value="tokenizer.json"), "weights are .safetensors"), (put("verify", "picked_overlap", value=2), "picked_overlap"),
])
def test_dishonest_ones_are_refused(change, says):
    manifest = copy.deepcopy(with_engines())
    change(manifest)
    with pytest.raises(BundleError, match=says):
        check_manifest(manifest, "here")
