"""A small honest bundle, and every way we know to make a dishonest one. Each case: bytes, and what the error must say."""
import copy
import hashlib
import io
import json
import pickle
import struct
import zlib

import numpy as np

from ps3_sdk.zip_members import ALIGNMENT, ALIGNMENT_EXTRA, CENTRAL, END, LOCAL


def port(name, *shape, dtype="float32"):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def manifest():
    """A manifest of tiny sizes, without members."""
    def network(name, inputs, outputs):
        return {"runtime": "onnxruntime", "file": f"{name}.onnx", "weights": f"{name}.safetensors" if name == "encode" else None,
                "precision": "fp32", "inputs": inputs, "outputs": outputs}

    past = ("batch", 2, "past", 4)
    return {
        "format": "ps3-bundle", "format_version": 1, "kind": "encoder",
        "model": {"name": "tiny", "family": "siglip", "source": "made by a test", "revision": None, "licence": "Apache-2.0", "weights": "random",
                  "note": None},
        "geometry": {"patch_px": 2, "scales_px": [4, 8, 16], "width": 8, "depth": 1, "heads": 2, "feature_width": 8, "pooled_width": 8,
                     "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "per_look": [2, 8], "view_px": 8, "view_patch_px": 2, "view_width": 4,
                     "position": "resample", "position_grid": 2},
        "text": {"context_length": 4, "vocabulary": 100, "clean": "canonicalize", "pad_id": 1, "tokenizer": "tokenizer.json"},
        "contrast": {"scale": 10.0, "bias": -10.0},
        "networks": {
            "encode": network("encode", [port("patches", "batch", "tokens", 12), port("position", "batch", "tokens", 8), port("keep", 1, dtype="int64"),
                                         port("past_key_0", *past), port("past_value_0", *past)],
                              [port("tokens", "batch", "tokens", 8), port("features", "batch", "kept", 8), port("key_0", "batch", 2, "kept", 4),
                               port("value_0", "batch", 2, "kept", 4)]),
            "score_features": network("score_features", [port("features", "batch", 4, 8), port("view", "batch", 16, 12)],
                                      [port("low_features", "batch", 4, 8), port("view_features", "batch", 16, 4)]),
            "encode_prompt": network("encode_prompt", [port("ids", "batch", 4, dtype="int64")], [port("pooled", "batch", 8), port("prompt", "batch", 8)]),
            "pool": network("pool", [port("tokens", "batch", "tokens", 8)], [port("pooled", "batch", 8)]),
        },
        "parity": {"encode_low": {"max_relative_error": 1.5e-6, "against": "torch 2.13", "inputs": "2 seeded frames"}},
        "tools": {"ps3_sdk": "0.1.0"},
    }


