"""One nn.Module per exported network, made of the reference model's own modules, and what goes in and out of each.

An exported network is held to the module of its name: same names, order, dtypes and shapes. Strings in a shape are symbolic
sizes; `kept` is min(keep, tokens). encode serves encode_low (past 0, keep = tokens) and encode_high (past = low-res tokens, keep 0).
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ps3_sdk.errors import ExportError

from .model import Ps3Model


class TensorSpec(NamedTuple):
    """dtype is numpy's name for it; shape mixes sizes and symbolic names."""
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Stage(nn.Module):
    """name: the network's | inputs, outputs: in the order of forward's arguments and results."""
    name: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]

    def example(self, sizes: dict[str, int], seed: int = 0) -> list[Tensor]:
        """Seeded inputs: normal floats, ids below the vocabulary; sizes gives each symbolic size; `keep` is sizes["kept"]."""
        generator = torch.Generator().manual_seed(seed)
        return [self._example(spec, [sizes.get(n, n) for n in spec.shape], sizes, generator) for spec in self.inputs]

    def _example(self, spec: TensorSpec, shape: list[int], sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        if spec.name == "keep":
            return torch.tensor([sizes["kept"]])
        if spec.name == "ids":
            return torch.randint(0, self.vocabulary, shape, generator=generator)
        return torch.randn(shape, generator=generator)


class Encode(Stage):
    """The trunk. tokens: output of block `token_layer` (negative from the end), before the final norm; features: outputs of the
    selection blocks side by side and key_i, value_i: of block i, all for the first `keep` tokens only.

    forward(patches, position, keep, past_key_0, past_value_0, past_key_1, ..) -> (tokens, features, key_0, value_0, key_1, ..)
    """
    name = "encode"

    def __init__(self, model: Ps3Model, token_layer: int = -1):
        """token_layer: VILA-HD reads the last but one block (-2); later blocks are run only if the selection features need them."""
        super().__init__()
        config = model.config.vision
        shape, self.trunk, self.layers = config.trunk, model.vision_model.trunk, config.select_based_on_layer
        self.token_layer = token_layer % shape.depth
        self.num_blocks = max(self.token_layer, *self.layers) + 1
        kv = lambda prefix, tokens: [TensorSpec(f"{prefix}{kind}_{i}", "float32", ("batch", shape.num_heads, tokens, shape.head_width))
                                     for i in range(self.num_blocks) for kind in ("key", "value")]
        self.inputs = [TensorSpec("patches", "float32", ("batch", "tokens", 3 * shape.patch_px ** 2)),
                       TensorSpec("position", "float32", ("batch", "tokens", shape.width)), TensorSpec("keep", "int64", (1,)), *kv("past_", "past")]
        self.outputs = [TensorSpec("tokens", "float32", ("batch", "tokens", shape.width)),
                        TensorSpec("features", "float32", ("batch", "kept", config.feature_width)), *kv("", "kept")]

    def forward(self, patches: Tensor, position: Tensor, keep: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(past[0::2], past[1::2]))
        hidden, kv = self.trunk(patches, position, pairs, self.num_blocks)
        features = torch.cat([hidden[i][:, :keep[0]] for i in self.layers], dim=-1)
        return (hidden[self.token_layer], features, *(part[:, :, :keep[0]] for pair in kv for part in pair))


class ScoreFeatures(Stage):
    """What score compares a prompt with: forward(features[, view]) -> (low_features[, view_features])."""
    name = "score_features"

    def __init__(self, model: Ps3Model):
        super().__init__()
        config, self.vision = model.config.vision, model.vision_model
        places, view = config.grids[0] ** 2, config.view_grid ** 2
        self.inputs = [TensorSpec("features", "float32", ("batch", places, config.feature_width))]
        self.outputs = [TensorSpec("low_features", "float32", ("batch", places, config.width))]
        if config.highres_selection_feature:
            self.inputs.append(TensorSpec("view", "float32", ("batch", view, 3 * config.view_patch_px ** 2)))
            self.outputs.append(TensorSpec("view_features", "float32", ("batch", view, config.view_width)))

    def forward(self, features: Tensor, view: Tensor | None = None) -> tuple[Tensor, ...]:
        low = self.vision.score_features(features)
        return (low,) if view is None else (low, self.vision.view_features(view))


class EncodePrompt(Stage):
    """The text tower: forward(ids) -> (pooled, prompt)."""
    name = "encode_prompt"

    def __init__(self, model: Ps3Model):
        super().__init__()
        config, self.text = model.config.text, model.text_model
        if config is None or config.pool_type == "none" and not config.embed_cls:
            got = "the checkpoint has no text tower" if config is None else "text_config.pool_type is none, which gives a vector per token"
            raise ExportError(f"[encode_prompt] {got}; one prompt vector per text is needed. Export without it and pass prompts as vectors.")
        self.vocabulary = config.vocab_size
        self.inputs = [TensorSpec("ids", "int64", ("batch", config.context_length))]
        self.outputs = [TensorSpec("pooled", "float32", ("batch", config.output_dim)), TensorSpec("prompt", "float32", ("batch", config.prompt_proj_dim))]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(self.text(ids))


class Pool(Stage):
    """Attention pooling of tokens, final norm and adapter included: forward(tokens) -> (pooled,)."""
    name = "pool"

    def __init__(self, model: Ps3Model):
        super().__init__()
        config, self.trunk = model.config.vision, model.vision_model.trunk
        self.inputs = [TensorSpec("tokens", "float32", ("batch", "tokens", config.width))]
        self.outputs = [TensorSpec("pooled", "float32", ("batch", config.pool_width))]

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.trunk.pool(tokens),)


def stages(model: Ps3Model) -> dict[str, Stage]:
    """Every network this model exports, by name."""
    made = [Encode(model), ScoreFeatures(model), Pool(model)]
    if model.config.text is not None:
        made.append(EncodePrompt(model))
    return {stage.name: stage for stage in made}
