"""The language model of a bundle: onnxruntime-genai's builder makes the graph, this makes it a network like the others.

    llm = build_llm(folder / "llm", work_dir, "int4", progress)
    writer.add_tensors("llm.safetensors", llm.layout, llm.load)                         # one tensor in memory at a time
    writer.add_bytes("llm.onnx", llm.to_onnx("llm.safetensors", llm.layout.offsets))
    measure_llm(Decoder(ort.load(draft, "llm"), llm.spec), reference, embed)            # how far off it is, on these weights

The builder is asked for the graph alone (llm_graph.py); matrices are read from the checkpoint under its names, turned, joined and
converted as it does it. int4 is its fp32 graph with every matrix quantised here by ONNX Runtime's own routine. The bytes are those
the builder's own fp32, fp16 and int4 have, without its holding the whole model in memory.
"""
from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Callable

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ps3_sdk.decode import DecoderSpec
from ps3_sdk.errors import ExportError
from ps3_sdk.tensors import DTYPES

from . import llm_builder
from .graph import LOCATION_PREFIX, OFFSET_DIGITS, Port
from .llm_check import DecoderApart, measure_llm  # noqa: F401  (part of this module's words)
from .llm_graph import FROM_CHECKPOINT
from .llm_weights import BLOCK, StoredTensor, from_checkpoint, quantise, quantised  # noqa: F401
from .reference.fields import Fields
from .reference.vila.config import LlmConfig
from .reference.vila.tokenizer import read_tokenizer
from .weights import Checkpoint
from .write_bundle import SafetensorsLayout

LLM_PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int4": "fp32"}      # ours -> the builder's
INLINE_BYTES = 64 << 10     # larger tensors that the builder left inside the graph are moved out
_STORED = {TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16", TensorProto.INT64: "I64", TensorProto.INT32: "I32", TensorProto.UINT8: "U8",
           TensorProto.INT8: "I8"}
_ONNX = {word: kind for kind, word in _STORED.items()}
_EMBEDDING = "model.embed_tokens.weight"


def build_llm(folder: str | Path, work_dir: str | Path, precision: str = "fp32", progress: Callable[[str], None] = lambda line: None, *,
              vocabulary: int | None = None) -> "LlmGraph":
    """Make the network of a checkpoint's llm folder (Qwen2, Llama, Mistral).

    Args:
        work_dir: where the builder writes the graph; one found there is used again.
        vocabulary: ids that exist, default those of the tokenizer. Stored tables are often padded beyond it; the public model cuts
            the rows off on loading, here the token loop cuts the logits, which spares a copy of the largest matrix.
    Raises:
        ExportError: the folder does not fit its config.json, the disk is full, the builder failed. RuntimeMissingError: the packages of
        ps3_sdk[vlm] are missing or too old.
    """
    if precision not in LLM_PRECISIONS:
        raise ExportError(f"[llm] precision is {precision!r}; one of {', '.join(LLM_PRECISIONS)} is needed.")
    folder = Path(folder)
    config = LlmConfig.parse(Fields.read(folder / "config.json"))
    checkpoint = _checkpoint(folder, config)
    ids = vocabulary or read_tokenizer(folder)[0].get_vocab_size()
    built = llm_builder.run_builder(checkpoint, config, Path(work_dir), LLM_PRECISIONS[precision], progress)
    progress(f"llm: {config.depth} layers, {precision}")
    return LlmGraph(built, checkpoint, config, precision, min(ids, config.vocab_size))


def token_embedding(folder: str | Path, vocabulary: int | None = None) -> StoredTensor:
    """The (vocabulary, width) embedding table of an llm folder, as the checkpoint stores it: F32, F16, or BF16 (by its bits)."""
    folder = Path(folder)
    config = LlmConfig.parse(Fields.read(folder / "config.json"))
    checkpoint = _checkpoint(folder, config)
    rows = min(vocabulary or read_tokenizer(folder)[0].get_vocab_size(), config.vocab_size)
    return StoredTensor("token_embedding", (rows, config.width), lambda: checkpoint.stored(_EMBEDDING, rows), checkpoint.dtype(_EMBEDDING))


