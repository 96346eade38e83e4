"""The language model of a bundle: onnxruntime-genai's builder makes the graph, this makes it a network like the others.

    llm = build_llm(folder / "llm", work_dir, "int4", progress)
    writer.add_tensors("llm.safetensors", llm.layout, llm.load)                         # one tensor in memory at a time
    writer.add_bytes("llm.onnx", llm.to_onnx("llm.safetensors", llm.layout.offsets))
    measure_llm(Decoder(ort.load(draft, "llm"), llm.spec), reference, embed)            # how far off it is, on these weights

fp32 and fp16 are the builder's own. int4 is its fp32 graph with every matrix quantised here, tensor by tensor, by ONNX Runtime's own
routine: the same bytes the builder's int4 has, without its holding the whole model in memory three times.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Callable

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ps3_sdk.decode import Decoder, DecoderSpec
from ps3_sdk.errors import ExportError, RuntimeFailedError
from ps3_sdk.tensors import DTYPES

from . import llm_builder
from .check import relative_error
from .graph import LOCATION_PREFIX, OFFSET_DIGITS, Port
from .reference.fields import Fields
from .reference.vila.config import LlmConfig
from .reference.vila.tokenizer import read_tokenizer
from .weights import Checkpoint
from .write_bundle import SafetensorsLayout

LLM_PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int4": "fp32"}      # ours -> the builder's
BLOCK = 32              # int4: weights that share a scale
INLINE_BYTES = 64 << 10     # larger tensors that the builder left inside the graph are moved out
_STORED = {TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16", TensorProto.INT64: "I64", TensorProto.INT32: "I32", TensorProto.UINT8: "U8",
           TensorProto.INT8: "I8"}
_ONNX = {word: kind for kind, word in _STORED.items()}
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it will lie in the bundle. dtype: safetensors' word | load: reads or makes it now."""
    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


