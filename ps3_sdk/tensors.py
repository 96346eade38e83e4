"""Tensors of a safetensors member, as views of the mapped file. Nothing in the format can run code.

    u64 length of the header | JSON header {name: {"dtype", "shape", "data_offsets": [first, end]}} | data, no holes
Source: huggingface/safetensors, README section Format.
"""
import math
import struct
from typing import NamedTuple

import numpy as np

from .errors import BundleError
from .schema import check, parse_json

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "I64": np.dtype("<i8"), "I32": np.dtype("<i4"),
          "U8": np.dtype("u1"), "I8": np.dtype("i1")}
"""safetensors' word -> numpy's; numpy has no bfloat16, its bits come as uint16."""
MAX_HEADER_BYTES = 4 << 20
_SCHEMA = {
    "type": "object",
    "properties": {"__metadata__": {"type": "object", "additionalProperties": {"type": "string"}}},
    "additionalProperties": {
        "type": "object", "required": ["dtype", "shape", "data_offsets"], "additionalProperties": False,
        "properties": {
            "dtype": {"enum": list(DTYPES)},
            "shape": {"type": "array", "maxItems": 8, "items": {"type": "integer", "minimum": 0, "maximum": 2**40}},
            "data_offsets": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0, "maximum": 2**40}}}},
}


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """f32 -> uint16, the bits of the nearest bfloat16, ties to even; a NaN stays one."""
    array = np.ascontiguousarray(array, np.float32)
    bits = array.view(np.uint32)
    return (np.where(np.isnan(array), bits | 0x400000, bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16, uint16 -> the same values, f32: they are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Tensor(NamedTuple):
    """dtype: safetensors' word | first, end: bytes inside the member."""
    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int


def read_header(data: memoryview, what: str) -> dict[str, Tensor]:
    """Where each tensor of the member lies. `what` names the member in errors.

    Raises: BundleError unless header and tensors fill the member exactly, without a hole or an overlap, each as large as its shape says.
    """
    if len(data) < 8:
        raise BundleError(f"{what} has {len(data)} bytes; a safetensors member starts with 8 bytes of length. Export the bundle again.")
    length = struct.unpack_from("<Q", data)[0]
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise BundleError(f"{what} declares a header of {length} bytes and has {len(data)}. Export the bundle again.")
    start = 8 + length
    header = parse_json(data[8:start], f"{what}: the header")
    check(header, _SCHEMA, f"{what}: header")
    header.pop("__metadata__", None)
    cursor = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = entry["data_offsets"]
        if first != cursor:
            raise BundleError(f"{what}: tensor {name[:80]!r} starts at byte {first}, expected {cursor}: tensors overlap or leave a hole. "
                              "Export the bundle again.")
        if end - first != math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize:
            raise BundleError(f"{what}: tensor {name[:80]!r} has {end - first} bytes, its shape {entry['shape']} of {entry['dtype']} needs "
                              f"{math.prod(entry['shape']) * DTYPES[entry['dtype']].itemsize}. Export the bundle again.")
        cursor = end
    if start + cursor != len(data):
        raise BundleError(f"{what}: the tensors end at byte {start + cursor}, the member at {len(data)}. Export the bundle again.")
    return {name: Tensor(e["dtype"], tuple(e["shape"]), start + e["data_offsets"][0], start + e["data_offsets"][1]) for name, e in header.items()}


def views(data: memoryview, what: str) -> dict[str, np.ndarray]:
    """Every tensor as a read-only array that shares the memory of `data`."""
    return {name: np.frombuffer(data[t.first:t.end], DTYPES[t.dtype]).reshape(t.shape) for name, t in read_header(data, what).items()}
