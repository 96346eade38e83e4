"""A frame as the vision tower wants it: squashed to a square, normalised."""
from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ps3_sdk.errors import InputError


def squash(frame: Image.Image | np.ndarray, side_px: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(1, 3, side, side) f32, (value / 255 - mean) / std.

    Resampling is Pillow's bicubic with 8-bit rounding after each pass, horizontal before vertical whatever Pillow's version prefers.
    Raises InputError: neither a PIL picture nor (height, width, 3) uint8.
    """
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        frame = Image.fromarray(frame)
    if not isinstance(frame, Image.Image):
        got = f"{frame.shape} {frame.dtype}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"[encode_low] the frame is {got}; a PIL picture or (height, width, 3) uint8 RGB is needed.")
    frame = frame.convert("RGB")
    frame = frame.resize((side_px, frame.height), Image.Resampling.BICUBIC).resize((side_px, side_px), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
    channels = lambda values: torch.tensor(values, dtype=torch.float32)[:, None, None]
    return (pixels - channels(mean)) / channels(std)
