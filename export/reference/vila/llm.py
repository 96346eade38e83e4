"""decode: the language model, a plain decoder-only transformer (Qwen2, Llama, Mistral). Parameter names are the checkpoints'.

Rows are embeddings, (batch, rows, width); row i sees rows 0..i. Keys and values of rows already seen go in and come out again, so
no row is computed twice.
Source: Qwen2 technical report, arXiv 2407.10671; Llama, arXiv 2302.13971.
"""
from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import attend, split_heads
from ..trunk import KeyValue
from .config import LlmConfig


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight"""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.epsilon) * self.weight


def rotate(x: Tensor, positions: Tensor, theta: float, factor: float = 1.0) -> Tensor:
    """Rotary positions: entry i of a head's first half and entry i of its second half turn together by position / factor * theta^(-2 i / head_width).

    x: (batch, heads, rows, head_width); positions: (rows,) int64.
    """
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = (positions.float() / factor)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SelfAttention(nn.Module):
    """num_kv_heads keys and values are each shared by num_heads / num_kv_heads queries."""

    def __init__(self, config: LlmConfig):
        super().__init__()
        self.config = config
        kv_width, q_width = config.num_kv_heads * config.head_width, config.num_heads * config.head_width
        self.q_proj = nn.Linear(config.width, q_width, bias=config.bias)
        self.k_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.v_proj = nn.Linear(config.width, kv_width, bias=config.bias)
        self.o_proj = nn.Linear(q_width, config.width, bias=False)

    def forward(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Returns the update of x and the keys and values of [past, x], (batch, num_kv_heads, rows, head_width)."""
        c, start, rows = self.config, 0 if past is None else past[0].shape[2], x.shape[1]
        positions = torch.arange(start, start + rows, device=x.device)
        turn = lambda y: rotate(y, positions, c.rope_theta, c.rope_factor)
        query, key, value = turn(split_heads(self.q_proj(x), c.num_heads)), turn(split_heads(self.k_proj(x), c.num_kv_heads)), split_heads(self.v_proj(x), c.num_kv_heads)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        seen = positions[:, None] >= torch.arange(start + rows, device=x.device)
        group = c.num_heads // c.num_kv_heads
        return self.o_proj(attend(query, key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1), seen)), (key, value)


class SwiGlu(nn.Module):
    def __init__(self, config: LlmConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: LlmConfig):
        super().__init__()
        self.input_layernorm = RmsNorm(config.width, config.norm_epsilon)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RmsNorm(config.width, config.norm_epsilon)
        self.mlp = SwiGlu(config)

    def forward(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        update, kv = self.self_attn(self.input_layernorm(x), past)
        x = x + update
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class DecoderStack(nn.Module):
    """Everything but the head; a module of its own because the checkpoints' keys begin with `model.`"""

    def __init__(self, config: LlmConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, config.norm_epsilon)


class Decoder(nn.Module):
    """A language model on embeddings."""

    def __init__(self, config: LlmConfig):
        super().__init__()
        self.config = config
        self.model = DecoderStack(config)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def vocabulary(self) -> int:
        """Ids that have an embedding and can be produced."""
        return len(self.model.embed_tokens.weight)

    def cut_vocabulary(self, size: int) -> None:
        """Forget the embeddings of ids from `size` on: stored tables are often padded beyond the tokenizer's ids."""
        if size >= self.vocabulary:
            return
        tables = [self.model.embed_tokens] + ([self.lm_head] if self.lm_head is not None else [])
        for table in tables:
            table.weight = nn.Parameter(table.weight[:size].clone())

    def embed(self, ids: Tensor) -> Tensor:
        """(rows,) int64 -> (rows, width)"""
        return self.model.embed_tokens(ids)

    def forward(self, rows: Tensor, past: Sequence[KeyValue] | None = None) -> tuple[Tensor, list[KeyValue]]:
        """rows (batch, rows, width) behind the rows of `past` -> their hidden state after the final norm (batch, rows, width),
        and per layer the keys and values of all rows, each (batch, num_kv_heads, past + rows, head_width)."""
        kv = []
        for i, layer in enumerate(self.model.layers):
            rows, own = layer(rows, past[i] if past is not None else None)
            kv.append(own)
        return self.model.norm(rows), kv

    def logits(self, hidden: Tensor) -> Tensor:
        """(.., width) -> (.., vocabulary)"""
        return F.linear(hidden, self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)
