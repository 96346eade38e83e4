"""Where patches are: sizes of the scales, cutting patches by id, position rows. Ids are row-major in their scale's grid.

A picture is (batch, 3, height, width) f32, normalised. Square pictures have square grids; of others the long side keeps
the scale's size and the short one is cut to whole low-res patches. The low-res picture is always square.
Source: PS3 @ f7e3fd4, image_size_scale_i, tokenize_high_res, selected_pos_embed.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import VisionConfig
from .layers import position_weights


def scale_size_px(config: VisionConfig, index: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels of scale `index` for a picture of height x width."""
    low, patch = config.scales_px[0], config.trunk.patch_px
    if index == 0:
        return low, low
    zoom = config.scales_px[index] // low
    # this order of float operations decides the last patch of some odd sizes, keep it
    short = max(int(low / max(height, width) * min(height, width)) // patch, 1) * patch * zoom
    return (low * zoom, short) if height >= width else (short, low * zoom)


def grid_size(config: VisionConfig, index: int, height: int, width: int) -> tuple[int, int]:
    """(rows, cols) of patches of that scale."""
    rows, cols = scale_size_px(config, index, height, width)
    return rows // config.trunk.patch_px, cols // config.trunk.patch_px


def resize(picture: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Bicubic (a = -0.75, pixel centres, no antialias), as every scale is made."""
    return picture if picture.shape[-2:] == size_px else F.interpolate(picture, size=size_px, mode="bicubic")


def cut(picture: Tensor, patch_px: int, ids: Tensor | None = None) -> Tensor:
    """Flat patches (batch, K, 3 * patch_px^2), pixels in the order (c, ky, kx). ids: (batch, K) int64; default all patches."""
    batch, channels, height, width = picture.shape
    rows, cols = height // patch_px, width // patch_px
    tiles = picture[:, :, :rows * patch_px, :cols * patch_px].reshape(batch, channels, rows, patch_px, cols, patch_px)
    if ids is None:
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, -1)
    image = torch.arange(batch, device=ids.device)[:, None]
    return tiles[image, :, ids // cols, :, ids % cols].flatten(2)


def position_rows(table: Tensor, side: int, rows: Tensor, cols: Tensor, crop: bool) -> Tensor:
    """Rows of a position table at places of a side x side grid: (K, width).

    Args:
        table: (1, g * g, width).
        rows, cols: (K,) int64, below `side`.
        crop: C-RADIO's rule, take the table's own entry at (row, col). Otherwise the table is resampled g x g -> side x side,
            of which only the places asked for are computed.
    """
    grid = round(table.shape[1] ** 0.5)
    if crop or side == grid:
        return table[0, rows * grid + cols]
    weights = position_weights(grid, side, table.device).to(table.dtype)
    return (weights[rows][:, :, None] * weights[cols][:, None, :]).flatten(1) @ table[0]
