"""The vision model's parts under the names that checkpoints give them; each method is one stage on tensors.

Pictures, looks and the order of the stages are in model.py.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import VisionConfig
from .geometry import position_rows
from .layers import Mlp
from .scoring import ViewNet, probability
from .trunk import Trunk


def residual_keys(config: VisionConfig, index: int) -> list[str]:
    """Names of the parameters that hold the position residual of a high-res scale (1 is the first): none, a table, or rows and columns."""
    if not index or not config.separate_pos_emb:
        return []
    names = ("pos_emb_residual_rows", "pos_emb_residual_columns") if config.factored_pos_emb else ("pos_emb_residual",)
    return [f"{name}.{index - 1}" for name in names]


class VisionModel(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, high = config.width, len(config.scales_px) - 1
        self.trunk = Trunk(config)
        # one slice of `width` outputs per high-res scale; only the first is ever used, the others are loaded and kept
        self.selection_feature_proj = Mlp(config.feature_width, config.feature_width, width * high, norm=True)
        self.prior_prompt = nn.Parameter(torch.empty(width))
        if config.separate_pos_emb and config.factored_pos_emb:
            self.pos_emb_residual_rows = nn.ParameterList(torch.empty(1, grid, width) for grid in config.grids[1:])
            self.pos_emb_residual_columns = nn.ParameterList(torch.empty(1, grid, width) for grid in config.grids[1:])
        elif config.separate_pos_emb:
            self.pos_emb_residual = nn.ParameterList(torch.empty(1, grid ** 2, width) for grid in config.grids[1:])
        if config.highres_selection_feature:
            self.highres_selection_feature_module = ViewNet(config)
            self.prompt_proj_for_highres = nn.Linear(width, config.view_width * high)

    def position(self, index: int, size: tuple[int, int], ids: Tensor) -> Tensor:
        """Position rows of patches of one scale: ids (K,) int64 in a grid of size (rows, cols) -> (K, width)."""
        rows, cols = ids // size[1], ids % size[1]
        position = position_rows(self.trunk.pos_embed, max(size), rows, cols, crop=self.config.radio)
        if index and self.config.separate_pos_emb and self.config.factored_pos_emb:
            position = position + self.pos_emb_residual_rows[index - 1][0, rows] + self.pos_emb_residual_columns[index - 1][0, cols]
        elif index and self.config.separate_pos_emb:
            position = position + self.pos_emb_residual[index - 1][0, rows * self.config.grids[index] + cols]
        return position

    def score_features(self, features: Tensor) -> Tensor:
        """Selection features (batch, g * g, feature_width) -> (batch, g * g, width), what a prompt is compared with."""
        f, width = self.selection_feature_proj, self.config.width
        hidden = f.norm(nn.functional.gelu(f.fc1(features)))
        return nn.functional.linear(hidden, f.fc2.weight[:width], f.fc2.bias[:width])

    def view_features(self, view: Tensor) -> Tensor:
        """Patches of the 1512 px view (batch, v * v, 3 * view_patch_px^2) -> (batch, v * v, view_width)."""
        return self.highres_selection_feature_module(view)

    def score(self, low: Tensor, view: Tensor | None, prompt: Tensor | None = None) -> Tensor:
        """score_features, view_features (None without a view network) and prompt (batch, width) -> (batch, g, g), or n prompts each (batch, n, width)
        -> (batch, n, g, g). Default: the prior prompt."""
        if prompt is None:
            prompt = self.prior_prompt.expand(len(low), -1)
        view_prompt = None
        if view is not None:
            w, width = self.prompt_proj_for_highres, self.config.view_width
            view_prompt = nn.functional.linear(prompt, w.weight[:width], w.bias[:width])
        return probability(low, prompt, view, view_prompt)
