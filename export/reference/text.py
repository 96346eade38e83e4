"""encode_prompt: token ids -> the feature compared with pictures, and the prompt that score compares places with.

Source: OpenCLIP's text transformer as PS3 uses it, NVlabs/PS3 @ f7e3fd4, modeling_ps3_text.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig
from .layers import Mlp, attend, split_heads


class Prompt(NamedTuple):
    """pooled: (batch, output_dim), not normalised | prompt: (batch, prompt_proj_dim). With pool_type none, both per token."""
    pooled: Tensor
    prompt: Tensor


class TextAttention(nn.Module):
    """Parameter names and layout of torch's MultiheadAttention, which the checkpoints were made with."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self.out_proj(attend(*(split_heads(part, self.num_heads) for part in parts), mask))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TextBlock(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        scale = nn.Identity if config.ls_init_value is None else lambda: LayerScale(width)
        self.ln_1 = nn.LayerNorm(width, **config.norm_kwargs)
        self.attn = TextAttention(width, config.heads)
        self.ls_1 = scale()
        self.ln_2 = nn.LayerNorm(width, **config.norm_kwargs)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "gelu": nn.GELU(**config.act_kwargs), "c_proj": nn.Linear(hidden, width)})
        self.ls_2 = scale()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), mask))
        y = self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(x)))
        return x + self.ls_2(self.mlp["c_proj"](y))


class TextModel(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        width, out = config.width, config.output_dim
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        if config.embed_cls:
            self.cls_emb = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length + config.embed_cls, width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock(config) for _ in range(config.layers))})
        self.ln_final = nn.LayerNorm(width, **config.norm_kwargs)
        self.text_projection = nn.Linear(width, out) if config.proj_bias else nn.Parameter(torch.empty(width, out))
        self.prompt_proj = Mlp(out, config.prompt_proj_dim, config.prompt_proj_dim, norm=True)

    def forward(self, ids: Tensor) -> Prompt:
        """ids: (batch, tokens) int64, tokens at most context_length, padded as the tokenizer pads."""
        x = self.token_embedding(ids)
        if self.config.embed_cls:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], dim=1)
        x = x + self.positional_embedding[:x.shape[1]]
        mask = self._mask(ids, x.shape[1])
        for block in self.transformer["resblocks"]:
            x = block(x, mask)
        pooled = self._pool(x, ids)
        if self.config.proj_bias:
            pooled = self.text_projection(pooled)
        else:
            pooled = pooled @ self.text_projection
        return Prompt(pooled, self.prompt_proj(F.normalize(pooled, dim=-1)))

    def _mask(self, ids: Tensor, tokens: int) -> Tensor | None:
        """True = seen, (batch or 1, 1, tokens, tokens); None when every token sees every token."""
        if self.config.no_causal_mask:
            return None
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=ids.device).tril()[None, None]
        if self.config.embed_cls:
            # the class token stands last but its padding mask was trained shifted by one: place j + 1 is hidden where id j is padding
            last = F.pad(ids != self.config.pad_id, (1, 0), value=True)[:, None, None]
            seen = torch.cat([seen[:, :, :-1].expand(len(ids), -1, -1, -1), seen[:, :, -1:] & last], dim=2)
        return seen

    def _pool(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.config.embed_cls:
            return self.ln_final(x[:, -1])
        x, kind = self.ln_final(x), self.config.pool_type
        if kind == "none":
            return x
        if kind == "argmax":
            return x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]
        return x[:, 0 if kind == "first" else -1]
