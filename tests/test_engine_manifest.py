"""What a manifest may say about engines and reference values, and what it may not."""
import copy
import functools
import operator

import pytest

import hostile_bundles
from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import BundleError
from ps3_sdk.manifest import check_manifest, most_in_a_run, schema
from ps3_sdk.runtimes.trt_vendor import rebuild_command
from ps3_sdk.session import DEFAULT_BUNDLE
from ps3_sdk.verify import LIMITS, precision_of

MOST = 2559
PROFILES = {"encode": {"batch": [1, 1, 1], "tokens": [1, MOST, MOST], "past": [0, 4, 4], "keep": [0, 0, 4]}, "pool": {"batch": [1, 1, 1], "tokens": [1, MOST, MOST]}}


def with_engines():
    manifest = hostile_bundles.manifest()
    manifest["members"] = {name: {"bytes": 1, "sha256": "0" * 64} for name in ("tables.safetensors", "tokenizer.json", "reference.safetensors")}
    for name, entry in manifest["networks"].items():
        entry |= {"runtime": "tensorrt-rtx", "file": f"{name}.engine", "weights": None, "precision": "fp16", "engine": {
            "builder": "1.7.1.116", "platform": "linux-x86_64", "sms": [86, 89], "workspace_bytes": None, "on_device": ["key_0", "value_0"] if name == "encode" else [],
            "profiles": [copy.deepcopy(PROFILES.get(name, {"batch": [1, 1, 2]}))]}}
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


def fixed(entry, **sizes):
    """A network whose engine was built for one size, which sessions ask its profiles for all the same."""
    for port in (*entry["inputs"], *entry["outputs"]):
        port["shape"] = [sizes.get(size, size) for size in port["shape"]]
    for profile in entry["engine"]["profiles"]:
        for size in sizes:
            profile.pop(size)


ENCODE = ("networks", "encode", "engine")


@pytest.mark.parametrize("change, says", [
    (put("networks", "encode", "runtime", value="onnxruntime"), "engine belongs to tensorrt"),
    (lambda manifest: manifest["networks"]["encode"].pop("engine"), "engine belongs to tensorrt"),
    (put("networks", "encode", "weights", value="reference.safetensors"), "an engine holds its own weights"),
    *((put(*ENCODE, "on_device", value=["key_0", name]), f"on_device names {name}; only keys and values stay") for name in ("tokens_too", "tokens", "features", "past_key_0")),
    (put("networks", "pool", "engine", "on_device", value=["pooled"]), "on_device names pooled; only keys and values stay"),
    (put(*ENCODE, "profiles", value=[{"batch": [1, 1, 1]}]), "each gives batch, keep, past, tokens"),
    (lambda manifest: manifest["networks"]["encode"]["engine"]["profiles"][0].pop("keep"), "each gives batch, keep, past, tokens"),
    (put(*ENCODE, "profiles", 0, "past", value=[0, 0, 0]), "past is 0 in all"),
    (put("networks", "encode", "inputs", 2, "shape", value=["n"]), "keep"),
    (lambda manifest: fixed(manifest["networks"]["pool"], tokens=4), "each gives batch, tokens"),
    (put("networks", "encode", "precision", value="fp9"), "precision is 'fp9'; known are 'fp32'"),
    (put("verify", "prompt", value=" "), "verify.prompt is blank"),
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


def test_blocks_that_do_not_fill_a_grid_are_refused():
    with Bundle.open(DEFAULT_BUNDLE, verify=False) as bundle:
        manifest = copy.deepcopy(bundle.manifest)
    manifest["language"]["downsample"] = 4
    with pytest.raises(BundleError, match="downsample is 4; it must divide the grids of the high-res scales, 54, 108, 270"):
        check_manifest(manifest, "here")


def test_every_precision_of_a_manifest_has_limits():
    assert set(schema()["$defs"]["network"]["properties"]["precision"]["enum"]) == set(LIMITS)


def places(node, way=()):
    """Every field of a document, as the keys that lead there."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield *way, key
        yield from places(value, (*way, key))


def test_a_field_that_is_gone_or_another_is_refused_in_words_or_harms_nobody():
    """What passes is read as sessions, runtimes and `ps3 verify` read it."""
    passed = 0
    for way in list(places(with_engines())):
        for value in ("gone", None, 0, 1, "tokens", [], {}, [1], ["n"], [0, 0, 0]):
            manifest = with_engines()
            put(*way, value=value)(manifest)
            if value == "gone":
                parent = functools.reduce(operator.getitem, way[:-1], manifest)
                del parent[way[-1]]
            try:
                check_manifest(manifest, "here")
            except BundleError:
                continue
            passed += 1
            assert precision_of(manifest) in LIMITS
            for name, size in (("encode", "tokens"), ("pool", "tokens")):
                most_in_a_run(manifest, name, size)
            for name, entry in manifest["networks"].items():
                rebuild_command(entry["runtime"], manifest["networks"], name)
                assert all({size for port in entry["inputs"] for size in port["shape"] if isinstance(size, str)} <= set(profile) for profile in entry["engine"]["profiles"])
    assert passed > 50
