"""A network whose large weights lie in the bundle as float16 and are computed with as float32: half of the file, the same arithmetic.

    graph = Halved(graph)       # then as before: graph.weights, graph.to_onnx(file, offsets)

Each such weight is followed by a Cast that a runtime works out once, when it loads the network. What is lost is the rounding of the weights
alone; small ones, norms and biases, stay float32.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from ps3_sdk.errors import ExportError

from .write_bundle import SafetensorsLayout

MIN_VALUES = 4096           # smaller tensors save nothing
SMALLEST = 2.0 ** -14       # normal float16; what is smaller loses digits
SUFFIX = ".half"


class Halved:
    """Wraps a graph.Graph or llm.LlmGraph. Raises ExportError when written: a weight is beyond float16."""

    def __init__(self, graph):
        self._graph = graph
        self.weights = {}
        for name, weight in graph.weights.items():
            if _is_large(weight):
                half = f"{name}{SUFFIX}"
                self.weights[half] = replace(weight, name=half, dtype="F16", load=lambda weight=weight: to_half(weight.load(), weight.name))
            else:
                self.weights[name] = weight

    def __getattr__(self, name: str):
        return getattr(self._graph, name)

    @cached_property
    def layout(self) -> SafetensorsLayout:
        return SafetensorsLayout({name: (weight.dtype, weight.shape) for name, weight in self.weights.items()})

    def to_onnx(self, weights_file: str, offsets: dict[str, int]) -> bytes:
        """As the graph's own: `offsets` are those of this object's weights."""
        own = {name.removesuffix(SUFFIX): offset for name, offset in offsets.items()}
        model = onnx.ModelProto.FromString(self._graph.to_onnx(weights_file, own))
        casts = []
        for tensor in model.graph.initializer:
            half = self.weights.get(f"{tensor.name}{SUFFIX}")
            if half is None:
                continue
            casts.append(helper.make_node("Cast", [half.name], [tensor.name], name=f"{tensor.name}.float", to=TensorProto.FLOAT))
            tensor.name, tensor.data_type = half.name, TensorProto.FLOAT16
            for entry in tensor.external_data:
                if entry.key == "length":
                    entry.value = str(half.num_bytes)
        nodes = casts + [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return model.SerializeToString(deterministic=True)


def to_half(array: np.ndarray, name: str) -> np.ndarray:
    """The nearest float16 of each value. Raises ExportError: one is infinite there."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"[export] {name} has values up to {np.abs(array).max():.1e}; float16 ends at 65504. Export these weights as float32.")
    return half


def _is_large(weight) -> bool:
    return weight.dtype == "F32" and len(weight.shape) >= 2 and int(np.prod(weight.shape, dtype=np.int64)) >= MIN_VALUES
