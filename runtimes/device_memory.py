"""Memory of a GPU: tensors that stay there between two networks, and a pool that gives the same memory again and again."""
from __future__ import annotations

import threading
import weakref
from typing import Mapping, Sequence

import numpy as np

from ps3_sdk.errors import ClosedError
from ps3_sdk.tensors import from_bfloat16, to_bfloat16

from .cuda_driver import OUT_OF_MEMORY, CudaError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
ALIGNMENT = 256


def padded(num_bytes: int) -> int:
    return -(-max(num_bytes, 1) // ALIGNMENT) * ALIGNMENT


def num_bytes(shape: Sequence[int], dtype: str) -> int:
    count = BYTES[dtype]
    for size in shape:
        count *= size
    return count


class Pool:
    """Blocks of memory. A block comes back when the last tensor in it is forgotten, and is given out again for as many bytes: no allocation after the first few asks."""

    def __init__(self, driver):
        self._driver = driver
        self._free: dict[int, list[int]] = {}
        self._all: set[int] = set()
        self._lock = threading.RLock()      # the end of a tensor may be noticed while this thread is in here
        self.closed = False

    def take(self, num_bytes: int) -> "Block":
        size = padded(num_bytes)
        with self._lock:
            if self.closed:
                raise ClosedError("[cuda] the session of this memory is closed; open a new one: ps3_sdk.Session(...).")
            free = self._free.setdefault(size, [])
            address = free.pop() if free else None
        if address is None:
            try:
                address = self._driver.allocate(size)
            except CudaError as error:
                if error.code != OUT_OF_MEMORY or not self._free_unused():
                    raise
                address = self._driver.allocate(size)
            with self._lock:
                self._all.add(address)
        return Block(self, address, size)

    def _free_unused(self) -> bool:
        """Free the blocks of other sizes that nobody uses; whether there were any."""
        with self._lock:
            unused = [address for free in self._free.values() for address in free]
            self._free.clear()
            self._all -= set(unused)
        for address in unused:
            self._driver.free(address)
        return bool(unused)

    def give_back(self, address: int, size: int) -> None:
        with self._lock:
            if not self.closed:
                self._free.setdefault(size, []).append(address)

    def close(self) -> None:
        """Free every block, also those that tensors still point to: their session is over."""
        with self._lock:
            self.closed, blocks = True, self._all
            self._all, self._free = set(), {}
        for address in blocks:
            self._driver.free(address)


class Block:
    def __init__(self, pool: Pool, address: int, size: int):
        self.address, self.pool = address, pool
        weakref.finalize(self, pool.give_back, address, size)


class DeviceTensor:
    """A packed tensor on the GPU. shape | dtype: the manifest's word | address | owner: what keeps its memory | network: who made it, and copies it.

    numpy.asarray copies it to the host. Slices, rows of the first dimension and [None] are views; copy() and joined() make new ones on the GPU.
    """

    def __init__(self, network, owner: Block, address: int, shape: Sequence[int], dtype: str):
        self.network, self.owner, self.address, self.shape, self.dtype = network, owner, address, tuple(shape), dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return num_bytes(self.shape, self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict:
        if self.dtype == "bfloat16":
            raise AttributeError("numpy, whose words this interface uses, has no bfloat16")
        self.check()
        return {"shape": self.shape, "typestr": np.dtype(self.dtype).str, "data": (self.address, False), "strides": None, "version": 3}

    def __getitem__(self, index: slice | int | None) -> "DeviceTensor":
        if index is None:
            return DeviceTensor(self.network, self.owner, self.address, (1, *self.shape), self.dtype)
        if not isinstance(index, slice):
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
            one = self[index % len(self):index % len(self) + 1]
            return DeviceTensor(self.network, self.owner, one.address, self.shape[1:], self.dtype)
        start, end, step = index.indices(self.shape[0])
        if step != 1:
            raise IndexError("a tensor on the GPU is cut in steps of 1 along its first dimension")
        row = num_bytes(self.shape[1:], self.dtype)
        return DeviceTensor(self.network, self.owner, self.address + start * row, (max(end - start, 0), *self.shape[1:]), self.dtype)

    def copy(self) -> "DeviceTensor":
        return self.network.new_tensor([self])

    @staticmethod
    def joined(parts: Sequence["DeviceTensor"]) -> "DeviceTensor":
        return parts[0].network.new_tensor(parts)

    def check(self) -> None:
        if self.owner is not None and self.owner.pool.closed:        # None: it is empty
            raise ClosedError("[cuda] a tensor on the GPU, such as a look's keys and values, outlived its session, and its memory is gone; look again with a new session.")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.check()
        host = self.network.to_host(self)
        if self.dtype == "bfloat16":
            host = from_bfloat16(host)
        return host if dtype is None else host.astype(dtype)


def host_dtype(dtype: str) -> np.dtype:
    """numpy's type of the same bytes."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def host_array(value, dtype: str) -> np.ndarray:
    """A C-ordered array of the manifest's dtype; of bfloat16 its bits, which uint16 are already."""
    array = np.asarray(value)
    return to_bfloat16(array) if dtype == "bfloat16" and array.dtype != np.uint16 else np.ascontiguousarray(array, host_dtype(dtype))


def is_packed(device: Mapping) -> bool:
    """Whether a __cuda_array_interface__ is of an array in C order without gaps."""
    packed = np.dtype(device["typestr"]).itemsize
    for size, stride in zip(reversed(device["shape"]), reversed(device.get("strides") or ())):
        if size > 1 and stride != packed:
            return False
        packed *= size
    return True
