"""score: how much a prompt cares about each place, as a probability; and its two options, given maps and smoothing.

Source: PS3, arXiv 2503.19903, and NVlabs/PS3 @ f7e3fd4, get_selection_probs. There the score is made for every high-res
scale and then scale 1's replaces the others; here only scale 1's is made. Its softmax over [5 z, 0] is sigmoid(5 z).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .layers import TRUNK_EPSILON, Mlp

SHARPNESS = 5.0
SMOOTH_GRID = (6, 6)


class ViewBlock(nn.Module):
    """ConvNeXt block on (batch, places, width): 7x7 depthwise, LayerNorm, MLP of 4 x width, times `weight`, plus input."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=TRUNK_EPSILON)
        self.mlp = Mlp(width, 4 * width, width)
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, grid: int) -> Tensor:
        places = x.transpose(1, 2).unflatten(2, (grid, grid))
        if x.is_cuda:       # with channels innermost cuDNN convolves, for groups many times slower (pytorch issue 34977); processors are faster with them
            places = places.contiguous()
        return x + self.mlp(self.norm(self.conv_dw(places).flatten(2).transpose(1, 2))) * self.weight


class ViewNet(nn.Module):
    """The small conv net that looks at the whole frame at 1512 px, in 28 px patches."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, self.grid = config.view_hidden_width, config.view_grid
        self.stem = nn.Sequential(nn.Conv2d(3, width, config.view_patch_px, config.view_patch_px), nn.LayerNorm(width, eps=TRUNK_EPSILON))
        self.blocks = nn.ModuleList(ViewBlock(width) for _ in range(config.view_depth))
        self.out_proj = nn.Conv2d(width, config.view_width, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, v * v, 3 * view_patch_px^2) -> (batch, v * v, view_width), places row-major."""
        stem, norm = self.stem
        x = norm(F.linear(patches, stem.weight.flatten(1), stem.bias))
        for block in self.blocks:
            x = block(x, self.grid)
        return F.linear(x, self.out_proj.weight.flatten(1), self.out_proj.bias)


def cosine(features: Tensor, prompt: Tensor) -> Tensor:
    """(batch, places, width) and (batch, width) -> (batch, places) in [-1, 1]; of n prompts each, (batch, n, width), (batch, n, places). Vectors
    shorter than 1e-12 give 0."""
    features, prompt = F.normalize(features, dim=-1), F.normalize(prompt, dim=-1)
    return (features * prompt[:, None]).sum(dim=-1) if prompt.ndim == 2 else prompt @ features.transpose(1, 2)


def probability(low: Tensor, prompt: Tensor, view: Tensor | None = None, view_prompt: Tensor | None = None) -> Tensor:
    """sigmoid(5 z), z the cosine with the low-res features, or its mean with the largest cosine in the view below each place.

    Args:
        low: (batch, g * g, width); view: (batch, v * v, view_width) f32.
        prompt: (batch, width); view_prompt: (batch, view_width); or n of them each, (batch, n, ..).
    Returns:
        (batch, g, g) f32 in (0, 1), of n prompts (batch, n, g, g). Where v is not a multiple of g (C-RADIO: 54 and 24) the windows of neighbouring places
        overlap: place i covers floor(i v / g) to ceil((i + 1) v / g).
    """
    z = _square(cosine(low, prompt))
    if view is not None:
        z = (z + F.adaptive_max_pool2d(_square(cosine(view, view_prompt)), z.shape[-2:])) / 2
    return torch.sigmoid(SHARPNESS * z)


def around(prob: Tensor, radius: int) -> Tensor:
    """(batch, g, g) -> the same with 1 added within `radius` places of each map's most probable one (the first of several), so that these are picked first."""
    side = torch.arange(prob.shape[-1], device=prob.device)
    best = prob.flatten(1).argmax(dim=1)
    near = lambda at: (side - at[:, None]).abs() <= radius
    return prob + (near(best // len(side))[:, :, None] & near(best % len(side))[:, None])


def spread(prob: Tensor, sizes: list[tuple[int, int]], given: Tensor | None = None, smooth: bool = False) -> list[Tensor]:
    """One probability map per high-res scale: (batch, rows, cols) each.

    Args:
        prob: (batch, g, g), enlarged by nearest.
        sizes: (rows, cols) of each high-res scale.
        given: (batch, height, width) of any dtype; averaged over the first high-res scale's patches (and cast back, so integer maps
            mark only patches that are covered wholly), enlarged by nearest. Where above 0 the probability becomes 1.
        smooth: then average every map over 6 x 6 areas.
    """
    maps = [F.interpolate(prob[:, None], size=size, mode="nearest")[:, 0] for size in sizes]
    if given is not None:
        marks = area(given, sizes[0])[:, None].float()
        marks = [F.interpolate(marks, size=size, mode="nearest")[:, 0] for size in sizes]
        maps = [torch.where(mark > 0, torch.ones_like(m), m) for mark, m in zip(marks, maps)]
    if smooth:
        maps = [F.interpolate(F.interpolate(m[:, None], size=SMOOTH_GRID, mode="area"), size=m.shape[-2:], mode="nearest")[:, 0] for m in maps]
    return maps


def area(given: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean of (batch, height, width) over each of `size` areas, in given's own dtype."""
    return F.interpolate(given[:, None].float(), size=size, mode="area")[:, 0].to(given.dtype)


def _square(values: Tensor) -> Tensor:
    side = round(values.shape[-1] ** 0.5)
    return values.unflatten(-1, (side, side))
