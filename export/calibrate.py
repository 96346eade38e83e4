"""How large the encoder's activations get on a user's frames: what int8 and fp8 scales come from."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Mapping, Sequence

import numpy as np

from ps3_sdk.bundle import Bundle
from ps3_sdk.runtimes import ort
from ps3_sdk.tensors import read_header

from .check_picture import read_picture
from .graph import Graph, Port
from .quantise import Range, layers
from .standard_onnx import read_network
from .vision_session import open_vision


def measure_ranges(bundle: Bundle, frames: list[Path], progress: Callable[[str], None] = lambda line: None) -> dict[str, Range]:
    """{weight of a linear layer of a block: Range of its input} over encode_low and encode_high of the frames, by saliency.

    Raises InputError for a file that is no picture: a range measured on less than was given would be silent.
    """
    watched = _Watched(bundle)
    with open_vision(bundle.path, bundle.manifest) as session:
        recorder = session._networks["encode"] = Recorder(ort.load(watched, "encode"), watched.ports)
        for number, path in enumerate(frames, 1):
            session.encode(read_picture(path), selection="bottom_up")
            progress(f"calibrate {number} of {len(frames)}: {path.name}")
        return recorder.ranges()


class Recorder:
    """The encode network with outputs that tell how large each layer's input is. ports: output -> weight, for the largest and for the mean square."""

    def __init__(self, network, ports: Mapping[str, tuple[str, str]]):
        self._network, self._ports = network, ports
        self._largest = {name: 0.0 for name in ports}
        self._squares = {name: [] for name in ports}

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        watched = list(dict.fromkeys(name for pair in self._ports.values() for name in pair))
        found = self._network.run(inputs, [*outputs, *watched])
        for weight, (largest, square) in self._ports.items():
            self._largest[weight] = max(self._largest[weight], float(found[largest]))
            self._squares[weight].append(float(found[square]))
        return {name: found[name] for name in outputs}

    def ranges(self) -> dict[str, Range]:
        return {weight: Range(self._largest[weight], float(np.sqrt(np.mean(self._squares[weight])))) for weight in self._ports}


class _Watched:
    """A bundle as the ONNX Runtime adapter sees it, its encode network with more outputs; weights are the bundle's own."""

    def __init__(self, bundle: Bundle):
        graph = read_network(bundle, "encode")
        self.ports = _watch(graph)
        entry = bundle.manifest["networks"]["encode"]
        offsets = {name: tensor.first for name, tensor in read_header(bundle.member(entry["weights"]), "weights").items()}
        self._bundle, self._file, self._model = bundle, entry["file"], graph.to_onnx(entry["weights"], offsets)
        self.manifest, self.path, self.members, self.offset = bundle.manifest, bundle.path, bundle.members, bundle.offset

    def member(self, name: str):
        return self._model if name == self._file else self._bundle.member(name)


def _watch(graph: Graph) -> dict[str, tuple[str, str]]:
    inputs = {node.input[1]: node.input[0] for node in graph.nodes if node.op_type == "MatMul"}
    made: dict[str, tuple[str, str]] = {}
    for weight in layers(graph):
        value = inputs[weight]
        if value not in made:
            largest = graph.op("ReduceMax", graph.op("Abs", value, name=f"{value}.abs"), name=f"{value}.largest", keepdims=0)
            square = graph.op("ReduceMean", graph.op("Mul", value, value, name=f"{value}.sq"), name=f"{value}.square", keepdims=0)
            graph.outputs += [Port(largest, "float32", ()), Port(square, "float32", ())]
            made[value] = largest, square
    return {weight: made[inputs[weight]] for weight in layers(graph)}
