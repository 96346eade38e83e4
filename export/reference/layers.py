"""The layers that every tower shares. Attention here is always softmax(q k / sqrt(head_width)) v."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRUNK_EPSILON = 1e-6    # LayerNorms of the trunk, its attention pool and the view network; all others have torch's 1e-5


class Mlp(nn.Module):
    """fc1, GELU, LayerNorm if there is one, fc2: (.., in_width) -> (.., out_width)."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, norm: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.norm = nn.LayerNorm(hidden_width) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(x))))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, tokens, heads * head_width) -> (batch, heads, tokens, head_width)"""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """The inverse of split_heads."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """All (batch, heads, tokens, head_width); mask broadcasts to (batch, heads, queries, keys): bool True = seen, or float added to the scores."""
    return join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def position_weights(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """(new, old) f32: how bicubic (a = -0.5, antialiased) resampling of `old` samples to `new` mixes them; rows sum to 1.

    Read off torch's own resampler by passing it one-hot signals, so that tables resampled with it are torch's tables.
    """
    one_hot = torch.eye(old, device=device)[None, None]
    return F.interpolate(one_hot, size=(new, old), mode="bicubic", antialias=True)[0, 0]
