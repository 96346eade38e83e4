"""What a runtime adapter offers. An adapter module has one function, `load(bundle, name, threads, keep) -> Network`.

`bundle` is an open ps3_sdk.bundle.Bundle, `name` a key of its manifest's `networks`, `threads` the CPU threads to use
(0: all cores), `keep` whether the network will run often enough to stay in memory. It raises RuntimeMissingError when its
package is not installed and RuntimeFailedError when the network cannot be loaded or run; messages start with the adapter's name
in brackets. Adapters of GPUs also take `stream` and `stays`, outputs to leave on the GPU beside keys and values; those of engines
(manifest.ENGINES) raise BundleError for an engine of another machine.
"""
from __future__ import annotations

from typing import Mapping, Protocol, Sequence

import numpy as np


class Network(Protocol):
    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run once. Inputs and outputs are named, typed and shaped as in the manifest; only `outputs` are returned.

        Safe to call from several threads at once. What comes out may be passed in again without a copy. Outputs that stay on the device are no
        arrays but have shape, slices and single rows of the first dimension, copy(), joined(), numpy.asarray's protocol and
        __cuda_array_interface__, and are written when run returns. Inputs may be such outputs, of other networks too, or anything packed with that
        interface whose values are there when run is called.
        """


class Closable(Network, Protocol):
    """What an adapter may offer beside, and a session calls when it is closed."""

    def close(self) -> None:
        """Give back a device's memory. A second call does nothing."""


class Filling(Network, Protocol):
    """What an adapter may offer beside, where it saves a copy from a device."""

    def run_into(self, inputs: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
        """As run, with outputs written into these contiguous arrays of their types and shapes."""


class Bindable(Network, Protocol):
    """What an adapter may offer beside. Who uses it asks with hasattr, and does without otherwise."""

    def bound(self, arrays: Mapping[str, np.ndarray]) -> Network:
        """The same network with these inputs and outputs, by name, always in these arrays, which are kept alive.

        Its run takes the other inputs and gives other outputs; what is written into the arrays is there when it returns. One array
        may stand for an input and an output, where the network's operators allow that. One run at a time.

        Where they lie on a device meanwhile, the network also has to_host(), which copies what is there into the arrays.
        """
