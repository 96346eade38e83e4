"""What the bundle writer promises: the same input makes the same bytes, and a failed write leaves the target as it was."""
import errno
import json
import os
import zipfile

import hostile_bundles
import numpy as np
import pytest

from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import BundleError, ExportError
from ps3_sdk.export.write_bundle import BundleWriter, SafetensorsLayout

WEIGHTS = {"odd": np.arange(3, dtype=np.float32), "weight": np.arange(48, dtype=np.float32).reshape(6, 8), "none": np.zeros((0, 4), np.float32),
           "one": np.float16(2.5).reshape(()), "ids": np.arange(5, dtype=np.int64)}
WORDS = {"float32": "F32", "float16": "F16", "int64": "I64"}


def layout():
    return SafetensorsLayout({name: (WORDS[str(array.dtype)], array.shape) for name, array in WEIGHTS.items()})


def write(path, zip64_from=None, manifest=None):
    writer = BundleWriter(path)
    if zip64_from is not None:
        writer._zip64_from = zip64_from
    with writer:
        fill(writer)
        writer.finish(manifest or hostile_bundles.manifest())


def fill(writer):
    for name, data in hostile_bundles.contents().items():
        if name == "encode.safetensors":
            writer.add_tensors(name, layout(), WEIGHTS.__getitem__)
        else:
            writer.add_bytes(name, data)


@pytest.fixture
def target(tmp_path):
    """A path that already holds something."""
    path = tmp_path / "engine.plan"
    path.write_bytes(b"what was there")
    return path


def untouched(target):
    return target.read_bytes() == b"what was there" and os.listdir(target.parent) == [target.name]


def test_what_is_written_is_what_is_read(target):
    write(target)
    with Bundle.open(target) as bundle:
        assert next(iter(bundle.members)) == "manifest.json"
        for name, array in bundle.tensors("encode.safetensors").items():
            assert array.dtype == WEIGHTS[name].dtype and np.array_equal(array, WEIGHTS[name])
        for name, data in hostile_bundles.contents().items():
            assert name == "encode.safetensors" or bytes(bundle.member(name)) == data
        assert {**bundle.manifest, "members": {}} == {**hostile_bundles.manifest(), "members": {}}
    assert os.listdir(target.parent) == [target.name]


def test_equal_input_makes_equal_bytes(tmp_path):
    write(tmp_path / "a.plan")
    write(tmp_path / "b.plan")
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()


@pytest.mark.parametrize("zip64_from", [None, 0, 1000, 66_000])
def test_other_zip_readers_agree(tmp_path, zip64_from):
    """Python's own reader checks every CRC; a lowered threshold makes it read our 64-bit records."""
    path = tmp_path / "engine.plan"
    write(path, zip64_from)
    with zipfile.ZipFile(path) as archive, Bundle.open(path) as bundle:
        assert archive.testzip() is None
        assert {i.filename: i.file_size for i in archive.infolist()} == bundle.members
        assert all(archive.read(name) == bytes(bundle.member(name)) for name in bundle.members)
        assert all(bundle.offset(name) % 64 == 0 for name in bundle.members)
        assert json.loads(archive.read("manifest.json")) == bundle.manifest


