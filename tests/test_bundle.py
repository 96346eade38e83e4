"""What a bundle promises to its reader: honest files open, anything else is a BundleError that says why."""
import os

import hostile_bundles
import numpy as np
import pytest

from ps3_sdk.bundle import Bundle, describe
from ps3_sdk.errors import BundleError, ClosedError
from ps3_sdk.manifest import schema
from ps3_sdk.schema import KEYWORDS, check
from ps3_sdk.zip_members import END


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "engine.plan"
    path.write_bytes(hostile_bundles.GOOD)
    return path


def everything(path):
    """Manifest and members of a bundle, as comparable values."""
    with Bundle.open(path) as bundle:
        return bundle.manifest, {name: bytes(bundle.member(name)) for name in bundle.members}


def test_an_honest_bundle_opens_and_its_members_are_what_was_put_in(good):
    with Bundle.open(good) as bundle:
        for name, data in hostile_bundles.contents().items():
            assert bytes(bundle.member(name)) == data
            assert bundle.offset(name) % 64 == 0
            assert hostile_bundles.GOOD[bundle.offset(name):][:len(data)] == data
        assert bundle.path == good and bundle.size_bytes == len(hostile_bundles.GOOD)


def test_tensors_are_read_only_views_with_the_right_values(good):
    with Bundle.open(good) as bundle:
        tensors = bundle.tensors("tables.safetensors")
        for name, array in hostile_bundles.tables().items():
            assert np.array_equal(tensors[name], array) and not tensors[name].flags.writeable and not tensors[name].flags.owndata
    assert tensors["position"].sum() != 0      # a view outlives close()


def test_a_closed_bundle_says_so(good):
    bundle = Bundle.open(good)
    bundle.close()
    bundle.close()
    with pytest.raises(ClosedError, match="is closed"):
        bundle.member("encode.onnx")


def test_an_unknown_member_names_those_there_are(good):
    with Bundle.open(good) as bundle, pytest.raises(BundleError, match="no member 'nothing'; it has manifest.json, encode.onnx"):
        bundle.member("nothing")


@pytest.mark.parametrize("case", hostile_bundles.HOSTILE)
def test_hostile_file_is_refused_and_the_error_says_why(case, tmp_path):
    data, says = hostile_bundles.HOSTILE[case]
    path = tmp_path / f"{case}.plan"
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    text = str(caught.value)
    assert says in text
    assert text.startswith("[bundle] ") and path.name in text and len(text) < 900 and text.endswith("."), text


@pytest.mark.parametrize("kind, says", [("missing", "No such file"), ("folder", "is a folder"), ("pipe", "not a regular file"),
                                        ("zero_byte", "cannot be opened")])
def test_what_is_no_file_is_refused(kind, says, tmp_path):
    path = tmp_path / "engine.plan"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero_byte":
        path = f"{path}\0"
    with pytest.raises(BundleError, match=says):
        Bundle.open(path)


def test_a_wrong_hash_is_found_by_verify_alone(tmp_path):
    path = tmp_path / "engine.plan"
    path.write_bytes(hostile_bundles.HOSTILE["wrong_hash"][0])
    with Bundle.open(path, verify=False) as bundle, pytest.raises(BundleError, match="encode.onnx has sha256"):
        bundle.verify()


def test_verify_reports_progress_up_to_all_bytes(good):
    seen = []
    Bundle.open(good, progress=lambda done, total: seen.append((done, total))).close()
    total = sum(map(len, hostile_bundles.contents().values()))
    assert seen[-1] == (total, total) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_truncated_anywhere_is_refused(tmp_path):
    path = tmp_path / "engine.plan"
    for length in np.linspace(0, len(hostile_bundles.GOOD) - 1, 50).astype(int):
        path.write_bytes(hostile_bundles.GOOD[:length])
        with pytest.raises(BundleError):
            Bundle.open(path)


def flips(data):
    """300 random bytes, and every byte of the directory and of the local headers' fixed part."""
    rng = np.random.default_rng(7)
    directory = END.unpack(data[-END.size:])[6]
    headers = [i + k for i in range(directory) if data[i:i + 4] == b"PK\x03\x04" for k in range(46)]
    return sorted({*rng.integers(0, len(data), 300).tolist(), *range(directory, len(data)), *headers})


def test_any_flipped_byte_is_refused_or_changes_nothing(good):
    truth, refused, places = everything(good), 0, flips(hostile_bundles.GOOD)
    rng = np.random.default_rng(8)
    for place in places:
        data = bytearray(hostile_bundles.GOOD)
        data[place] ^= int(rng.integers(1, 256))
        good.write_bytes(data)
        try:
            assert everything(good) == truth, f"byte {place} changed what is read"
        except BundleError:
            refused += 1
    assert refused > len(places) // 2


def test_the_schema_uses_no_keyword_that_the_checker_ignores():
    def walk(node):
        assert set(node) <= KEYWORDS
        for key in ("properties", "$defs"):
            for inner in node.get(key, {}).values():
                walk(inner)
        for inner in filter(None, [node.get("items"), *node.get("anyOf", []), node.get("additionalProperties")]):
            walk(inner)
        assert node.get("type") != "object" or "additionalProperties" in node, "an object that is not closed"
    walk(schema())


def test_a_schema_with_an_unknown_keyword_is_refused():
    with pytest.raises(BundleError, match="the schema uses maxLength"):
        check("text", {"type": "string", "maxLength": 3}, "here")


def test_the_data_sheet_names_what_matters(good):
    with Bundle.open(good) as bundle:
        sheet = describe(bundle)
    for word in ("tiny", "siglip", "RANDOM", "Apache-2.0", "made by a test", "8 x 8", "all, once a frame", "encode_prompt", "2 past keys and values",
                 "1.5e-06", "torch 2.13", "tables.safetensors", "ps3_sdk 0.1.0", "onnxruntime", "fp32", "4 tokens of 100"):
        assert word in sheet, word
    assert max(map(len, sheet.splitlines())) < 160


def test_long_texts_in_json_take_little_memory():
    import tracemalloc
    from ps3_sdk.schema import parse_json
    tracemalloc.start()
    try:
        assert parse_json(b'{"a":"' + b"[{" * 2 ** 19 + b'\\\\"}', "x")["a"].endswith("{\\")
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    with pytest.raises(BundleError, match="deeper than"):
        parse_json(b'{"\\"":' + b"[" * 40 + b"]" * 40 + b"}", "x")
