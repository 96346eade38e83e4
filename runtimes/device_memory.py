"""Memory of a GPU: tensors that stay there between two networks, and a pool that gives the same memory again and again."""
from __future__ import annotations

import threading
import weakref
from typing import Sequence

import numpy as np

from ps3_sdk.errors import ClosedError

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
    """Blocks of one size. A block comes back when the last tensor in it is forgotten, and is given out again: no allocation after the first few."""

    def __init__(self, driver, block_bytes: int):
        self._driver, self.block_bytes = driver, block_bytes
        self._free: list[int] = []
        self._all: list[int] = []
        self._lock = threading.RLock()      # the end of a tensor may be noticed while this thread is in here
        self.closed = False

    def take(self) -> "Block":
        with self._lock:
            if self.closed:
                raise ClosedError("[cuda] the session of this memory is closed; open a new one: ps3_sdk.Session(...).")
            address = self._free.pop() if self._free else None
        if address is None:
            address = self._driver.allocate(self.block_bytes)
            with self._lock:
                self._all.append(address)
        return Block(self, address)

    def give_back(self, address: int) -> None:
        with self._lock:
            if not self.closed:
                self._free.append(address)

    def close(self) -> None:
        """Free every block, also those that tensors still point to: their session is over."""
        with self._lock:
            self.closed, blocks = True, self._all
            self._all, self._free = [], []
        for address in blocks:
            self._driver.free(address)


class Block:
    def __init__(self, pool: Pool, address: int):
        self.address, self.pool = address, pool
        weakref.finalize(self, pool.give_back, address)


class DeviceTensor:
    """A packed tensor on the GPU. shape | dtype: the manifest's word | address | owner: what keeps its memory | network: whose it is.

    numpy.asarray copies it to the host. Slices and rows of the first dimension are views; copy() and joined() make new ones on the GPU.
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
        return {"shape": self.shape, "typestr": np.dtype(self.dtype).str, "data": (self.address, True), "strides": None, "version": 3}

    def __getitem__(self, index: slice | int) -> "DeviceTensor":
        if not isinstance(index, slice):
            one = self[index:index + 1]
            if not len(one):
                raise IndexError(f"row {index} of {len(self)}")
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
        if self.owner.pool.closed:
            raise ClosedError("[cuda] a look outlived its session, and the memory of its keys and values is gone; look again with a new session.")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        self.check()
        host = self.network.to_host(self)
        if self.dtype == "bfloat16":
            host = (host.astype(np.uint32) << 16).view(np.float32)
        return host if dtype is None else host.astype(dtype)


def host_dtype(dtype: str) -> np.dtype:
    """numpy's type of the same bytes."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)