def tables():
    """{name: array} of tables.safetensors for manifest()."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in
            {"position": (4, 8), "prior_prompt": (8,), "position_residual_8": (16, 8), "view_prompt_weight": (4, 8), "view_prompt_bias": (4,)}.items()}


def safetensors(arrays=None, header=None, tail=b""):
    """Bytes of a safetensors member; `header` replaces the true one."""
    words, entries, data = {"float32": "F32", "float16": "F16", "int64": "I64"}, {}, b""
    for name, array in (tables() if arrays is None else arrays).items():
        entries[name] = {"dtype": words[str(array.dtype)], "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(entries if header is None else header(entries)).encode()
    return struct.pack("<Q", len(text)) + text + data + tail


def contents():
    """{member: bytes} for manifest()."""
    weights = {"weight": np.arange(48, dtype=np.float32).reshape(6, 8)}
    return {"encode.onnx": b"not a network", "encode.safetensors": safetensors(weights), "score_features.onnx": b"b" * 200, "encode_prompt.onnx": b"",
            "pool.onnx": b"d", "tables.safetensors": safetensors(), "tokenizer.json": b"{}"}


def raw_zip(members, **options):
    """A ZIP of [(name, data)], built field by field. options: {name: {field: value}} for one member, and `end`, a dict for the end record.

    Fields: method flags size packed crc mode extra_local extra_central comment local_name header_at before align.
    """
    out, directory = bytearray(), bytearray()
    for name, data in members:
        o = options.get(name, {})
        out += o.get("before", b"")
        at, raw = len(out), name.encode("utf-8")
        local_name = o.get("local_name", name).encode("utf-8")
        sizes = [o.get("packed", len(data)), o.get("size", len(data))]
        flags, method, crc = o.get("flags", 0), o.get("method", 0), o.get("crc", zlib.crc32(data))
        padding = -(at + LOCAL.size + len(local_name)) % ALIGNMENT
        padding += ALIGNMENT if 0 < padding < 6 else 0
        extra = o.get("extra_local", struct.pack("<3H", ALIGNMENT_EXTRA, padding - 4, ALIGNMENT) + bytes(padding - 6) if padding else b"")
        out += LOCAL.pack(b"PK\x03\x04", 10, flags, method, 0, 33, crc, *o.get("local_sizes", sizes), len(local_name), len(extra)) + local_name + extra + data
        central_extra, comment = o.get("extra_central", b""), o.get("comment", b"")
        directory += CENTRAL.pack(b"PK\x01\x02", 3 << 8 | 10, 10, flags, method, 0, 33, crc, *sizes, len(raw), len(central_extra), len(comment), 0, 0,
                                  o.get("mode", 0o100644) << 16, o.get("header_at", at)) + raw + central_extra + comment
    end = {"before": b"", "count": len(members), "size": len(directory), "comment": b"", **options.get("end", {})}
    out += end["before"]
    start = end.get("offset", len(out))
    return bytes(out + directory + END.pack(b"PK\x05\x06", 0, 0, end["count"], end["count"], end["size"], start, len(end["comment"])) + end["comment"])


def bundle(change=None, text=None, files=None, extra=(), **options):
    """Bytes of a bundle whose members agree with their hashes. change(manifest) edits it; text(bytes) edits its JSON; files replace members."""
    files = {**contents(), **(files or {})}
    document = copy.deepcopy(manifest())
    document["members"] = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    if change:
        change(document)
    data = json.dumps(document).encode()
    return raw_zip([("manifest.json", text(data) if text else data), *files.items(), *extra], **options)


def _at(path, value):
    """A change that sets one field of the manifest, as "geometry.width"; the value DELETE removes it."""
    def change(document):
        *parents, last = path.split(".")
        for name in parents:
            document = document[int(name)] if isinstance(document, list) else document[name]
        if value is DELETE:
            del document[last]
        else:
            document[last] = value
    return change


DELETE = object()


def _replace(old, new):
    def text(data):
        assert old in data, old
        return data.replace(old, new, 1)
    return text


def _stale(name, data):
    """A bundle whose member differs from what the manifest says of it."""
    document = {**manifest(), "members": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in contents().items()}}
    files = {**contents(), name: data}
    return raw_zip([("manifest.json", json.dumps(document).encode()), *files.items()])


def _pickle():
    out = io.BytesIO()
    pickle.dump({"position": [1.0] * 64}, out)
    return out.getvalue()


def _table(header=None, tail=b"", arrays=None):
    return bundle(files={"tables.safetensors": safetensors(arrays, header, tail)})


def _entry(name, **fields):
    return lambda entries: {**entries, name: {**entries[name], **fields}}


def _deflated():
    bomb = zlib.compress(bytes(1 << 20), 9)[2:-4]
    return raw_zip([("manifest.json", json.dumps(manifest()).encode()), ("bomb.onnx", bomb)], **{"bomb.onnx": {"method": 8, "size": 1 << 20}})


GOOD = bundle()
A, B = "encode.onnx", "tokenizer.json"
HOSTILE = {     # case: (bytes, text that the error must contain)
    # the file
    "empty": (b"", "is empty"),
    "short": (b"PK\x03\x04", "is not a bundle"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a bundle"),
    "elf": (b"\x7fELF" + bytes(100), "an engine.plan is a ZIP"),
    "truncated": (GOOD[:-1], "cut off or something was appended"),
    "half": (GOOD[:len(GOOD) // 2], "cut off or something was appended"),
    "appended": (GOOD + b"x", "cut off or something was appended"),
    "prefixed": (b"PK\x03\x04" + GOOD, "does not stand right before"),
    "archive_comment": (bundle(end={"comment": b"hello"}), "cut off or something was appended"),
    # members
    "deflate_bomb": (_deflated(), "bomb.onnx is compressed (method 8)"),
    "encrypted": (bundle(**{A: {"flags": 1}}), f"{A} is encrypted"),
    "data_descriptor": (bundle(**{A: {"flags": 8}}), f"{A} has the flags 0x0008"),
    "huge_declared_size": (bundle(**{A: {"size": 0xFFFFFFF0, "packed": 0xFFFFFFF0}}), "runs past the end"),
    "huge_declared_size_64": (bundle(**{A: {"size": 0xFFFFFFFF, "packed": 0xFFFFFFFF,
                                            "extra_central": struct.pack("<2H2Q", 1, 16, 1 << 50, 1 << 50),
                                            "extra_local": struct.pack("<2H2Q", 1, 16, 1 << 50, 1 << 50)}}), "runs past the end"),
    "two_sizes": (bundle(**{A: {"size": 14}}), f"{A} is stored and yet has two sizes"),
    "local_size_differs": (bundle(**{A: {"local_sizes": [12, 12]}}), f"the local header of member {A} says 12 bytes"),
    "local_name_differs": (bundle(**{A: {"local_name": "encode.0nnx"}}), "or has another name"),
    "duplicate_name": (bundle(extra=[(A, b"other")]), f"two members are named {A}"),
    "duplicate_but_for_case": (bundle(extra=[("ENCODE.ONNX", b"other")]), "two members are named ENCODE.ONNX"),
    "parent_folder": (bundle(extra=[("../evil", b"x")]), "'../evil' is not a plain file name"),
    "nested_parent_folder": (bundle(extra=[("a/../../evil", b"x")]), "is not a plain file name"),
    "absolute_path": (bundle(extra=[("/etc/passwd", b"x")]), "'/etc/passwd' is not a plain file name"),
    "backslash": (bundle(extra=[("..\\evil", b"x")]), "is not a plain file name"),
    "drive": (bundle(extra=[("C:evil", b"x")]), "is not a plain file name"),
    "folder": (bundle(extra=[("folder/", b"")]), "is not a plain file name"),
    "dots": (bundle(extra=[("..", b"")]), "is not a plain file name"),
    "empty_name": (bundle(extra=[("", b"")]), "is not a plain file name"),
    "zero_byte_in_name": (bundle(extra=[("a\0b", b"")]), "is not a plain file name"),
    "unicode_name": (bundle(extra=[("\u202egnp.x", b"")]), "is not a plain file name"),
    "long_name": (bundle(extra=[("a" * 5000, b"")]), "is not a plain file name"),
    "symlink": (bundle(extra=[("link.onnx", b"/etc/passwd")], **{"link.onnx": {"mode": 0o120777}}), "link.onnx is a link"),
    "folder_mode": (bundle(**{A: {"mode": 0o040755}}), f"{A} is a folder or special file"),
    "device": (bundle(**{A: {"mode": 0o020644}}), f"{A} is a folder or special file"),
    "member_comment": (bundle(**{A: {"comment": b"c"}}), f"{A} has a comment"),
    "unicode_path_extra": (bundle(**{A: {"extra_central": struct.pack("<2H", 0x7075, 4) + b"evil"}}), "of an unknown kind (0x7075)"),
    "broken_extra": (bundle(**{A: {"extra_central": b"\x01\x00\xff"}}), f"the extra field of member {A} is broken"),
    "stray_64_bit_size": (bundle(**{A: {"extra_central": struct.pack("<2HQ", 1, 8, 5)}}), "do not fit its 32-bit ones"),
    "overlap": (bundle(**{B: {"header_at": 0}}), f"{B} overlaps the one before it"),
    "hole": (bundle(**{B: {"before": b"hidden" * 9}}), f"{B} follows a hole"),
    "hidden_bytes_at_end": (bundle(end={"before": b"hidden"}), "belong to no member"),
    "unaligned": (bundle(**{A: {"extra_local": b""}}), "no multiple of 64"),
    "too_few_counted": (bundle(end={"count": 3}), "does not end where it says"),
    "too_many_counted": (bundle(end={"count": 9}), "ends too early"),
    "none_counted": (bundle(end={"count": 0}), "it has 0 members"),
    "many_members": (bundle(extra=[(f"x{i}", b"") for i in range(80)]), "it has 88 members"),
    "directory_elsewhere": (bundle(end={"offset": 10}), "does not stand right before"),
    "lost_64_bit_record": (bundle(end={"count": 0xFFFF}), "its 64-bit end record is missing"),
    # manifest and members
    "manifest_not_first": (raw_zip([*contents().items(), ("manifest.json", b"{}")]), "it must be manifest.json"),
    "no_manifest": (raw_zip(list(contents().items())), "it must be manifest.json"),
    "huge_manifest": (bundle(text=lambda data: data + b" " * (4 << 20)), "of at most 4194304"),
    "manifest_checksum": (bundle(**{"manifest.json": {"crc": 1}}), "does not match its checksum"),
    "unlisted_member": (bundle(extra=[("extra.bin", b"x")]), "extra.bin is in the file and not listed"),
    "missing_member": (bundle(_at("members.gone", {"bytes": 1, "sha256": "0" * 64})), "gone is listed in the manifest and missing"),
    "manifest_lists_itself": (bundle(_at("members", {**{n: {"bytes": len(d), "sha256": "0" * 64} for n, d in contents().items()},
                                                     "manifest.json": {"bytes": 1, "sha256": "0" * 64}})), "cannot list itself"),
    "wrong_size": (_stale(A, b"longer than it was"), f"{A} has 18 bytes, the manifest says 13"),
    "wrong_hash": (_stale(A, b"not a netw0rk"), f"{A} has sha256"),
    "short_hash": (bundle(lambda d: d["members"][A].update(sha256="00")), "it must match ^[0-9a-f]{64}$"),
    "upper_case_hash": (bundle(lambda d: d["members"][A].update(sha256="A" * 64)), "it must match ^[0-9a-f]{64}$"),
    # manifest: JSON
    "not_json": (bundle(text=lambda data: data[:-2]), "is not JSON"),
    "not_utf8": (bundle(text=_replace(b"tiny", b"t\xffny")), "is not JSON"),
    "byte_order_mark": (bundle(text=lambda data: b"\xef\xbb\xbf" + data), "is not JSON"),
    "list": (bundle(text=lambda data: b"[]"), "manifest is a list of 0; a value of type object is needed"),
    "duplicate_key": (bundle(text=_replace(b'"kind"', b'"kind": "encoder", "kind"')), "the key 'kind' twice"),
    "nested_duplicate_key": (bundle(text=_replace(b'"depth"', b'"depth": 1, "depth"')), "the key 'depth' twice"),
    "nan": (bundle(text=_replace(b'"bias": -10.0', b'"bias": NaN')), "holds the number NaN"),
    "infinity": (bundle(text=_replace(b'"bias": -10.0', b'"bias": -Infinity')), "holds the number -Infinity"),
    "overflow": (bundle(text=_replace(b'"bias": -10.0', b'"bias": 1e999')), "holds the number 1e999"),
    "endless_integer": (bundle(text=_replace(b'"bias": -10.0', b'"bias": ' + b"9" * 9999)), "manifest"),
    "deep": (bundle(text=lambda data: b"[" * 200_000 + b"]" * 200_000), "nests deeper than 16"),
    "quotes": (bundle(text=lambda data: b'"' + b'\\"' * 1_000_000), "is not JSON"),
    # manifest: schema
    "unknown_key": (bundle(_at("plugin", "x.so")), "manifest.plugin is unknown"),
    "unknown_inner_key": (bundle(_at("geometry.foo", 1)), "manifest.geometry.foo is unknown"),
    "unknown_network": (bundle(lambda d: d["networks"].update(extra=d["networks"]["pool"])), "manifest.networks.extra is unknown"),
    "missing_key": (bundle(_at("geometry.width", DELETE)), "manifest.geometry.width is missing"),
    "other_format": (bundle(_at("format", "other")), "known are 'ps3-bundle'"),
    "newer_version": (bundle(_at("format_version", 2)), "manifest.format_version is 2; known are 1"),
    "true_for_one": (bundle(_at("format_version", True)), "manifest.format_version is True"),
    "text_for_number": (bundle(_at("geometry.width", "8")), "manifest.geometry.width is '8'; a value of type integer"),
    "true_for_number": (bundle(_at("geometry.depth", True)), "manifest.geometry.depth is True"),
    "float_for_integer": (bundle(_at("geometry.heads", 2.0)), "manifest.geometry.heads is 2.0"),
    "negative": (bundle(_at("geometry.per_look", [-1, 8])), "manifest.geometry.per_look[0] is -1"),
    "gigantic": (bundle(_at("geometry.width", 10**30)), "manifest.geometry.width is"),
    "four_means": (bundle(_at("geometry.mean", [0.5] * 4)), "manifest.geometry.mean has 4 entries"),
    "terminal_escape": (bundle(_at("model.licence", "\x1b[2J")), "manifest.model.licence is"),
    "surrogate": (bundle(_at("model.note", "\ud800")), "manifest.model.note holds half a surrogate"),
    "path_as_file": (bundle(_at("networks.pool.file", "../pool.onnx")), "manifest.networks.pool.file is '../pool.onnx'"),
    "newline_in_name": (bundle(_at("networks.pool.file", "pool.onnx\n")), "manifest.networks.pool.file is"),
    "bad_dtype": (bundle(lambda d: d["networks"]["pool"]["inputs"][0].update(dtype="object")), "manifest.networks.pool.inputs[0].dtype is 'object'"),
    # manifest: rules between fields
    "scales_descend": (bundle(_at("geometry.scales_px", [4, 16, 8])), "scales ascend"),
    "scales_repeat": (bundle(_at("geometry.scales_px", [4, 8, 8])), "scales ascend"),
    "scale_between_patches": (bundle(_at("geometry.scales_px", [4, 8, 15])), "multiples of patch_px 2"),
    "per_look_short": (bundle(_at("geometry.per_look", [2])), "one for each of the 2 high-res scales"),
    "heads": (bundle(_at("geometry.heads", 3)), "it must divide width 8"),
    "zero_std": (bundle(_at("geometry.std", [0.5, 0, 0.5])), "deviations are above 0"),
    "half_a_view": (bundle(_at("geometry.view_width", None)), "all or none are given"),
    "view_grid": (bundle(_at("geometry.view_px", 2)), "must be whole and at least the low-res grid 2"),
    "crop_too_small": (bundle(_at("geometry.position", "crop")), "crop needs at least the largest grid, 8"),
    "text_without_network": (bundle(_at("networks.encode_prompt", DELETE)), "belong together"),
    "project_without_language": (bundle(lambda d: d["networks"].update(project=d["networks"]["pool"])), "project and decode belong to language"),
    "prompt_head_without_language": (bundle(lambda d: d["networks"].update(prompt_head=d["networks"]["pool"])), "prompt_head may"),
    "unknown_precision": (bundle(lambda d: [entry.update(precision="fp9") for entry in d["networks"].values()]), "precision is 'fp9'; known are 'fp32'"),
    "contrast_without_pool": (bundle(_at("networks.pool", DELETE)), "contrast needs text and networks.pool"),
    "pad_outside": (bundle(_at("text.pad_id", 100)), "the vocabulary has 100 entries"),
    "no_such_file": (bundle(_at("networks.pool.file", "none.onnx")), "networks.pool.file is 'none.onnx', which is not among the members"),
    "weights_of_another_kind": (bundle(_at("networks.pool.weights", "pool.onnx")), "weights are .safetensors"),
    "lost_input": (bundle(lambda d: d["networks"]["encode"]["inputs"].pop()), "differ from the encode network of this geometry in past_value_0"),
    "two_inputs_alike": (bundle(lambda d: d["networks"]["pool"]["inputs"].append(d["networks"]["pool"]["inputs"][0])), "a name given twice"),
    "depth_differs": (bundle(_at("geometry.depth", 2)), "differ from the encode network of this geometry in past_key_1"),
    "input_width": (bundle(lambda d: d["networks"]["pool"]["inputs"][0].update(shape=["batch", 9])), "its last size is 8"),
    # tensors
    "pickle": (bundle(files={"tables.safetensors": _pickle()}), "tables.safetensors"),
    "tensors_short": (bundle(files={"tables.safetensors": b"1234"}), "has 4 bytes"),
    "tensors_header_length": (bundle(files={"tables.safetensors": b"\xff" * 64}), "declares a header of 18446744073709551615 bytes"),
    "tensors_not_json": (bundle(files={"tables.safetensors": struct.pack("<Q", 4) + b"{{{{"}), "the header is not JSON"),
    "tensors_unknown_key": (_table(_entry("position", code="import os")), "header.position.code is unknown"),
    "tensors_dtype": (_table(_entry("position", dtype="O")), "header.position.dtype is 'O'"),
    "tensors_outside": (_table(_entry("prior_prompt", data_offsets=[128, 10**9])), "prior_prompt"),
    "tensors_backwards": (_table(_entry("prior_prompt", data_offsets=[160, 128])), "tensors overlap or leave a hole"),
    "tensors_overlap": (_table(_entry("prior_prompt", data_offsets=[64, 96])), "tensors overlap or leave a hole"),
    "tensors_hole": (_table(lambda e: {k: v for k, v in e.items() if k != "prior_prompt"}), "tensors overlap or leave a hole"),
    "tensors_shape": (_table(_entry("position", shape=[5, 8])), "needs 160"),
    "tensors_gigantic_shape": (_table(_entry("position", shape=[2**40] * 8)), "its shape"),
    "tensors_tail": (_table(tail=b"hidden"), "the tensors end at byte"),
    "tables_lack": (_table(arrays={k: v for k, v in tables().items() if k != "prior_prompt"}), "lacks prior_prompt (8,)"),
    "tables_unknown": (_table(arrays={**tables(), "other": np.zeros(1, np.float32)}), "holds 'other'"),
    "tables_shape": (_table(arrays={**tables(), "position": np.zeros((9, 8), np.float32)}), "the geometry needs F32 (4, 8)"),
    "tables_dtype": (_table(arrays={**tables(), "prior_prompt": np.zeros(8, np.float16)}), "prior_prompt is F16"),
}
