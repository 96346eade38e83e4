"""Many short texts behind one long prefix, as the questions about a frame are: the language model's pass without a copy of the prefix for each."""
from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ps3_sdk.export.reference.trunk import KeyValue
from ps3_sdk.export.reference.vila.llm import Decoder, rotate


def together(rows: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows (n, ..) by the group that each is of -> (count, most of one group, ..), zeros behind the smaller ones, and which of its group each row is, (n,) int64.
    of: (n,) int64 ascending."""
    place = torch.arange(len(of), device=of.device) - torch.searchsorted(of, of)
    return rows.new_zeros(count, int(place.max()) + 1, *rows.shape[1:]).index_put((of, place), rows), place


def behind(llm: Decoder, prefixes: Sequence[KeyValue], of: Tensor, rows: Tensor) -> Tensor:
    """Texts, each behind a prefix and blind for the others: what llm(rows, prefixes taken by `of`) gives.

    prefixes: per layer keys and values (prefixes, kv heads, past, head width) | of: (texts,) int64 ascending, which prefix each is behind |
    rows: (texts, rows, width). Returns hidden states after the final norm, (texts, rows, width).
    """
    config, past = llm.config, prefixes[0][0].shape[2]
    x, place = together(rows, of, len(prefixes[0][0]))
    positions = torch.arange(past, past + rows.shape[1], device=rows.device)
    later = positions > positions[:, None]
    group = config.num_heads // config.num_kv_heads
    turned = lambda y: rotate(y, positions, config.rope_theta, config.rope_factor)
    heads = lambda y, count: y.unflatten(-1, (count, -1)).permute(0, 3, 1, 2, 4)        # (prefixes, heads, texts, rows, head width)
    for layer, far in zip(llm.model.layers, prefixes):
        own, normed = layer.self_attn, layer.input_layernorm(x)
        query = turned(heads(own.q_proj(normed), config.num_heads)) * config.head_width ** -0.5
        near = turned(heads(own.k_proj(normed), config.num_kv_heads)), heads(own.v_proj(normed), config.num_kv_heads)
        (far_key, far_value), (key, value) = ([each.repeat_interleave(group, dim=1) for each in pair] for pair in (far, near))
        score = (query @ key.transpose(-1, -2)).masked_fill(later, float("-inf"))
        share = torch.cat([query.flatten(2, 3) @ far_key.transpose(-1, -2), score.flatten(2, 3)], dim=-1).float().softmax(dim=-1).type_as(query)
        seen = (share[..., :past] @ far_value).unflatten(2, query.shape[2:4]) + share[..., past:].unflatten(2, query.shape[2:4]) @ value
        x = x + own.o_proj(seen.permute(0, 2, 3, 1, 4).flatten(3))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return llm.model.norm(x)[of, place]
