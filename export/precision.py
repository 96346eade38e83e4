"""float32 networks in the types an engine computes with: matrix products in float16 or bfloat16, the rest as exact as before.

Engines take their precision from the types in the graph. In half precision are matrix products, convolutions, their biases, GELU, softmax
and the keys and values; in float32 stay normalisation, lengths of vectors, and the residual stream that runs through all blocks, where
trained models have values a thousand times larger than the rest. Inputs and outputs stay float32 except keys and values.

What a product adds up in is said apart, by summed_exactly, for builders of engines.

`twin` is the same network for ONNX Runtime on a CPU, to measure its error where no engine can run: it computes in float32, as the products of
an engine add up in float32, and rounds every value that the engine holds in half precision. Its weights are mapped, not converted.
"""
from __future__ import annotations

from typing import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ps3_sdk.errors import ExportError
from ps3_sdk.tensors import from_bfloat16, to_bfloat16

from .graph import STORED, Graph, Port, Weight
from .standard_onnx import well_formed

HALF = {"fp16": ("float16", "F16", TensorProto.FLOAT16), "bf16": ("bfloat16", "BF16", TensorProto.BFLOAT16)}
EXACT = {"LayerNormalization", "ReduceL2", "Div", "Max"}        # float32, whatever the precision
PRODUCTS = {"MatMul", "Conv"}
PASSING = {"Reshape", "Transpose", "Slice", "Split", "Concat", "Identity", "Gather", "GatherND"}      # have the type of what they pass on
KEPT_HALF = ("key_", "value_", "past_key_", "past_value_")      # ports of keys and values
FP16_MAX = 65504.0


def typed(graph: Graph, precision: str, twin: bool = False) -> Graph:
    """A new Graph of standard operators in `precision` (fp32, fp16, bf16). Raises ExportError when a weight does not fit into float16, while it is written."""
    if precision == "fp32":
        graph.precision = "fp32"
        return graph
    with well_formed(graph.name):
        return _Typing(graph, precision, twin).result()


class _Typing:
    """Copies a graph node by node. A value is known as float32 under its own name, as half under name + '.half', or both."""

    def __init__(self, graph: Graph, precision: str, twin: bool):
        self.old, self.new, self.rounded = graph, Graph(graph.name, None, precision, graph.opset), twin
        self.dtype, self.stored, self.onnx = HALF[precision]
        self.narrow = self.stored
        if twin:
            self.dtype, self.stored = "float32", "F32"
        self.is_half: dict[str, bool] = {}      # computed value -> whether its own name is half
        self.made: set[str] = set()
        self.small = {tensor.name: tensor for tensor in graph.constants}
        products = {name for node in graph.nodes if node.op_type == "MatMul" for name in node.output}
        # products that a bias is added to at once: every builder does that before it rounds
        self.summed = {value for node in graph.nodes if node.op_type == "Add" and node.input[1] in graph.weights for value in node.input if value in products}

    def result(self) -> Graph:
        new, old = self.new, self.old
        new.opset = old.opset
        new.inputs = [Port(port.name, self._port(port), port.shape) for port in old.inputs]
        new.outputs = [Port(port.name, self._port(port), port.shape) for port in old.outputs]
        self.is_half = {port.name: port.dtype != "float32" and port.dtype != "int64" for port in new.inputs}
        self.plain = {port.name for port in old.inputs if port.dtype == "int64"}
        outputs = {port.name: port for port in new.outputs}
        for node in old.nodes:
            self._node(node, outputs)
        return new

    def _port(self, port: Port) -> str:
        return self.dtype if port.dtype == "float32" and port.name.startswith(KEPT_HALF) else port.dtype

    def _node(self, node, outputs: dict[str, Port]) -> None:
        kind = node.op_type
        half = kind in PRODUCTS or kind not in EXACT and (self._is_half(node) if kind in PASSING else self._narrow(node))
        inputs = [self._as(value, half) for value in node.input]
        names = [f"{name}.out" if name in outputs else name for name in node.output]
        copied = helper.make_node(kind, inputs, names)
        copied.attribute.extend(node.attribute)
        self.new.nodes.append(copied)
        integers = kind in ("ArgMax",) or kind in PASSING and node.input[0] in self.plain
        for name, made in zip(node.output, names):
            if integers:
                self.plain.add(name)
            self.is_half[made] = half and not integers
            if self.rounded and half and not integers and kind not in PASSING and name not in self.summed:
                self._rename_last(made, f"{made}.exact")
                self._round(f"{made}.exact", made)
            if name in outputs:
                narrow = outputs[name].dtype == self.dtype
                wanted, same = self.onnx if narrow else TensorProto.FLOAT, integers or self.rounded or self.is_half[made] == narrow
                self.is_half[name] = self.is_half[made] if self.rounded else narrow
                self.new.nodes.append(helper.make_node("Identity", [made], [name]) if same else helper.make_node("Cast", [made], [name], to=wanted))

    def _rename_last(self, old: str, new: str) -> None:
        node = self.new.nodes[-1]
        node.output[list(node.output).index(old)] = new

    def _round(self, value: str, name: str) -> None:
        add_rounding(self.new, value, name, self.onnx)

    def _is_half(self, node) -> bool:
        """Of an operator that passes values on: a table's rows are half, anything else what it was."""
        first = node.input[0]
        if node.op_type == "Concat":
            return any(self.is_half.get(value, False) for value in node.input)
        return first in self.old.weights or self.is_half.get(first, False)

    def _narrow(self, node) -> bool:
        """Of an elementwise operator: half beside a weight or constant, or when nothing it reads is float32; the sum of two streams is float32."""
        values = [value for value in node.input if value and value not in self.old.weights and value not in self.small]
        return bool(values) and all(self.is_half.get(value, False) for value in values) and (len(values) == 1 or node.op_type == "Mul")

    def _as(self, value: str, half: bool) -> str:
        if value in self.old.weights:
            return self._weight(self.old.weights[value], half)
        if value in self.small:
            return self._constant(self.small[value], half)
        if not value or value in self.plain or self.is_half.get(value, False) == half or self.rounded and not half:
            return value
        name = f"{value}.{'half' if half else 'float'}"
        if name not in self.made:
            self.made.add(name)
            if self.rounded and half:
                self._round(value, name)
            else:
                self.new.nodes.append(helper.make_node("Cast", [value], [name], to=self.onnx if half else TensorProto.FLOAT))
        return name

    def _weight(self, weight: Weight, half: bool) -> str:
        name = f"{weight.name}.half" if half else weight.name
        if name not in self.new.weights:
            self.new.weights[name] = Weight(name, weight.shape, self._loader(weight), self.stored) if half else weight
        return name

    def _loader(self, weight: Weight) -> Callable[[], np.ndarray]:
        if self.rounded:
            return lambda: from_bfloat16(to_bfloat16(finite(weight.load(), weight.name))) if self.narrow == "BF16" else to_float16(weight.load(), weight.name).astype(np.float32)
        return (lambda: to_bfloat16(finite(weight.load(), weight.name))) if self.stored == "BF16" else lambda: to_float16(weight.load(), weight.name)

    def _constant(self, tensor, half: bool) -> str:
        if tensor.data_type != TensorProto.FLOAT or not half or self.rounded:
            if tensor not in self.new.constants:
                self.new.constants.append(tensor)
            return tensor.name
        name = f"{tensor.name}.half"
        if all(existing.name != name for existing in self.new.constants):
            array = numpy_helper.to_array(tensor)
            made = numpy_helper.from_array(array.astype(np.float16), name) if self.stored == "F16" else \
                TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=tensor.dims, raw_data=to_bfloat16(array).tobytes())
            self.new.constants.append(made)
        return name


