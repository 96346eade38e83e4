"""Write an engine.plan: members streamed and hashed once, the manifest put in last, the file renamed only when it is right.

    weights = SafetensorsLayout({"norm.weight": ("F32", (1152,)), ...})
    with BundleWriter("engine.plan") as writer:
        writer.add_tensors("encode.safetensors", weights, load)      # load(name) -> array, one at a time
        writer.add_bytes("encode.onnx", graph.to_onnx("encode.safetensors", weights.offsets))
        writer.finish(manifest)                                      # without it, or after an error, nothing is left behind
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable, Iterable

import numpy as np

from ps3_sdk.atomic import replaced
from ps3_sdk.bundle import Bundle, map_file
from ps3_sdk.errors import ExportError
from ps3_sdk.manifest import MANIFEST, check_manifest
from ps3_sdk.tensors import DTYPES
from ps3_sdk.zip_members import (ALIGNMENT, ALIGNMENT_EXTRA, CENTRAL, END, END64, FULL16, FULL32, LOCAL, LOCATOR, NAME, ZIP64_EXTRA)

MANIFEST_BYTES = 64 << 10
_DATE = (0, 1 << 5 | 1)             # time and date of every member: 1980-01-01 00:00, so that equal contents make equal files
_PIECE_BYTES = 4 << 20


class SafetensorsLayout:
    """Where each tensor of a safetensors member will lie, known before a byte of it is.

    Args:
        tensors: {name: (dtype, shape)}, dtype in safetensors' words ("F32", "F16", "BF16", "I64", "I32", "U8").
    Attributes:
        order: names, as they must be written | offsets: {name: first byte inside the member} | size: bytes of the member.

    The format allows no holes, so tensors are sorted by how many factors of two their sizes have: each then starts at a
    multiple of 64, or of its own size's largest power of two when that is less. Equal ones keep the given order.
    """

    def __init__(self, tensors: dict[str, tuple[str, tuple[int, ...]]]):
        sizes = {name: int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize for name, (dtype, shape) in tensors.items()}
        self.order = sorted(tensors, key=lambda name: -min(sizes[name] & -sizes[name] or ALIGNMENT, ALIGNMENT))
        self.tensors, entries, cursor = dict(tensors), {}, 0
        for name in self.order:
            dtype, shape = tensors[name]
            entries[name] = {"dtype": dtype, "shape": [int(n) for n in shape], "data_offsets": [cursor, cursor + sizes[name]]}
            cursor += sizes[name]
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        self.header = len(header).to_bytes(8, "little") + header
        self.offsets = {name: len(self.header) + entry["data_offsets"][0] for name, entry in entries.items()}
        self.size = len(self.header) + cursor

    def chunks(self, load: Callable[[str], np.ndarray]) -> Iterable[memoryview]:
        """The member's bytes; load(name) is called once per tensor, in order. Raises: ExportError for another dtype or shape."""
        yield memoryview(self.header)
        for name in self.order:
            dtype, shape = self.tensors[name]
            array = load(name)
            if array.dtype != DTYPES[dtype] or array.shape != tuple(shape):
                raise ExportError(f"[write_bundle] tensor {name} is {array.dtype} {array.shape}; {DTYPES[dtype]} {tuple(shape)} was announced. "
                                  "Convert it in load().")
            yield memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