class LlmGraph:
    """A language model's network: the builder's graph at `path`, weights of `checkpoint`.

    name, precision, config | vocabulary: ids that exist | weights: {name: StoredTensor} | inputs, outputs: Ports | spec: for ps3_sdk's Decoder |
    layout: of its safetensors member.
    """
    name = "llm"

    def __init__(self, path: Path, checkpoint: Checkpoint, config: LlmConfig, precision: str, vocabulary: int):
        self.config, self.precision, self.vocabulary = config, precision, vocabulary
        self.weights: dict[str, StoredTensor] = {}
        try:
            self._model = onnx.load(path, load_external_data=False)
        except Exception as error:      # protobuf raises its own classes
            raise ExportError(f"[llm] {path} cannot be read: {error}. Remove it and export again.") from error
        graph = self._model.graph
        self._inline_constants(graph)
        for tensor in graph.initializer:
            self._take(checkpoint, tensor)
        del graph.initializer[:], graph.value_info[:]
        if config.rope_factor != 1.0:
            self._stretch_positions()
        self.inputs, self.outputs = _ports(config, "float16" if precision == "fp16" else "float32")
        self._check_ports(graph)
        if precision == "int4":
            self._quantise(graph)

    @property
    def spec(self) -> DecoderSpec:
        c = self.config
        return DecoderSpec(c.width, c.depth, c.num_kv_heads, c.head_width, self.vocabulary, c.max_positions, self.inputs[0].dtype)

    @cached_property
    def layout(self) -> SafetensorsLayout:
        return SafetensorsLayout({name: (weight.dtype, weight.shape) for name, weight in self.weights.items()})

    def load(self, name: str) -> np.ndarray:
        """One tensor, read from the builder's file or quantised now."""
        return self.weights[name].load()

    def to_onnx(self, weights_file: str, offsets: dict[str, int]) -> bytes:
        """The serialised model; `offsets` gives each tensor's first byte inside `weights_file`, as in graph.Graph.to_onnx."""
        def external(weight: StoredTensor) -> TensorProto:
            tensor = TensorProto(name=weight.name, data_type=_ONNX[weight.dtype], dims=weight.shape, data_location=TensorProto.EXTERNAL)
            for key, value in (("location", LOCATION_PREFIX + weights_file), ("offset", f"{offsets[weight.name]:0{OFFSET_DIGITS}d}"), ("length", str(weight.num_bytes))):
                tensor.external_data.add(key=key, value=value)
            return tensor
        return self._with(map(external, self.weights.values()))

    def in_memory(self) -> bytes:
        """The model with its weights inside, for small ones: at most 2 GB."""
        return self._with(numpy_helper.from_array(np.ascontiguousarray(weight.load()), weight.name) for weight in self.weights.values())

    # -- inside ---------------------------------------------------------------------------------------------------

    def _with(self, tensors) -> bytes:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.initializer.extend(tensors)
        return model.SerializeToString(deterministic=True)

    def _take(self, checkpoint: Checkpoint, tensor: TensorProto) -> None:
        if tensor.data_type not in _STORED:
            raise ExportError(f"[llm] the builder stored {tensor.name} as {TensorProto.DataType.Name(tensor.data_type)}; {', '.join(DTYPES)} can be bundled. "
                              "Choose another precision.")
        name, shape, dtype = tensor.name, tuple(tensor.dims), _STORED[tensor.data_type]
        if tensor.data_location == TensorProto.EXTERNAL and any(entry.value == FROM_CHECKPOINT for entry in tensor.external_data):
            self.weights[name] = from_checkpoint(name, shape, dtype, checkpoint, self.config.tied)
        else:
            array = numpy_helper.to_array(tensor)
            self.weights[name] = StoredTensor(name, shape, lambda: array, dtype)

    @staticmethod
    def _inline_constants(graph) -> None:
        """Large tensors inside Constant nodes become initializers."""
        kept = []
        for node in graph.node:
            value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None) if node.op_type == "Constant" else None
            if value is not None and len(value.raw_data) > INLINE_BYTES:
                graph.initializer.add().CopyFrom(value)
                graph.initializer[-1].name = node.output[0]
            else:
                kept.append(node)
        if len(kept) < len(graph.node):
            kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
            del graph.node[:]
            graph.node.extend(kept)

    def _stretch_positions(self) -> None:
        """The builder leaves the factor of linear rope_scaling out of its tables; these have it. (context_length, head_width / 2)"""
        half, factor = self.config.head_width // 2, self.config.rope_factor
        frequency = self.config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
        for name, of in (("cos_cache", torch.cos), ("sin_cache", torch.sin)):
            old = self.weights.get(name)
            if old is None or old.shape[1] != half:
                raise ExportError(f"[llm] the builder's graph has no {name} of {half} columns, so positions cannot be divided by {factor}. "
                                  "Install the version of onnxruntime-genai that this release was tested with.")
            load = lambda of=of, old=old: of((torch.arange(old.shape[0]).float() / factor)[:, None] * frequency).numpy().astype(DTYPES[old.dtype])
            self.weights[name] = StoredTensor(name, old.shape, load, old.dtype)

    def _check_ports(self, graph) -> None:
        """The graph's ports become ours: same names, sizes instead of the builder's symbols where they are known."""
        for side, found, ports in (("inputs", graph.input, self.inputs), ("outputs", graph.output, self.outputs)):
            types = {value.name: value.type.tensor_type.elem_type for value in found}
            wanted = {port.name: helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)) for port in ports}
            if types != wanted:
                raise ExportError(f"[llm] the builder's graph has {side} {', '.join(sorted(types))[:300]}; {', '.join(sorted(wanted))[:300]} of dtype {ports[0].dtype} "
                                  "are needed. Install the version of onnxruntime-genai that this release was tested with.")
            del found[:]
            found.extend(helper.make_tensor_value_info(port.name, wanted[port.name], port.shape) for port in ports)

    def _quantise(self, graph) -> None:
        """MatMul by a stored matrix -> MatMulNBits: 4-bit weights, symmetric, one f32 scale for 32 weights of an output; inputs are rounded to int8."""
        for node in graph.node:
            if node.op_type != "MatMul" or node.input[1] not in self.weights:
                continue
            full = self.weights.pop(node.input[1])
            (rows, cols), pair = full.shape, quantised(full)
            self.weights |= {tensor.name: tensor for tensor in pair}
            node.CopyFrom(helper.make_node("MatMulNBits", [node.input[0], *(tensor.name for tensor in pair)], list(node.output), name=f"{node.name}_Q4", domain="com.microsoft",
                                           K=rows, N=cols, bits=4, block_size=BLOCK, accuracy_level=4))


