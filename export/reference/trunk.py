"""The vision transformer. It works on flat patches with their position rows, so one network serves every scale."""
from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .layers import TRUNK_EPSILON, Mlp, attend, split_heads
from .pooling import ADAPTERS, AttentionPool

KeyValue = tuple[Tensor, Tensor]    # key and value of one block, each (batch, heads, tokens, head_width)


class TrunkOutput(NamedTuple):
    """hidden: output of each block, (batch, tokens, width), before the final norm | kv: of this pass's own tokens, per block."""
    hidden: list[Tensor]
    kv: list[KeyValue]


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x attends to [past, x]. Returns the update of x and x's own keys and values."""
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        own = (key, value)
        if past is not None:
            key, value = (torch.cat([old, new], dim=2) for old, new in zip(past, own))
        return self.proj(attend(query, key, value)), own


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, mlp_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=TRUNK_EPSILON)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=TRUNK_EPSILON)
        self.mlp = Mlp(width, mlp_width, width)

    def forward(self, x: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        update, own = self.attn(self.norm1(x), past)
        x = x + update
        return x + self.mlp(self.norm2(x)), own


class PatchEmbed(nn.Module):
    """A convolution whose stride is its size, computed as a matrix product of flat patches (c, ky, kx)."""

    def __init__(self, patch_px: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_px, patch_px)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Trunk(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        shape = config.trunk
        self.patch_embed = PatchEmbed(shape.patch_px, shape.width)
        self.pos_embed = nn.Parameter(torch.empty(1, shape.position_grid ** 2, shape.width))
        self.blocks = nn.ModuleList(Block(shape.width, shape.num_heads, shape.mlp_width) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=TRUNK_EPSILON) if config.final_norm else nn.Identity()
        self.siglip_proj = nn.Identity()
        if config.radio:
            self.siglip_proj = ADAPTERS[config.radio_adapter_mlp_version](
                shape.width, config.radio_adapter_mlp_hidden_dim, config.pool_width, config.radio_adapter_mlp_num_inner)
        self.attn_pool = AttentionPool(config.pool_width, config.pool_heads, config.pool_mlp_ratio)

    def forward(self, patches: Tensor, position: Tensor, past: Sequence[KeyValue] | None = None, num_blocks: int | None = None) -> TrunkOutput:
        """Encode tokens of any scale, alone (encode_low) or beside the keys and values of an earlier pass (encode_high).

        Args:
            patches: (batch, tokens, 3 * patch_px^2) f32, normalised pixels in the order (c, ky, kx).
            position: (batch, tokens, width) f32, the position row of each token.
            past: per block, keys and values that are attended to, not recomputed.
            num_blocks: stop after this many blocks; default all.
        """
        x, hidden, kv = self.patch_embed(patches) + position, [], []
        for i, block in enumerate(self.blocks[:num_blocks]):
            x, own = block(x, past[i] if past is not None else None)
            hidden.append(x)
            kv.append(own)
        return TrunkOutput(hidden, kv)

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, tokens, width) of the last block -> (batch, pooled_width); mask as in AttentionPool."""
        return self.attn_pool(self.siglip_proj(self.norm(tokens)), mask)