class BundleWriter:
    """One bundle being written beside its target. Use it in a `with` block; finish(manifest) makes it real.

    Raises: ExportError when the place cannot be written, the disk is full, a member is named twice or has another size than
    announced; BundleError from finish() when manifest and members do not fit together. The target is then as it was.
    """

    def __init__(self, path, manifest_bytes: int = MANIFEST_BYTES):
        self.path = os.fspath(path)
        self.members: dict[str, dict] = {}          # name -> {"bytes", "sha256"}, what the manifest will say
        self._starts: dict[str, int] = {}           # name -> first byte of its data
        self._directory: list[bytes] = []
        self._zip64_from = FULL32                   # sizes and offsets from here on are written as 64-bit
        self._manifest_bytes = manifest_bytes
        self._stack = ExitStack()
        self._finished = False

    def __enter__(self) -> "BundleWriter":
        try:
            self._beside = self._stack.enter_context(replaced(self.path))
            self._file = self._stack.enter_context(open(self._beside, "r+b"))
            self._begin(MANIFEST, self._manifest_bytes)
            self._manifest_at = self._file.tell()
            self._seek(self._manifest_at + self._manifest_bytes)
        except BaseException as error:
            self._throw_away(error)
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise
        return self

    def add_bytes(self, name: str, data: bytes) -> None:
        """A whole member."""
        self.add_stream(name, len(data), [data])

    def add_tensors(self, name: str, layout: SafetensorsLayout, load: Callable[[str], np.ndarray]) -> None:
        """A safetensors member, one tensor in memory at a time."""
        self.add_stream(name, layout.size, layout.chunks(load))

    def add_stream(self, name: str, size: int, chunks: Iterable) -> None:
        """A member of `size` bytes that arrive as bytes-like chunks. It is hashed as it is written."""
        if name == MANIFEST or name in self.members or not NAME.fullmatch(name):
            raise ExportError(f"[write_bundle] a member cannot be named {name!r}; names are plain file names, each once, and {MANIFEST} is the "
                              "writer's own. Choose another.")
        header_at = self._begin(name, size)
        self._starts[name] = self._file.tell()
        digest, crc, done = hashlib.sha256(), 0, 0
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for start in range(0, len(view), _PIECE_BYTES):
                piece = view[start:start + _PIECE_BYTES]
                digest.update(piece)
                crc = zlib.crc32(piece, crc)
                self._write(piece)
            done += len(view)
        if done != size:
            raise ExportError(f"[write_bundle] member {name} came as {done} bytes; {size} were announced. Check what produces it.")
        self._end(name, size, crc, header_at)
        self.members[name] = {"bytes": size, "sha256": digest.hexdigest()}

    @property
    def beside(self) -> str:
        """The unfinished file. Its members may be read and mapped, for trying the networks before the manifest is sealed."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        return self._beside

    def offset(self, name: str) -> int:
        """First byte of a member inside the file, as in the finished bundle."""
        return self._starts[name]

    def read(self, name: str) -> bytes:
        """A member that was written before."""
        with open(self.beside, "rb") as file:
            file.seek(self.offset(name))
            return file.read(self.members[name]["bytes"])

    def finish(self, manifest: dict) -> None:
        """Fill in manifest["members"], check everything as Bundle.open does, put the manifest in its place and rename the file."""
        manifest = {**manifest, "members": self.members}
        try:
            text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ExportError(f"[write_bundle] the manifest cannot be written as JSON: {error}. Use plain str, int, finite float, list, dict.") \
                from error
        if len(text) > self._manifest_bytes:
            raise ExportError(f"[write_bundle] the manifest has {len(text)} bytes; {self._manifest_bytes} were reserved. "
                              "Pass a larger manifest_bytes to BundleWriter.")
        check_manifest(json.loads(text), f"[write_bundle] {self.path}")
        text = text.ljust(self._manifest_bytes)
        end = self._file.tell()
        self._seek(self._manifest_at)
        self._write(text)
        self._seek(end)
        self._end(MANIFEST, len(text), zlib.crc32(text), 0)
        self._directory.insert(0, self._directory.pop())
        self._write_directory()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            Bundle(Path(self.path), *map_file(self._beside)).close()
            self._stack.close()         # closes and renames
        except OSError as error:
            raise self._failed(error) from error
        self._finished = True

    def __exit__(self, kind, error, trace) -> None:
        if not self._finished:
            self._throw_away(error or ExportError(""))
            if error is None:
                raise ExportError(f"[write_bundle] {self.path} was not written; a bundle needs its manifest. Call finish(manifest) last.")

    def _throw_away(self, error: BaseException) -> None:
        """Close and remove what was written; `error` is why."""
        with suppress(OSError):         # the last buffered bytes may fail to be written too
            self._stack.__exit__(type(error), error, error.__traceback__)

    # -- the ZIP around the members -------------------------------------------------------------------------------

    def _begin(self, name: str, size: int) -> int:
        """Leave room for a local header, padded so that data starts at a multiple of ALIGNMENT. Returns the header's offset."""
        header_at = self._file.tell()
        self._seek(header_at + len(self._local_header(name, size, 0, header_at)))
        return header_at

    def _end(self, name: str, size: int, crc: int, header_at: int) -> None:
        """Write the local header, now that the checksum is known, and note the directory entry."""
        data_end = self._file.tell()
        self._seek(header_at)
        self._write(self._local_header(name, size, crc, header_at))
        self._seek(data_end)
        wide = [value for value in (size, size, header_at) if value >= self._zip64_from]
        extra = _field(ZIP64_EXTRA, b"".join(value.to_bytes(8, "little") for value in wide)) if wide else b""
        small, small_at = self._narrow(size), self._narrow(header_at)
        self._directory.append(CENTRAL.pack(b"PK\x01\x02", 3 << 8 | 45, 45 if wide else 10, 0, 0, *_DATE, crc, small, small, len(name), len(extra), 0,
                                            0, 0, 0o100644 << 16, small_at) + name.encode() + extra)

    def _local_header(self, name: str, size: int, crc: int, header_at: int) -> bytes:
        wide = size >= self._zip64_from
        extra = _field(ZIP64_EXTRA, size.to_bytes(8, "little") * 2) if wide else b""
        used = header_at + LOCAL.size + len(name) + len(extra)
        padding = -used % ALIGNMENT
        if padding:
            padding += ALIGNMENT if padding < 6 else 0
            extra += _field(ALIGNMENT_EXTRA, ALIGNMENT.to_bytes(2, "little").ljust(padding - 4, b"\0"))
        return LOCAL.pack(b"PK\x03\x04", 45 if wide else 10, 0, 0, *_DATE, crc, self._narrow(size), self._narrow(size), len(name),
                          len(extra)) + name.encode() + extra

    def _write_directory(self) -> None:
        start, count = self._file.tell(), len(self._directory)
        self._write(b"".join(self._directory))
        end = self._file.tell()
        if max(start, end - start) >= self._zip64_from:
            self._write(END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, count, count, end - start, start))
            self._write(LOCATOR.pack(b"PK\x06\x07", 0, end, 1))
        self._write(END.pack(b"PK\x05\x06", 0, 0, min(count, FULL16), min(count, FULL16), self._narrow(end - start), self._narrow(start), 0))

    def _narrow(self, value: int) -> int:
        return FULL32 if value >= self._zip64_from else value

    def _seek(self, offset: int) -> None:
        try:
            self._file.seek(offset)     # writes what is buffered
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, data) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ExportError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "Free some space or choose another disk." if full else "Choose a writable folder."
        return ExportError(f"[write_bundle] {self.path} cannot be written: {error.strerror or error}; nothing was left behind. {fix}")


def _field(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(data).to_bytes(2, "little") + data