def summed_exactly(graph: Graph) -> Graph:
    """A typed graph whose products with half precision weights are said to add up in float32; changes and returns it.

    Builders take half precision products to add up in any type, and choose kernels that add up in float16 where these are faster. Casts around a product
    are how they are told: nothing is cast in the end, and weights stay in half precision. Every product has casts of its own: where queries, keys and
    values share one, TensorRT-RTX 1.7 joins them into a product of float32. Attention's own products are fused as they are.
    Source: NVIDIA TensorRT, "Precision Control".
    """
    half = {name for name, weight in graph.weights.items() if weight.dtype in ("F16", "BF16")}
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.op_type != "MatMul" or node.input[1] not in half:
            graph.nodes.append(node)
            continue
        made = node.output[0]
        wide = [graph.op("Cast", value, name=f"{made}.{side}", to=TensorProto.FLOAT) for value, side in zip(node.input, ("rows", "matrix"))]
        product = graph.op("MatMul", *wide, name=f"{made}.wide")
        graph.nodes.append(helper.make_node("Cast", [product], node.output, to=STORED[graph.weights[node.input[1]].dtype]))
    return graph


def add_rounding(graph: Graph, value: str, name: str, kind: int) -> None:
    """name = value rounded to an ONNX type of half precision, in float32."""
    graph.nodes.append(helper.make_node("Cast", [value], [f"{name}.bits"], to=kind))
    graph.nodes.append(helper.make_node("Cast", [f"{name}.bits"], [name], to=TensorProto.FLOAT))


def finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ExportError(f"[build] {name} holds values that are no numbers; the checkpoint is damaged, or the bundle. Download it again, and export it.")
    return array


def to_float16(array: np.ndarray, name: str) -> np.ndarray:
    largest = float(np.abs(finite(array, name)).max(initial=0))
    if largest > FP16_MAX:
        raise ExportError(f"[build] {name} has values up to {largest:.3g}; float16 ends at {FP16_MAX:.0f}. Build with --precision bf16.")
    return np.ascontiguousarray(array, np.float32).astype(np.float16)
