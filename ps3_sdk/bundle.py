"""Bundle: one engine.plan, mapped, checked and read in place.

The format is told by zip_members.py (the file), bundle.schema.json and manifest.py (the manifest), tensors.py (weights and tables).
"""
from __future__ import annotations

import hashlib
import mmap
import os
import stat
import zlib
from pathlib import Path
from typing import Callable

import numpy as np

from .datasheet import describe  # noqa: F401  (part of this module's words)
from .errors import BundleError, ClosedError
from .manifest import MANIFEST, MAX_MANIFEST_BYTES, TABLES, check_members, check_tables, parse_manifest
from .tensors import read_header, views
from .zip_members import read_members

_CHUNK_BYTES = 8 << 20


class Bundle:
    """An engine.plan, open. Use Bundle.open; close it, or use it in a `with` block.

    Attributes: manifest: dict, see bundle.schema.json | path: Path | size_bytes: int.
    Nothing is read before it is needed: members and tensors are views of the mapped file. They stay valid after close().
    """

    def __init__(self, path: Path, data: memoryview, size_bytes: int):
        where = f"[bundle] {path}"
        self.path, self.size_bytes, self._data = path, size_bytes, data
        self._members = read_members(data, where)
        first = next(iter(self._members.values()))
        if first.name != MANIFEST or first.size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{where}: the first member is {first.name} of {first.size} bytes; it must be {MANIFEST} of at most "
                              f"{MAX_MANIFEST_BYTES}. Export the bundle again.")
        text = bytes(self.member(MANIFEST))
        if zlib.crc32(text) != first.crc:
            raise BundleError(f"{where}: {MANIFEST} does not match its checksum, the file was altered or damaged. Copy it again, or export it again.")
        self.manifest = parse_manifest(text, where)
        check_members(self.manifest, {name: member.size for name, member in self._members.items()}, where)
        headers = {name: read_header(self.member(name), f"{where}: {name}") for name in self._members if name.endswith(".safetensors")}
        check_tables(self.manifest, headers[TABLES], where)

    @classmethod
    def open(cls, path, verify: bool = True, progress: Callable[[int, int], None] | None = None) -> "Bundle":
        """Map and check a bundle.

        Args:
            path: an engine.plan file.
            verify: also compare every byte with the hashes in the manifest. Structure, sizes and shapes are checked either way.
            progress: called with (bytes hashed so far, bytes in all).
        Raises:
            BundleError: missing, not a file, not a bundle, truncated, altered, or against the closed manifest; the text says which.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise BundleError(f"[bundle] {path!r} is no path; the file of an engine.plan is needed. Leave it out for the embedded one.")
        path = Path(path)
        bundle = cls(path, *map_file(path))
        if verify:
            bundle.verify(progress)
        return bundle

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compare every member with its sha256. Raises: BundleError that names the first member that differs."""
        total, done = sum(entry["bytes"] for entry in self.manifest["members"].values()), 0
        for name, entry in self.manifest["members"].items():
            digest, data = hashlib.sha256(), self.member(name)
            for start in range(0, len(data), _CHUNK_BYTES):
                part = data[start:start + _CHUNK_BYTES]
                digest.update(part)
                done += len(part)
                if progress:
                    progress(done, total)
            self.release(name)
            if digest.hexdigest() != entry["sha256"]:
                raise BundleError(f"[bundle] {self.path}: member {name} has sha256 {digest.hexdigest()[:16]}..., the manifest says "
                                  f"{entry['sha256'][:16]}...; its bytes were altered or damaged. Copy the file again, or export it again.")

    @property
    def members(self) -> dict[str, int]:
        """{name: bytes}, in file order."""
        return {name: member.size for name, member in self._members.items()}

    def member(self, name: str) -> memoryview:
        """The bytes of a member: a read-only view of the mapped file. Raises: BundleError for an unknown name; ClosedError."""
        member = self._known(name)
        return self._data[member.offset:member.offset + member.size]

    def offset(self, name: str) -> int:
        """First byte of a member inside the file, a multiple of 64."""
        return self._known(name).offset

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Tensors of a .safetensors member, read-only views of the mapped file; bfloat16 comes as its uint16 bits."""
        return views(self.member(name), f"[bundle] {self.path}: {name}")

    def release(self, name: str) -> None:
        """Say that a member is not needed for now: its pages leave this process's memory (the file cache keeps them).

        For tables of which a few rows are read: the system maps up to a megabyte around each row that is touched.
        """
        member = self._known(name)
        start = member.offset // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.obj.madvise(mmap.MADV_DONTNEED, start, member.offset + member.size - start)

    def close(self) -> None:
        """Let go of the mapping; it goes when the last view of it does. A second call does nothing."""
        self._data = None

    def _known(self, name: str):
        if self._data is None:
            raise ClosedError(f"[bundle] {self.path} is closed; open it again: Bundle.open(path).")
        if name not in self._members:
            raise BundleError(f"[bundle] {self.path} has no member {name!r}; it has {', '.join(self._members)}. Export the bundle again.")
        return self._members[name]

    def __enter__(self) -> "Bundle":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, {self.manifest['model']['name']!r}, {self.size_bytes} bytes{', closed' if self._data is None else ''})"


def map_file(path) -> tuple[memoryview, int]:
    """(read-only view of the whole file, its size in bytes). Raises: BundleError when it is missing, unreadable, empty or no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))    # a pipe must not block
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise BundleError(f"[bundle] {path} is {what}; a bundle is one file. Pass the engine.plan inside, or export one: ps3 export.")
            if not status.st_size:
                raise BundleError(f"[bundle] {path} is empty; a bundle starts with its manifest. Copy the file again, or export it again.")
            return memoryview(mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)), status.st_size
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise BundleError(f"[bundle] {path} cannot be opened: {why}; a readable engine.plan is needed. Check the path, or export one: ps3 export.") \
            from error