def test_other_safetensors_readers_agree(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    path = tmp_path / "engine.plan"
    write(path)
    with Bundle.open(path) as bundle:
        theirs = safetensors.load(bytes(bundle.member("encode.safetensors")))
    assert theirs.keys() == WEIGHTS.keys() and all(np.array_equal(theirs[name], array) for name, array in WEIGHTS.items())


def test_tensors_start_aligned_and_where_the_layout_says(tmp_path):
    path, planned = tmp_path / "engine.plan", layout()
    write(path)
    with Bundle.open(path) as bundle:
        member = bundle.member("encode.safetensors")
        assert len(member) == planned.size
        for name, array in WEIGHTS.items():
            assert bytes(member[planned.offsets[name]:][:array.nbytes]) == array.tobytes()
            assert array.nbytes % 64 or (bundle.offset("encode.safetensors") + planned.offsets[name]) % 64 == 0
            assert planned.offsets[name] % array.itemsize == 0


def test_members_can_be_read_before_the_manifest_is_sealed(target):
    with BundleWriter(target) as writer:
        fill(writer)
        for name in ("encode.onnx", "tables.safetensors"):
            data = hostile_bundles.contents()[name]
            assert writer.read(name) == data
            with open(writer.beside, "rb") as file:
                assert file.read()[writer.offset(name):][:len(data)] == data
        writer.finish(hostile_bundles.manifest())


def test_a_bundle_beyond_4_gib(tmp_path):
    """The weights are a hole of 4.5 GB in a sparse file, put there by the writer's own steps without hashing it."""
    size, name, path = 4_500_000_000, "encode.safetensors", tmp_path / "engine.plan"
    planned = SafetensorsLayout({"w": ("U8", (size,))})
    with BundleWriter(path) as writer:
        header_at = writer._begin(name, planned.size)
        start = writer._file.tell()
        writer._write(planned.header)
        writer._seek(start + planned.size)
        writer._end(name, planned.size, 0, header_at)
        writer.members[name] = {"bytes": planned.size, "sha256": "0" * 64}
        for other, data in hostile_bundles.contents().items():
            if other != name:
                writer.add_bytes(other, data)
        writer.finish(hostile_bundles.manifest())
    assert path.stat().st_blocks * 512 < 1 << 20, "the disk does not keep holes"
    with Bundle.open(path, verify=False) as bundle, zipfile.ZipFile(path) as archive:
        tensor = bundle.tensors(name)["w"]
        assert tensor.shape == (size,) and tensor[0] == 0 and tensor[-1] == 0
        assert bundle.offset("tokenizer.json") > 4 << 30 and bytes(bundle.member("tokenizer.json")) == b"{}" == archive.read("tokenizer.json")


class FullDisk:
    """A file that fails as a full disk does once `room` bytes were written."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, 600, 1500, 66_000])
def test_a_full_disk_leaves_the_target_as_it_was(target, room):
    with pytest.raises(ExportError, match="No space left.*Free some space"), BundleWriter(target) as writer:
        writer._file = FullDisk(writer._file, room)
        fill(writer)
        writer.finish(hostile_bundles.manifest())
    assert untouched(target)


def test_a_really_full_disk_at_the_last_flush_leaves_the_target_as_it_was(target):
    resource = pytest.importorskip("resource", reason="no file size limit on this system")
    import signal
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        with pytest.raises(ExportError, match="cannot be written"):
            write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert untouched(target)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ExportError("x")])
def test_any_stop_leaves_the_target_as_it_was(target, error):
    def stop(name):
        raise error
    with pytest.raises(type(error) if isinstance(error, Exception) else error), BundleWriter(target) as writer:
        writer.add_bytes("encode.onnx", b"x" * 100_000)
        writer.add_tensors("encode.safetensors", layout(), stop)
    assert untouched(target)


def test_forgetting_finish_is_an_error_and_leaves_the_target_as_it_was(target):
    with pytest.raises(ExportError, match="Call finish"), BundleWriter(target) as writer:
        fill(writer)
    assert untouched(target)


def change(path, value):
    document = hostile_bundles.manifest()
    hostile_bundles._at(path, value)(document)
    return document


@pytest.mark.parametrize("manifest, error, says", [
    (change("geometry.foo", 1), BundleError, "manifest.geometry.foo is unknown"),
    (change("geometry.position_grid", 3), BundleError, "the geometry needs F32 (9, 8)"),
    (change("contrast.bias", float("nan")), ExportError, "cannot be written as JSON"),
    (change("geometry.width", np.int64(8)), ExportError, "cannot be written as JSON"),
    (change("model.note", "long " * 20_000), ExportError, "65536 were reserved"),
])
def test_a_wrong_manifest_is_not_written(target, manifest, error, says):
    with pytest.raises(error) as caught:
        write(target, manifest=manifest)
    assert says in str(caught.value) and "engine.plan" in str(caught.value) + target.name and ".part" not in str(caught.value)
    assert untouched(target)


@pytest.mark.parametrize("name", ["manifest.json", "encode.onnx", "../evil", "a/b", "", "/abs"])
def test_a_wrong_or_second_name_is_refused(target, name):
    with pytest.raises(ExportError, match="cannot be named"), BundleWriter(target) as writer:
        writer.add_bytes("encode.onnx", b"")
        writer.add_bytes(name, b"")
    assert untouched(target)


@pytest.mark.parametrize("array", [np.zeros((6, 8)), np.zeros((8, 6), np.float32)])
def test_a_tensor_that_is_not_as_announced_is_refused(target, array):
    with pytest.raises(ExportError, match="was announced"), BundleWriter(target) as writer:
        writer.add_tensors("encode.safetensors", layout(), {**WEIGHTS, "weight": array}.__getitem__)
    assert untouched(target)


@pytest.mark.parametrize("size", [1, 3])
def test_a_stream_of_another_size_is_refused(target, size):
    with pytest.raises(ExportError, match="came as 2 bytes"), BundleWriter(target) as writer:
        writer.add_stream("encode.onnx", size, [b"a", b"b"])
    assert untouched(target)


@pytest.mark.parametrize("place", ["none/engine.plan", "."])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    with pytest.raises(ExportError, match="cannot be written.*Choose a writable folder"):
        write(tmp_path / place)
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.plan").symlink_to(tmp_path / "real" / "engine.plan")
    write(tmp_path / "link.plan")
    assert (tmp_path / "link.plan").is_symlink()
    Bundle.open(tmp_path / "real" / "engine.plan").close()