def _checkpoint(folder: Path, config: LlmConfig) -> Checkpoint:
    """The opened folder, its keys and shapes held to what config.json describes."""
    from .reference.vila.llm import Decoder as Reference
    checkpoint = Checkpoint.open(folder)
    with torch.device("meta"):
        expected = {key: tuple(tensor.shape) for key, tensor in Reference(config).state_dict().items()}
    unused = {key: checkpoint.shape(key) for key in checkpoint.keys() if key.endswith("rotary_emb.inv_freq")}
    if config.tied:
        unused["lm_head.weight"] = (config.vocab_size, config.width)
    checkpoint.check(expected, unused)
    return checkpoint


def _ports(c: LlmConfig, dtype: str) -> tuple[list[Port], list[Port]]:
    layers = [f"{i}.{kind}" for i in range(c.depth) for kind in ("key", "value")]
    cache = lambda name, rows: Port(name, dtype, ("batch", c.num_kv_heads, rows, c.head_width))
    return ([Port("inputs_embeds", dtype, ("batch", "rows", c.width)), Port("attention_mask", "int64", ("batch", "total")),
             *(cache(f"past_key_values.{layer}", "past") for layer in layers)],
            [Port("hidden_states", dtype, ("batch", "rows", c.width)), Port("logits", dtype, ("batch", 1, c.vocab_size)),
             *(cache(f"present.{layer}", "total") for layer in layers)])
