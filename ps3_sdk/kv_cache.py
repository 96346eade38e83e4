"""Keys and values of what a language model has read, in arrays with room for more: what is read next is appended in place."""
from __future__ import annotations

import threading
from typing import Mapping

import numpy as np


class KvCache:
    """Rows of keys and values. A row that was written never changes, so every state that ends before the last row stays true.

    arrays: {network input: (1, kv_heads, capacity, head_width)} | used: rows that are written or being written | network: bound to the
    arrays, or None where they came out of a network that cannot be.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], used: int, network=None):
        self.arrays, self.used, self.network = arrays, used, network
        self.capacity = next(iter(arrays.values())).shape[2]
        self._lock = threading.Lock()

    def claim(self, start: int, end: int) -> bool:
        """Whether rows start to end may be written here: nobody else has begun to, and there is room. They are the caller's then."""
        with self._lock:
            if self.network is None or self.used != start or end > self.capacity:
                return False
            self.used = end
            return True

    def view(self, length: int) -> dict[str, np.ndarray]:
        """{network input: (1, kv_heads, length, head_width)}, read-only, of the first rows. Nothing is copied, but from a GPU, where the rows may lie."""
        if hasattr(self.network, "to_host"):
            self.network.to_host()
        views = {name: array[:, :, :length] for name, array in self.arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        return views