def build_llm(folder: str | Path, work_dir: str | Path, precision: str = "fp32", progress: Callable[[str], None] = lambda line: None, *,
              vocabulary: int | None = None) -> "LlmGraph":
    """Make the network of a checkpoint's llm folder (Qwen2, Llama, Mistral).

    Args:
        work_dir: where the builder writes: 4 bytes per parameter of free disk (fp16: 2). Leave it until the bundle is written; a
            finished build found there is used again.
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
    return LlmGraph(built, config, precision, min(ids, config.vocab_size))


def token_embedding(folder: str | Path, vocabulary: int | None = None) -> StoredTensor:
    """The (vocabulary, width) embedding table of an llm folder, F16 or F32 as in the checkpoint (bfloat16 becomes F32, exactly)."""
    folder = Path(folder)
    config = LlmConfig.parse(Fields.read(folder / "config.json"))
    checkpoint = _checkpoint(folder, config)
    rows = min(vocabulary or read_tokenizer(folder)[0].get_vocab_size(), config.vocab_size)
    dtype = "F16" if checkpoint.dtype(_EMBEDDING) == "F16" else "F32"
    return StoredTensor("token_embedding", (rows, config.width), lambda: checkpoint.array(_EMBEDDING)[:rows].astype(DTYPES[dtype]), dtype)


class LlmGraph:
    """A language model's network, written by the builder into `folder`.

    name, precision, config | vocabulary: ids that exist | weights: {name: StoredTensor} | inputs, outputs: Ports | spec: for ps3_sdk's Decoder |
    layout: of its safetensors member.
    """
    name = "llm"

    def __init__(self, folder: Path, config: LlmConfig, precision: str, vocabulary: int):
        self.config, self.precision, self.vocabulary = config, precision, vocabulary
        self.weights: dict[str, StoredTensor] = {}
        try:
            self._model = onnx.load(folder / llm_builder.MODEL, load_external_data=False)
        except Exception as error:      # protobuf raises its own classes
            raise ExportError(f"[llm] {folder / llm_builder.MODEL} cannot be read: {error}. Remove the folder and export again.") from error
        graph = self._model.graph
        self._inline_constants(graph)
        for tensor in graph.initializer:
            self._take(folder, tensor)
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

    def _take(self, folder: Path, tensor: TensorProto) -> None:
        if tensor.data_type not in _STORED:
            raise ExportError(f"[llm] the builder stored {tensor.name} as {TensorProto.DataType.Name(tensor.data_type)}; {', '.join(DTYPES)} can be bundled. "
                              "Choose another precision.")
        name, shape, dtype = tensor.name, tuple(tensor.dims), _STORED[tensor.data_type]
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            path, offset = folder / place["location"], int(place.get("offset", 0))
            load = lambda: np.memmap(path, DTYPES[dtype], "r", offset, shape) if 0 not in shape else np.empty(shape, DTYPES[dtype])
        else:
            array = numpy_helper.to_array(tensor)
            load = lambda: array
        self.weights[name] = StoredTensor(name, shape, load, dtype)

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
            (rows, cols), blocks = full.shape, -(-full.shape[0] // BLOCK)
            values, scales = f"{full.name}_Q4", f"{full.name}_scales"
            self.weights[values] = StoredTensor(values, (cols, blocks, BLOCK // 2), lambda full=full: quantise(full.load())[0], "U8")
            self.weights[scales] = StoredTensor(scales, (cols, blocks), lambda full=full: quantise(full.load())[1], "F32")
            node.CopyFrom(helper.make_node("MatMulNBits", [node.input[0], values, scales], list(node.output), name=f"{node.name}_Q4", domain="com.microsoft",
                                           K=rows, N=cols, bits=4, block_size=BLOCK, accuracy_level=4))


def quantise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) f32 -> (out, blocks, 16) u8, two weights a byte, and (out, blocks) f32 scales: w is about (nibble - 8) * scale."""
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits    # what onnxruntime.quantization itself calls
    rows, cols = matrix.shape
    blocks = -(-rows // BLOCK)
    matrix = np.ascontiguousarray(np.pad(matrix, ((0, blocks * BLOCK - rows), (0, 0))) if rows % BLOCK else matrix, np.float32)
    packed, scales = np.zeros((cols, blocks, BLOCK // 2), np.uint8), np.zeros((cols, blocks), np.float32)
    quantize_matmul_4bits(packed, matrix, scales, np.zeros((cols, (blocks + 1) // 2), np.uint8), BLOCK, cols, rows, True)
    return packed, scales


def measure_llm(decoder: Decoder, reference, embed, *, rows: int = 64, steps: int = 32, seed: int = 0) -> dict:
    """How far a language model's network is from the PyTorch reference, on these weights.

    Args:
        reference: reference.vila.llm.Decoder, f32 | embed: ids -> rows, a TokenEmbedding.
        rows, steps: random tokens that are prefilled in two parts, and that follow one by one.
    Returns:
        {"hidden", "logits": largest difference over the largest value, inf where the network gave NaN; "argmax_agreement": share of
        steps with the same most probable id; "against", "inputs": in words}.
    """
    rows, steps = min(rows, max(decoder.spec.context_length - 2, 1)), min(steps, max(decoder.spec.context_length - rows - 1, 1))
    ids = np.random.Generator(np.random.PCG64(seed)).integers(0, decoder.spec.vocabulary, rows + steps)
    sequence = embed(ids)
    with torch.inference_mode():
        hidden, _ = reference(torch.from_numpy(np.array(sequence, np.float32))[None])
        hidden = hidden[0, rows - 1:]
        logits = reference.logits(hidden)[:, :decoder.spec.vocabulary].numpy()
    against = {"against": f"PyTorch {torch.__version__.split('+')[0]} float32", "inputs": f"{rows} random tokens in two parts, {steps} more one by one"}
    try:
        state = decoder.prefill(sequence[rows // 2:rows], decoder.prefill(sequence[:rows // 2]))
        states = [state]
        for row in sequence[rows:]:
            states.append(decoder.prefill(row[None], states[-1]))
    except RuntimeFailedError:      # NaN: this precision cannot hold these weights
        return {"hidden": float("inf"), "logits": float("inf"), "argmax_agreement": 0.0, **against}
    got = np.stack([state.logits for state in states])
    return {"hidden": relative_error(np.stack([state.hidden for state in states]), hidden.numpy()), "logits": relative_error(got, logits),
            "argmax_agreement": float((got.argmax(1) == logits.argmax(1)).mean()), **against}


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
