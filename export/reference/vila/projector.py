"""From vision tokens to rows of the language model: one row per block of r x r patches; and from a hidden state to a prompt.

Only complete blocks are ever projected: gathering them first and projecting after gives what projecting whole grids and
throwing incomplete blocks away gives, at a fraction of the work.
Source: NVlabs/VILA @ b760c34, base_projector and encode_images_ps3.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Mlp
from .config import VilaConfig


def pooling_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """(new, old) f32: adaptive area mean. Output i averages inputs floor(i old / new) to ceil((i + 1) old / new) - 1, also when enlarging."""
    i, j = torch.arange(new, device=device)[:, None], torch.arange(old, device=device)
    inside = (j >= i * old // new) & (j < -(-(i + 1) * old // new))
    return inside.float() / inside.sum(dim=1, keepdim=True)


def low_blocks(tokens: Tensor, grid: int, r: int) -> Tensor:
    """All blocks of a whole grid, zeros beyond its right and lower edge: (.., grid * grid, width) -> (.., m * m, r * r * width), m = ceil(grid / r).

    Blocks and the cells inside each are row-major, channels innermost.
    """
    m = -(-grid // r)
    full = F.pad(tokens.unflatten(-2, (grid, grid)), (0, 0, 0, m * r - grid, 0, m * r - grid))
    return full.unflatten(-2, (m, r)).unflatten(-4, (m, r)).transpose(-4, -3).reshape(*tokens.shape[:-2], m * m, -1)


class Projector(nn.Module):
    """layers: of a block's r * r * width values | top_down_prompt_head, high_res_*: where the checkpoint has them.

    high_res_prob_embed is ours, not the public model's: a row of a high-res scale is told how probable its place is, so that the language
    model need not find again what selection has found.
    """

    def __init__(self, config: VilaConfig):
        super().__init__()
        r, width, out, low = config.downsample, config.vision.width, config.llm.width, config.vision.grids[0]
        self.grid, self.r = low, r
        tail = [nn.Linear(r * r * width, out), nn.GELU(), nn.Linear(out, out)]
        if r == 3:
            tail = [nn.Linear(9 * width, 3 * width), nn.GELU(), nn.LayerNorm(3 * width), nn.Linear(3 * width, out), nn.GELU(), nn.Linear(out, out)]
        self.layers = nn.Sequential(nn.Identity(), nn.LayerNorm(r * r * width), *tail)    # 0 is the rearrangement, done by low_blocks and blocks.py
        if config.prompt_head is not None:
            self.top_down_prompt_head = nn.Linear(out, width) if config.prompt_head == "linear" else Mlp(out, 2 * width, width, norm=True)
        self.high_res_pos_embed = nn.Parameter(torch.empty(1, low * low, out)) if config.position_embedding else None
        self.high_res_scale_embed = nn.ParameterList(torch.empty(1, 1, out) for _ in config.vision.scales_px) if config.position_embedding else None
        self.high_res_prob_embed = nn.Parameter(torch.empty(1, 1, out)) if config.prob_embedding else None

    def forward(self, blocks: Tensor, scale: int, ids: Tensor, grid: int) -> Tensor:
        """Blocks of one scale -> rows (K, width of the language model), position included.

        Args:
            blocks: (.., K, r * r * vision width), cells row-major, channels innermost.
            scale: 0 is the low-res one. ids: (K,) int64, block ids on its grid x grid blocks.
        """
        rows = self.layers(blocks)
        if self.high_res_pos_embed is None:
            return rows
        weights = pooling_weights(self.grid, grid, rows.device)
        mix = (weights[ids // grid][:, :, None] * weights[ids % grid][:, None, :]).flatten(1)
        return rows + mix @ self.high_res_pos_embed[0] + self.high_res_scale_embed[scale][0]

    def told(self, rows: Tensor, prob: Tensor) -> Tensor:
        """High-res rows (.., K, width) with what the prompt thinks of their places, prob (.., K) f32, where the checkpoint has that."""
        return rows if self.high_res_prob_embed is None else rows + prob[..., None] * self.high_res_prob_embed[0, 0]

    def low(self, tokens: Tensor) -> Tensor:
        """All low-res tokens of a frame, (.., g * g, vision width) -> (.., m * m, width)."""
        grid = -(-self.grid // self.r)
        return self(low_blocks(tokens, self.grid, self.r), 0, torch.arange(grid * grid, device=tokens.device), grid)

    def prompt(self, hidden: Tensor) -> Tensor:
        """Hidden states of the language model (batch, width) -> prompts that score compares places with (batch, vision width)."""
        return self.top_down_prompt_head(hidden)
