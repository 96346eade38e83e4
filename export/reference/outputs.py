"""What the model's stages hand on."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .selection import Look
from .trunk import KeyValue


@dataclass(frozen=True)
class Low:
    """What one picture costs once and every prompt on it shares.

    tokens: (batch, g * g, width), the last block's output before the final norm | features: (batch, g * g, feature_width),
    outputs of the selection blocks side by side | kv: per block (key, value), each (batch, heads, g * g, head_width) |
    score_features: (batch, g * g, width) | view_features: (batch, v * v, view_width) or None | hidden: every block's output.
    """
    tokens: Tensor
    features: Tensor
    kv: list[KeyValue]
    score_features: Tensor
    view_features: Tensor | None
    hidden: list[Tensor]


@dataclass(frozen=True)
class Encoded:
    """One pass over a picture.

    tokens: (batch, g * g + picked, width): low-res, then scale by scale, row-major, all looks together | maps: per high-res
    scale (batch, rows, cols) bool, what was picked | probs: the same shapes f32, what it was picked by | looks: ids per look |
    hidden: every block's output in tokens' order, empty unless asked for.
    """
    tokens: Tensor
    maps: list[Tensor]
    probs: list[Tensor]
    looks: list[Look]
    low: Low
    hidden: list[Tensor]


@dataclass(frozen=True)
class Pooled:
    """What pre-training compares with captions.

    pooled: (batch, pooled_width) of the high-res tokens, of the low-res ones where the text is global | maps, probs: as in
    Encoded | prior_probs, prompt_probs: per high-res scale, by the prior and by the prompt (None without one), no given map or smoothing.
    """
    pooled: Tensor
    maps: list[Tensor]
    probs: list[Tensor]
    prior_probs: list[Tensor]
    prompt_probs: list[Tensor] | None
