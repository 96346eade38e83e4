"""Networks of a bundle read back, in operators that every engine builder knows.

A bundle's float32 networks are written for ONNX Runtime on CPUs (to_onnx.py): its own attention operator, heads two by two, keys
and values cut before they are joined, all to save memory there. Here those become the plain form that engine builders recognise
and fuse: one MatMul, Softmax, MatMul over all heads; past and new keys joined whole. Weights stay views of the bundle.
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import onnx
from onnx import helper

from ps3_sdk.errors import ExportError, Ps3Error

from .graph import Graph, Port, Weight

CONTRIB = "com.microsoft"


@contextmanager
def well_formed(what: str) -> Iterator[None]:
    """Around code that takes nodes to be as an exporter wrote them: where they are not, ExportError says so."""
    try:
        yield
    except (Ps3Error, MemoryError):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ExportError(f"[build] the ONNX of {what} is not as an export writes it ({why}). Export the bundle again.") from error


def read_network(bundle, name: str) -> Graph:
    """One network of an open Bundle as a Graph whose weights are read when written. Raises ExportError unless it is float32 ONNX."""
    with well_formed(f"{name} in {bundle.path}"):
        return _read(bundle, name)


def _read(bundle, name: str) -> Graph:
    entry = bundle.manifest["networks"][name]
    if entry["runtime"] != "onnxruntime" or entry["precision"] != "fp32":
        raise ExportError(f"[build] {name} of {bundle.path} is {entry['precision']} for {entry['runtime']}; engines are built from float32 ONNX bundles, because rounding "
                          "twice would add up. Give the checkpoint, or a bundle of ps3 export without --precision.")
    try:
        model = onnx.ModelProto.FromString(bytes(bundle.member(entry["file"])))
    except Exception as error:      # protobuf's class depends on its version
        raise ExportError(f"[build] {entry['file']} of {bundle.path} is not ONNX ({type(error).__name__}). Export the bundle again.") from error
    tensors = bundle.tensors(entry["weights"]) if entry["weights"] else {}
    graph = Graph(name, None)
    graph.inputs, graph.outputs = ([Port(port["name"], port["dtype"], tuple(port["shape"])) for port in entry[side]] for side in ("inputs", "outputs"))
    graph.nodes = list(model.graph.node)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.constants.append(tensor)
        elif tensor.name in tensors and tensors[tensor.name].shape == tuple(tensor.dims):
            graph.weights[tensor.name] = Weight(tensor.name, tuple(tensor.dims), lambda key=tensor.name: tensors[key])
        else:
            raise ExportError(f"[build] {entry['file']} of {bundle.path} needs the tensor {tensor.name!r} {tuple(tensor.dims)}, which {entry['weights']} does not hold. "
                              "Export the bundle again.")
    return standard(graph)


def standard(graph: Graph) -> Graph:
    """The same arithmetic in standard operators; changes and returns `graph`. Raises ExportError for an operator that has no such form here."""
    made = {output: node for node in graph.nodes for output in node.output}
    joined = {node.output[0]: node for node in graph.nodes if node.op_type == "Concat" and all(_is(made, value, "MultiHeadAttention") for value in node.input)}
    inside = {value for node in joined.values() for value in node.input}
    old, graph.nodes = graph.nodes, []
    for node in old:
        if node.output[0] in joined:
            _attention(graph, made, [made[value] for value in node.input], node.output[0])
        elif node.op_type == "MultiHeadAttention" and node.domain == CONTRIB:
            if node.output[0] not in inside:
                _attention(graph, made, [node], node.output[0])
        elif node.op_type == "Concat" and (whole := _whole(made, node)):
            graph.nodes.append(helper.make_node("Concat", [node.input[0], whole], node.output, axis=2))
        else:
            graph.nodes.append(node)
    prune(graph)
    foreign = sorted({node.op_type for node in graph.nodes if node.domain})
    if foreign:
        raise ExportError(f"[build] {graph.name} uses {', '.join(foreign)}, operators of ONNX Runtime alone; no other runtime has them. Leave this network to onnxruntime.")
    return graph


def prune(graph: Graph) -> None:
    """Drop nodes, weights and constants that no output needs."""
    needed, kept = {port.name for port in graph.outputs}, []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    graph.nodes = kept[::-1]
    graph.weights = {name: weight for name, weight in graph.weights.items() if name in needed}
    graph.constants = [tensor for tensor in graph.constants if tensor.name in needed]


def _is(made: dict, value: str, kind: str) -> bool:
    return value in made and made[value].op_type == kind


def _whole(made: dict, node) -> str | None:
    """What Concat(past, x[:keep], x[keep:]) joins to the past: x. None for any other Concat."""
    parts = [made.get(value) for value in node.input]
    if len(parts) == 3 and all(part is not None and part.op_type == "Slice" for part in parts[1:]) and parts[1].input[0] == parts[2].input[0] \
            and parts[1].input[2] == parts[2].input[1]:
        return parts[1].input[0]
    return None


def _attention(g: Graph, made: dict, groups: list, output: str) -> None:
    """softmax(q k^T / sqrt(d)) v over all heads; query (batch, tokens, width), key and value (batch, heads, all, d)."""
    query, key, value = (made[name].input[0] if len(groups) > 1 and _is(made, name, "Split") else name for name in groups[0].input[:3])
    heads = sum(helper.get_attribute_value(next(a for a in node.attribute if a.name == "num_heads")) for node in groups)
    head_width = next(port.shape[-1] for port in g.inputs if port.name.startswith("past_key"))
    op = lambda kind, *inputs, step, **attributes: g.op(kind, *inputs, name=f"{output}_{step}", **attributes)
    q = op("Transpose", op("Reshape", query, g.constant([0, 0, heads, head_width]), step="q4"), step="q", perm=[0, 2, 1, 3])
    scaled = op("Mul", q, g.constant(head_width ** -0.5, "float32"), step="scaled")
    scores = op("MatMul", scaled, op("Transpose", key, step="kt", perm=[0, 1, 3, 2]), step="scores")
    seen = op("MatMul", op("Softmax", scores, step="prob", axis=-1), value, step="seen")
    g.op("Reshape", op("Transpose", seen, step="rows", perm=[0, 2, 1, 3]), g.constant([0, 0, heads * head_width]), name=output)
