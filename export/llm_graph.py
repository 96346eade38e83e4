"""onnxruntime-genai's builder without weights: the graph it makes depends on their shapes alone.

    python -m ps3_sdk.export.llm_graph CHECKPOINT TARGET.onnx BUILDER_ARGUMENTS..

In this process, and in no other, transformers gives the builder a model whose matrices are shapes without values (torch's meta
device) and whose vectors are the checkpoint's, and what the builder saves is the graph: every matrix in it is external data at
FROM_CHECKPOINT, under the builder's name and without bytes. export/llm.py fills them in, one at a time, from the checkpoint. So
seven billion parameters take no memory here, nor a second copy on the disk.
"""
from __future__ import annotations

import runpy
import sys
from pathlib import Path

FROM_CHECKPOINT = "checkpoint"      # where external data is said to lie


def give_shapes(checkpoint) -> None:
    """Models that transformers is asked for have the checkpoint's vectors (the builder looks whether biases are zero) and no matrices."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def load(path, *_, **__):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        vectors = {key: checkpoint.tensor(key) for key in checkpoint.keys() if len(checkpoint.shape(key)) < 2 and not key.endswith("rotary_emb.inv_freq")}
        model.load_state_dict(vectors, strict=False, assign=True)
        return model

    AutoModelForCausalLM.from_pretrained = load


def take_graph(target: Path) -> None:
    """What onnx_ir is asked to save becomes the graph at `target`."""
    import onnx_ir

    def save(model, *_, **__):
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            tensor = tensor.raw() if isinstance(tensor, onnx_ir.LazyTensor) else tensor     # converts; shapes convert to shapes
            if getattr(tensor.raw, "is_meta", False):
                value.const_value = onnx_ir.ExternalTensor(FROM_CHECKPOINT, 0, 0, tensor.dtype, shape=tensor.shape, name=name)
        target.write_bytes(onnx_ir.to_proto(model).SerializeToString(deterministic=True))

    onnx_ir.save = save


def main(folder: str, target: str, *arguments: str) -> None:
    from .weights import Checkpoint
    give_shapes(Checkpoint.open(folder))
    take_graph(Path(target))
    sys.argv = ["builder", *arguments]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
