"""The matrices of a language model under the names that onnxruntime-genai's builder gives them, read when they are written.

The builder turns a checkpoint's (out, in) matrix into (in, out) and joins those of queries, keys and values side by side.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Iterator

import numpy as np
import torch

from ps3_sdk.errors import ExportError
from ps3_sdk.runtimes.ort import module
from ps3_sdk.tensors import DTYPES

from .weights import Checkpoint

BLOCK = 32              # int4: weights that share a scale
_PIECE_OUTPUTS = 1024   # turned and quantised at a time
_MATRIX = re.compile(r"model\.layers\.(\d+)\.(attn|mlp)\.(\w+)_proj\.MatMul\.weight")
_FOLDERS = {"attn": "self_attn", "mlp": "mlp"}
_TORCH = {"F32": torch.float32, "F16": torch.float16}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it will lie in the bundle. dtype: safetensors' word | load: reads or makes it now |
    rows: of an (in, out) matrix, yields its columns as (n, in) f32, some at a time; default: from load."""
    name: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    dtype: str
    rows: Callable[[], Iterator[np.ndarray]] | None = None

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize

    def outputs(self) -> Iterator[np.ndarray]:
        return self.rows() if self.rows is not None else iter([self.load().T])


def from_checkpoint(name: str, shape: tuple[int, ...], dtype: str, checkpoint: Checkpoint, tied: bool) -> StoredTensor:
    """The matrix that the builder calls `name`. Raises ExportError: it is not one of the known ones, or has another shape."""
    keys = _keys(name, tied)
    shapes = [checkpoint.shape(key) for key in keys]
    if not keys or (shapes[0][1], sum(outputs for outputs, _ in shapes)) != tuple(shape) or dtype not in _TORCH:
        raise ExportError(f"[llm] the builder's graph has a matrix {name} of {dtype} {list(shape)}, which is none of this checkpoint. "
                          "Install the version of onnxruntime-genai that this release was tested with.")

    def rows() -> Iterator[np.ndarray]:
        for key in keys:
            yield from checkpoint.rows(key, _PIECE_OUTPUTS)

    def load() -> np.ndarray:
        found, at = torch.empty(shape, dtype=_TORCH[dtype]), 0
        for piece in rows():
            found[:, at:at + len(piece)] = torch.from_numpy(piece).T
            at += len(piece)
        return found.numpy()

    return StoredTensor(name, tuple(shape), load, dtype, rows)


def _keys(name: str, tied: bool) -> list[str]:
    if name == "lm_head.MatMul.weight":
        return ["model.embed_tokens.weight" if tied else "lm_head.weight"]
    found = _MATRIX.fullmatch(name)
    if found is None:
        return []
    return [f"model.layers.{found[1]}.{_FOLDERS[found[2]]}.{part}_proj.weight" for part in ("qkv" if found[3] == "qkv" else [found[3]])]


def quantised(full: StoredTensor) -> tuple[StoredTensor, StoredTensor]:
    """Values and scales of an (in, out) matrix as MatMulNBits takes them: 4-bit, symmetric, one f32 scale for 32 weights of an output."""
    (rows, cols), blocks, kept = full.shape, -(-full.shape[0] // BLOCK), []

    def both() -> tuple[np.ndarray, np.ndarray]:
        packed, scales, at = np.empty((cols, blocks, BLOCK // 2), np.uint8), np.empty((cols, blocks), np.float32), 0
        for piece in full.outputs():
            packed[at:at + len(piece)], scales[at:at + len(piece)] = quantise(torch.from_numpy(piece).T.contiguous().numpy())
            at += len(piece)
        return packed, scales

    def values() -> np.ndarray:
        packed, scales = both()
        kept[:] = [scales]      # which are asked for next
        return packed

    load_scales = lambda: kept.pop() if kept else both()[1]
    return (StoredTensor(f"{full.name}_Q4", (cols, blocks, BLOCK // 2), values, "U8"),
            StoredTensor(f"{full.name}_scales", (cols, blocks), load_scales, "F32"))


def quantise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) f32 -> (out, blocks, 16) u8, two weights a byte, and (out, blocks) f32 scales: w is about (nibble - 8) * scale."""
    module()
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits    # what onnxruntime.quantization itself calls
    rows, cols = matrix.shape
    blocks = -(-rows // BLOCK)
    matrix = np.ascontiguousarray(np.pad(matrix, ((0, blocks * BLOCK - rows), (0, 0))) if rows % BLOCK else matrix, np.float32)
    packed, scales = np.zeros((cols, blocks, BLOCK // 2), np.uint8), np.zeros((cols, blocks), np.float32)
    quantize_matmul_4bits(packed, matrix, scales, np.zeros((cols, (blocks + 1) // 2), np.uint8), BLOCK, cols, rows, True)
    return packed, scales
