"""A small builder of ONNX graphs whose weights are streamed, never held.

Networks are written directly in ONNX because three things the engines need cannot be said through a tracer: the
attention operator each runtime is fastest with, keys and values that leave the graph only for the tokens asked for, and
weights that go from the checkpoint to the bundle one tensor at a time (a tracer holds the whole model).
The arithmetic is held to the PyTorch reference by export/check.py, network by network.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 20          # the first with Gelu; every runtime we target reads it
IR_VERSION = 10
LOCATION_PREFIX = "./" * 100   # room for the bundle's own file name, see runtimes/ort.py
OFFSET_DIGITS = 20

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "int64": TensorProto.INT64}
STORED = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "I8": TensorProto.INT8,       # safetensors' word -> ONNX's
          "F8_E4M3": TensorProto.FLOAT8E4M3FN, "I4": TensorProto.INT4}
BITS = {"F32": 32, "F16": 16, "BF16": 16, "I8": 8, "F8_E4M3": 8, "I4": 4}
PRECISIONS = ("fp32", "int8")
INT8_LARGEST = 63   # 2 * 255 * 63 fits 16 bits: processors with AVX2 and no VNNI add two products there and cut off what is larger (127: error 0.26, not 0.04)


@dataclass(frozen=True)
class Weight:
    """One external tensor: `load()` returns its array of `shape` when the bundle is written. dtype: safetensors' word."""
    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str = "F32"

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class Port:
    """A network's input or output: dtype is numpy's name, shape mixes sizes and symbolic names."""
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph:
    """Records nodes; values are their names. `source` is a weights.Checkpoint.

    precision int8: linear layers marked `quantise` hold int8 weights, one scale per output, and quantise their inputs as they
    come, one scale per call. Everything else, normalisation and attention included, stays float32.
    """

    def __init__(self, name: str, source, precision: str = "fp32", opset: int = OPSET):
        self.name, self.source, self.precision, self.opset = name, source, precision, opset
        self.nodes, self.constants = [], []
        self.weights: dict[str, Weight] = {}
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []

    # -- ports, weights, nodes ------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> str:
        self.inputs.append(Port(name, dtype, tuple(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str], dtype: str = "float32") -> None:
        """Give `value` its public name."""
        if value != name:
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(Port(name, dtype, tuple(shape)))

    def op(self, kind: str, *inputs: str, domain: str = "", name: str | None = None, outputs: int = 1, **attributes):
        names = [name or f"{kind}_{len(self.nodes)}"] if outputs == 1 else [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values, dtype=np.int64) -> str:
        """A small tensor kept inside the graph; equal ones are shared."""
        array = np.asarray(values, dtype)
        name = f"const_{array.dtype}_{array.shape}_{array.tobytes().hex()}"
        if all(existing.name != name for existing in self.constants):
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, key: str, change: Callable[[np.ndarray], np.ndarray] | None = None, label: str = "") -> str:
        """The checkpoint's tensor `key`, changed (transposed, cut) when written; `label` tells apart two cuts of one key."""
        name = key + label
        if name not in self.weights:
            shape = self.source.shape(key)
            changed = change or (lambda array: array)
            # a zero-stride stand-in tells the changed shape without touching the file
            stand_in = np.broadcast_to(np.zeros((), np.float32), shape)
            load = lambda: np.ascontiguousarray(changed(self.source.array(key)), np.float32)
            self.weights[name] = Weight(name, tuple(changed(stand_in).shape), load)
        return name

    # -- layers ---------------------------------------------------------------------------------------------------

    def linear(self, x: str, key: str, rows: slice = slice(None), label: str = "", quantise: bool = False) -> str:
        """x @ weight[rows].T + bias[rows]; `rows` keeps only the outputs somebody uses."""
        matrix = self.weight(f"{key}.weight", lambda w: w.reshape(w.shape[0], -1)[rows].T, label)
        bias = self.weight(f"{key}.bias", lambda b: b[rows], label)
        if quantise and self.precision == "int8":
            return self.op("DynamicQuantizeMatMul", x, *self._int8(matrix), "", bias, domain="com.microsoft")
        return self.op("Add", self.op("MatMul", x, matrix), bias)

    def _int8(self, matrix: str) -> tuple[str, str]:
        """Replace a (in, out) weight by int8 values and (out,) scales, symmetric: largest of a column -> INT8_LARGEST."""
        full = self.weights.pop(matrix)

        def scale_of(array: np.ndarray) -> np.ndarray:
            return np.maximum(np.abs(array).max(axis=0), 1e-30).astype(np.float32) / INT8_LARGEST

        def scales() -> np.ndarray:
            return scale_of(full.load())

        def values() -> np.ndarray:
            array = full.load()
            return np.rint(array / scale_of(array)).astype(np.int8)
        self.weights[f"{matrix}.int8"] = Weight(f"{matrix}.int8", full.shape, values, "I8")
        self.weights[f"{matrix}.scale"] = Weight(f"{matrix}.scale", full.shape[1:], scales)
        return f"{matrix}.int8", f"{matrix}.scale"

    def layer_norm(self, x: str, key: str, epsilon: float) -> str:
        return self.op("LayerNormalization", x, self.weight(f"{key}.weight"), self.weight(f"{key}.bias"), axis=-1, epsilon=epsilon)

    def gelu(self, x: str, tanh: bool = False) -> str:
        return self.op("Gelu", x, approximate="tanh" if tanh else "none")

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """0 keeps a dimension, -1 infers one."""
        return self.op("Reshape", x, self.constant(shape))

    def slice(self, x: str, start: str, end: str, axis: int, name: str | None = None) -> str:
        return self.op("Slice", x, start, end, self.constant([axis]), name=name)

    def heads(self, x: str, num_heads: int, head_width: int) -> str:
        """(batch, tokens, heads * head_width) -> (batch, heads, tokens, head_width)"""
        return self.op("Transpose", self.reshape(x, [0, 0, num_heads, head_width]), perm=[0, 2, 1, 3])

    # -- result ---------------------------------------------------------------------------------------------------

    def to_onnx(self, weights_file: str, offsets: dict[str, int]) -> bytes:
        """The serialised model; `offsets` gives each weight's first byte inside `weights_file` (a safetensors file)."""
        tensors = list(self.constants)
        for weight in self.weights.values():
            tensor = TensorProto(name=weight.name, data_type=STORED[weight.dtype], dims=weight.shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", LOCATION_PREFIX + weights_file), ("offset", f"{offsets[weight.name]:0{OFFSET_DIGITS}d}"), ("length", str(weight.num_bytes))):
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
        port = lambda p: helper.make_tensor_value_info(p.name, DTYPES[p.dtype], p.shape)
        graph = helper.make_graph(self.nodes, self.name, [port(p) for p in self.inputs], [port(p) for p in self.outputs], tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == "com.microsoft" for node in self.nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ps3_sdk").SerializeToString(deterministic=True)
