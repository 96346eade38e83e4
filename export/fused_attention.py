"""Attention as ONNX Runtime's own operator again, in a network that was typed in standard operators (standard_onnx.py, precision.py).

On a GPU the operator is one kernel that never holds the probabilities: at SO400M a look at 2559 patches takes half the time.
"""
from __future__ import annotations

from onnx import helper

from .graph import Graph
from .standard_onnx import CONTRIB, prune

STEPS = ("q4", "q", "scaled", "kt", "scores", "prob", "seen", "rows")       # standard_onnx names an attention's nodes after its output


def fused(graph: Graph, heads: int) -> Graph:
    """The same network; changes and returns `graph`. Scaling, which the operator does itself, and softmax are in float32 then."""
    made = {output: node for node in graph.nodes for output in node.output}
    whole = {node.output[0] for node in graph.nodes if node.op_type == "Reshape" and node.input[0] == f"{node.output[0]}_rows"}
    inside = {f"{output}_{step}" for output in whole for step in STEPS}
    old, graph.nodes = graph.nodes, []
    for node in old:
        output = node.output[0]
        if output in whole:
            taken = made[f"{output}_q4"].input[0], made[f"{output}_kt"].input[0], made[f"{output}_seen"].input[1]
            graph.nodes.append(helper.make_node("MultiHeadAttention", taken, [output], domain=CONTRIB, num_heads=heads))
        elif output not in inside:
            graph.nodes.append(node)
    prune(graph)
    return graph
