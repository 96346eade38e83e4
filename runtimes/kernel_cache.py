"""Kernels that TensorRT-RTX finished on a GPU, kept in a file from one process to the next.

An engine of TensorRT-RTX is built ahead for several GPUs; its kernels are finished where it runs, at the first runs of each size. What a file holds
is used where release, GPU and driver are those that made it, which the vendor checks, and made anew elsewhere. Such a file is code that a GPU
runs: keep the folder where nobody else writes.
Source: NVIDIA TensorRT for RTX, "Working with Runtime Cache".
"""
from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from ps3_sdk.atomic import check_place, replaced
from ps3_sdk.errors import InputError

MAGIC = b"kernels of tensorrt-rtx\n"        # then the SHA-256 of what follows: a file that was cut short is none
HEAD = len(MAGIC) + hashlib.sha256().digest_size


class KernelCache:
    """Of one engine, in a file that is named by the engine's hash: bundles may share a folder.

    Raises InputError: the folder is missing or cannot be written, or its file cannot be read.
    """

    def __init__(self, folder: str | Path, bundle, name: str):
        self._path = Path(folder) / f"{bundle.manifest['members'][bundle.manifest['networks'][name]['file']]['sha256'][:32]}.kernels"
        self._cache, self._known = None, b""
        check_place(self._path, "session")
        try:
            found = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise InputError(f"[session] {self._path} of the kernel cache cannot be read: {error.strerror or error}. Remove it, or choose another folder.") from error
        if found.startswith(MAGIC) and hashlib.sha256(found[HEAD:]).digest() == found[len(MAGIC):HEAD]:
            self._known = found[HEAD:]

    def attach(self, config) -> None:
        """Have a context, by its configuration, find kernels here and leave new ones here."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._known and not self._cache.deserialize(self._known):
                self._known = b""       # of another release, GPU or driver
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what there is, where it is not what was found; called when the contexts are gone and the engine is still there. A second call does nothing."""
        cache, self._cache = self._cache, None
        kept = b"" if cache is None else bytes(memoryview(cache.serialize() or b""))
        if not kept or kept == self._known:
            return
        try:
            with replaced(self._path) as beside, open(beside, "wb") as file:
                file.write(MAGIC + hashlib.sha256(kept).digest() + kept)
                file.flush()
                os.fsync(file.fileno())     # robots are switched off
        except OSError as error:
            warnings.warn(f"[session] the kernel cache {self._path} was not written: {error.strerror or error}. The next session finishes these kernels anew.", stacklevel=2)
