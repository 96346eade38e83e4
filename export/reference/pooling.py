"""From tokens to the one vector that is compared with text: C-RADIO's adapter and the attention pool."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import TRUNK_EPSILON, Mlp, attend, split_heads


class AttentionPool(nn.Module):
    """One learned query attends to all tokens: (batch, tokens, width) -> (batch, width)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=TRUNK_EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio), width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (batch, tokens), nonzero = pooled; a row of zeros pools every token."""
        query = split_heads(self.q(self.latent.expand(len(x), -1, -1)), self.num_heads)
        key, value = (split_heads(part, self.num_heads) for part in self.kv(x).chunk(2, dim=-1))
        if mask is not None:
            mask = (mask != 0) | (mask.sum(dim=-1, keepdim=True) == 0)
            mask = mask[:, None, None, :]
        x = self.proj(attend(query, key, value, mask))
        return (x + self.mlp(self.norm(x)))[:, 0]


class AdapterV1(nn.Module):
    """C-RADIO adapter v1: Linear, LayerNorm, ReLU, `num_inner` times the same, Linear."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, num_inner: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.norm = nn.LayerNorm(hidden_width)
        self.inner = nn.Sequential(*[layer for _ in range(num_inner) for layer in
                                     (nn.Linear(hidden_width, hidden_width), nn.LayerNorm(hidden_width), nn.ReLU())])
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner(torch.relu(self.norm(self.fc1(x)))))


class AdapterV2(nn.Module):
    """C-RADIO adapter v2: Linear, `num_inner` residual blocks of LayerNorm, GELU, Linear, and one more without residual."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, num_inner: int):
        super().__init__()
        def step(out: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(hidden_width), nn.GELU(), nn.Linear(hidden_width, out))
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.blocks = nn.ModuleList(step(hidden_width) for _ in range(num_inner))
        self.final = step(out_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = x + block(x)
        return self.final(x)


ADAPTERS = {"v1": AdapterV1, "v2": AdapterV2}
