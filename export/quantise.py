"""int8, fp8 and int4 of the encoder's linear layers, on top of a float16 network. Normalisation, softmax and residuals stay as they were.

int8, fp8: weights with one scale a column, inputs with one scale a tensor, from the largest value seen in calibration: scale = largest / 127 or 448.
int4: weights alone, one scale for 64 rows of a column; layers whose rows are no multiple of 64 stay in float16.
A `twin` (precision.py) holds the quantised values in float32, for ONNX Runtime: the same numbers enter the same products.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .graph import Graph, Weight
from .precision import add_rounding, to_float16

LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}
STORED = {"int8": ("I8", TensorProto.INT8), "fp8": ("F8_E4M3", TensorProto.FLOAT8E4M3FN), "int4": ("I4", TensorProto.INT4)}
BLOCK = 64
INT4_OPSET = 21         # the first with int4 and scales of blocks
LEAST_SCALE = 2.0 ** -24        # the least above 0 of float16
STEP = 0.25             # of the layers go back to float16 at a time


class Range(NamedTuple):
    """Of a layer's input, over all frames: largest absolute value, root of the mean square."""
    largest: float
    rms: float


@dataclass(frozen=True)
class Quantisation:
    """ranges: {weight of a layer: Range of its input}, empty for int4 | left_out: weights that stay in float16."""
    precision: str
    ranges: dict[str, Range]
    left_out: frozenset[str] = field(default_factory=frozenset)

    def without_worst(self, graph: Graph) -> "Quantisation | None":
        """With a quarter of the layers less: those whose inputs have the largest outliers, for int4 the last. None when none would be left."""
        names = layers(graph)
        free = [name for name in names if name not in self.left_out]
        outlier = lambda name: self.ranges[name].largest / max(self.ranges[name].rms, 1e-30) if self.ranges else names.index(name)
        worst = sorted(free, key=outlier, reverse=True)[:max(1, int(STEP * len(names)))]
        return replace(self, left_out=self.left_out | set(worst)) if len(worst) < len(free) else None

    def num_quantised(self, graph: Graph) -> int:
        return sum(self.takes(name, graph.weights[name].shape[0]) for name in layers(graph))

    def takes(self, name: str, rows: int) -> bool:
        return name not in self.left_out and not (self.precision == "int4" and rows % BLOCK)


def layers(graph: Graph) -> list[str]:
    """Weights, by their float32 names, of the linear layers that are quantised: those of the blocks."""
    return [node.input[1].removesuffix(".half") for node in graph.nodes if node.op_type == "MatMul" and ".blocks." in node.input[1]]


def quantised(graph: Graph, wanted: Quantisation, twin: bool = False) -> Graph:
    """Changes and returns a float16 graph of precision.typed."""
    graph.precision = wanted.precision
    if wanted.precision == "int4" and not twin:
        graph.opset = max(graph.opset, INT4_OPSET)
    nodes, graph.nodes, inputs = graph.nodes, [], {}
    for node in nodes:
        name = node.input[1].removesuffix(".half") if node.op_type == "MatMul" else ""
        if ".blocks." not in name or not wanted.takes(name, graph.weights[node.input[1]].shape[0]):
            graph.nodes.append(node)
            continue
        matrix = _weight(graph, graph.weights.pop(node.input[1]), name, wanted.precision, twin)
        x = node.input[0]
        if wanted.precision != "int4":
            key = (x, wanted.ranges[name])
            x = inputs[key] if key in inputs else inputs.setdefault(key, _input(graph, x, wanted.ranges[name].largest, wanted.precision, twin))
        graph.nodes.append(helper.make_node("MatMul", [x, matrix], node.output))
    return graph


def _input(g: Graph, x: str, largest: float, precision: str, twin: bool) -> str:
    """x rounded to 256 values."""
    kind = STORED[precision][1]
    scale = max(largest / LARGEST[precision], LEAST_SCALE)
    zero = f"zero_{precision}"
    if all(tensor.name != zero for tensor in g.constants):
        g.constants.append(TensorProto(name=zero, data_type=kind, raw_data=b"\0"))
    if twin:
        number = g.constant(np.float32(np.float16(scale)), np.float32)
    else:
        number = f"{x}.scale"
        g.constants.append(numpy_helper.from_array(np.array(scale, np.float16), number))
    coarse = g.op("QuantizeLinear", x, number, zero, name=f"{x}.{precision}")
    fine = g.op("DequantizeLinear", coarse, number, zero, name=f"{x}.{precision}.fine")
    if twin:
        add_rounding(g, fine, f"{x}.{precision}.half", TensorProto.FLOAT16)
        return f"{x}.{precision}.half"
    return fine


def _weight(g: Graph, half: Weight, name: str, precision: str, twin: bool) -> str:
    scales, values = _rounding(half.load, precision)
    if twin:
        made = f"{name}.{precision}.half"
        g.weights[made] = Weight(made, half.shape, lambda: to_float16(_dequantised(values(), scales(), precision), name).astype(np.float32))
        return made
    stored = STORED[precision][0]
    rows, columns = half.shape
    g.weights[f"{name}.{precision}"] = Weight(f"{name}.{precision}", half.shape, lambda: _packed(values(), precision), stored)
    g.weights[f"{name}.scale"] = Weight(f"{name}.scale", (rows // BLOCK, columns) if precision == "int4" else (columns,), scales, "F16")
    if precision == "int4":
        return g.op("DequantizeLinear", f"{name}.int4", f"{name}.scale", name=f"{name}.fine", axis=0, block_size=BLOCK)
    return g.op("DequantizeLinear", f"{name}.{precision}", f"{name}.scale", name=f"{name}.fine", axis=1)


def _rounding(load: Callable[[], np.ndarray], precision: str) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """(scales f16, values f32 on the grid of the precision) of a (in, out) matrix."""
    def scales() -> np.ndarray:
        w = np.abs(load().astype(np.float32))
        largest = w.reshape(-1, BLOCK, w.shape[1]).max(axis=1) if precision == "int4" else w.max(axis=0)
        return np.maximum(largest / LARGEST[precision], LEAST_SCALE).astype(np.float16)

    def values() -> np.ndarray:
        scaled = load().astype(np.float32) / _spread(scales(), precision)
        return _to_fp8(scaled).astype(np.float32) if precision == "fp8" else np.clip(np.rint(scaled), -LARGEST[precision] - 1, LARGEST[precision])
    return scales, values


def _spread(scales: np.ndarray, precision: str) -> np.ndarray:
    wide = scales.astype(np.float32)
    return np.repeat(wide, BLOCK, axis=0) if precision == "int4" else wide


def _dequantised(values: np.ndarray, scales: np.ndarray, precision: str) -> np.ndarray:
    return values * _spread(scales, precision)


def _to_fp8(array: np.ndarray) -> np.ndarray:
    import ml_dtypes        # comes with onnx
    return np.clip(array, -LARGEST["fp8"], LARGEST["fp8"]).astype(ml_dtypes.float8_e4m3fn)


def _packed(values: np.ndarray, precision: str) -> np.ndarray:
    """As ONNX stores them; two int4 a byte, the first in the lower half."""
    if precision == "fp8":
        return _to_fp8(values).view(np.uint8)
    small = values.astype(np.int8)
    if precision == "int8":
        return small
    pairs = small.reshape(-1, 2).astype(np.uint8) & 0xF
    return pairs[:, 0] | pairs[:, 1] << 4
