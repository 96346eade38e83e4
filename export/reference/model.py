"""PS3 in PyTorch, from a normalised picture to tokens: encode_low, encode_prompt, score, select, gather, encode_high.

The numbers are those of ps3-torch 0.1.3 (NVlabs/PS3 @ f7e3fd4) to 1e-5 of the largest value; tests/test_reference_conformance.py
measures it. This model is what exports are checked against and what training trains; robots run exported networks.
"""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from ps3_sdk.errors import InputError

from .config import Ps3Config
from .geometry import cut, grid_size, resize, scale_size_px
from .outputs import Encoded, Low, Pooled
from .scoring import area, spread
from .selection import Look, pick_looks, plan_looks, to_ids, to_maps
from .text import Prompt, TextModel
from .trunk import KeyValue, TrunkOutput
from .vision import VisionModel


class Ps3Model(nn.Module):
    """vision_model and text_model (None for vision-only checkpoints) under the checkpoint's names.

    Pictures are (batch, 3, height, width) f32, already normalised; usually square, of the largest scale's side.
    """

    def __init__(self, config: Ps3Config):
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision)
        self.text_model = None if config.text is None else TextModel(config.text)

    @classmethod
    def from_checkpoint(cls, path: str | Path, revision: str | None = None) -> "Ps3Model":
        """The model of a checkpoint folder or Hugging Face id, f32, in eval mode.

        Raises:
            ExportError: a file is missing or broken, or its keys are not the model's; the message names every one.
        """
        from ..weights import Checkpoint, load_into
        checkpoint = Checkpoint.open(path, revision)
        config = Ps3Config.read(checkpoint.folder)
        with torch.device("meta"):
            model = cls(config)
        load_into(model, checkpoint)
        return model.eval()

    # -- stages ---------------------------------------------------------------------------------------------------

    def encode_low(self, pixels: Tensor) -> Low:
        """Everything that depends on the picture alone."""
        vision, config = self.vision_model, self.config.vision
        pixels = self._check(pixels)
        grid = config.grids[0]
        ids = torch.arange(grid * grid, device=pixels.device)
        position = vision.position(0, (grid, grid), ids).expand(len(pixels), -1, -1)
        low_px = (config.scales_px[0],) * 2
        hidden, kv = vision.trunk(cut(resize(pixels, low_px), config.trunk.patch_px), position)
        features = torch.cat([hidden[i] for i in config.select_based_on_layer], dim=-1)
        view = None
        if config.highres_selection_feature:
            view = vision.view_features(cut(resize(pixels, (config.view_px,) * 2), config.view_patch_px))
        return Low(hidden[-1], features, kv, vision.score_features(features), view, hidden)

    def encode_prompt(self, ids: Tensor) -> Prompt:
        """Token ids (batch, tokens) int64 -> pooled text feature and prompt."""
        if self.text_model is None:
            raise InputError("[encode_prompt] this checkpoint has no text tower (model_type ps3_vision_model). Pass prompts as vectors.")
        return self.text_model(ids)

    def score(self, low: Low, prompt: Tensor | None = None) -> Tensor:
        """(batch, g, g) f32 in (0, 1): how much prompt (batch, width) cares about each low-res place; None: saliency."""
        width = self.config.vision.width
        if prompt is not None and prompt.shape != (len(low.tokens), width):
            raise InputError(f"[score] prompt is {tuple(prompt.shape)}; ({len(low.tokens)}, {width}) is needed. Pass encode_prompt(ids).prompt.")
        return self.vision_model.score(low.score_features, low.view_features, prompt)

    @torch.no_grad()
    def select(self, probs: list[Tensor], *, num_looks: int | str | None = None, num_tokens: int | str | None = None,
               first_scales: int | Sequence[int] | None = None) -> list[Look]:
        """Pick patches by probs (per high-res scale (batch, rows, cols)); budgets as in plan_looks, first_scales also one per image."""
        batch, capacity = len(probs[0]), [p[0].numel() for p in probs]
        firsts = list(first_scales) if isinstance(first_scales, Sequence) else [first_scales] * batch
        if len(firsts) != batch:
            raise InputError(f"[select] first_scales has {len(firsts)} entries; the batch has {batch} pictures. Pass one number or one for each.")
        reach = None if firsts[0] is None else max(firsts)
        plans = [plan_looks(capacity, self.config.vision.per_look, num_looks=num_looks, num_tokens=num_tokens, first_scales=first, reach=reach) for first in firsts]
        if len({len(plan) for plan in plans}) > 1:
            raise InputError(f"[select] first_scales {firsts} give the pictures of this batch different numbers of looks; equal ones are needed. Encode them one by one.")
        return pick_looks(probs, plans)

    def gather(self, pixels: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """The patches of one look and their position rows: (batch, picked, 3 * patch_px^2) and (batch, picked, width)."""
        config, patches, positions = self.config.vision, [], []
        for scale, ids in enumerate(look, start=1):
            if not any(len(i) for i in ids):
                continue
            size_px = scale_size_px(config, scale, *pixels.shape[-2:])
            size = (size_px[0] // config.trunk.patch_px, size_px[1] // config.trunk.patch_px)
            picture = resize(pixels, size_px)
            patches.append([cut(picture[i:i + 1], config.trunk.patch_px, picked[None])[0] for i, picked in enumerate(ids)])
            positions.append([self.vision_model.position(scale, size, picked) for picked in ids])
        if len({sum(len(ids[i]) for ids in look) for i in range(len(pixels))}) > 1:
            raise InputError("[gather] the pictures of this batch pick different numbers of patches; one batch needs equal numbers. Encode them one by one.")
        if not patches:
            return pixels.new_zeros(len(pixels), 0, 3 * config.trunk.patch_px ** 2), pixels.new_zeros(len(pixels), 0, config.width)
        join = lambda scales: torch.stack([torch.cat([scale[i] for scale in scales]) for i in range(len(pixels))])
        return join(patches), join(positions)

    def encode_high(self, patches: Tensor, position: Tensor, kv: list[KeyValue]) -> TrunkOutput:
        """The same blocks on picked patches, which see the low-res tokens and each other; no other look's."""
        return self.vision_model.trunk(patches, position, kv)

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (batch, tokens, width) -> (batch, pooled_width); mask (batch, tokens), nonzero = pooled, all when none is."""
        return self.vision_model.trunk.pool(tokens, mask)

    # -- whole passes ---------------------------------------------------------------------------------------------

    def forward(self, pixels: Tensor, *, prompt: Tensor | None = None, num_looks: int | str | None = None, num_tokens: int | str | None = None,
                first_scales: int | Sequence[int] | None = None, given: Tensor | None = None, smooth: bool = False,
                looks: list[list[Tensor]] | None = None, keep_hidden: bool = False, low: Low | None = None) -> Encoded:
        """See a picture whole, then closely where the prompt (or the prior) wants.

        Args:
            prompt: (batch, width). num_looks, num_tokens, first_scales: see plan_looks; default one look.
            given: (batch, height, width), places above 0 are certain; smooth: see scoring.spread.
            looks: instead of selecting, per look the maps to encode, each per scale (batch, rows, cols), nonzero = picked.
            keep_hidden: also return every block's tokens. low: this picture's encode_low, if it is there already.
        """
        pixels = self._check(pixels)
        low = low or self.encode_low(pixels)
        sizes = self.sizes(pixels)
        probs = spread(self.score(low, prompt), sizes, given, smooth)
        picked = [to_ids(maps) for maps in looks] if looks is not None else self.select(
            probs, num_looks=num_looks, num_tokens=num_tokens, first_scales=first_scales)
        kept = slice(None) if keep_hidden else slice(-1, None)
        steps = [self.encode_high(*self.gather(pixels, look), low.kv).hidden[kept] for look in picked]
        hidden = low.hidden[kept]
        if steps:
            order = _order(picked, sizes)[..., None]
            high = [torch.cat(layers, dim=1) for layers in zip(*steps)]
            hidden = [torch.cat([x, torch.take_along_dim(y, order, dim=1)], dim=1) for x, y in zip(hidden, high)]
        maps = to_maps(picked, sizes, len(pixels), pixels.device)
        return Encoded(hidden[-1], maps, probs, picked, low, hidden if keep_hidden else [])

    def forward_pooled(self, pixels: Tensor, *, prompt: Tensor | None = None, given: Tensor | None = None, smooth: bool = False,
                       pool_given_only: bool = False, is_global_text: Tensor | None = None, maps: list[Tensor] | None = None) -> Pooled:
        """One look, pooled: what pre-training compares with captions.

        Args:
            pool_given_only: pool only tokens whose patch touches `given`; all of them when none does.
            is_global_text: (batch, 1) bool, where true the low-res tokens are pooled instead.
            maps: the maps to encode instead of selecting.
        """
        if pool_given_only and given is None:
            raise InputError("[forward_pooled] pool_given_only needs `given`, a map (batch, height, width) of what to pool. Pass it.")
        low, sizes = self.encode_low(pixels), self.sizes(pixels)
        prior, asked = self.score(low), None if prompt is None else self.score(low, prompt)
        probs = spread(prior if asked is None else asked, sizes, given, smooth)
        look = to_ids(maps) if maps is not None else self.select(probs)[0]
        mask = None
        if pool_given_only:
            areas = [area(given, size).flatten(1) for size in sizes]
            mask = torch.stack([torch.cat([a[i, ids[i]] for a, ids in zip(areas, look)]) for i in range(len(pixels))])
        pooled = self.pool(self.encode_high(*self.gather(pixels, look), low.kv).hidden[-1], mask)
        if is_global_text is not None:
            pooled = torch.where(is_global_text.bool(), self.pool(low.tokens), pooled)
        return Pooled(pooled, to_maps([look], sizes, len(pixels), pixels.device), probs, spread(prior, sizes),
                      None if asked is None else spread(asked, sizes))

    def feature_maps(self, tokens: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Tokens on their places: (batch, width, rows, cols) per scale, low-res first, zeros where nothing was picked."""
        grid = self.config.vision.grids[0]
        whole = torch.ones(len(tokens), grid, grid, dtype=torch.bool, device=tokens.device)
        places = torch.cat([m.flatten(1) for m in (whole, *maps)], dim=1).bool()
        if (places.sum(dim=1) != tokens.shape[1]).any():
            raise InputError(f"[feature_maps] {tokens.shape[1]} tokens and {places.sum(dim=1).tolist()} places per picture; they must be equal. "
                             "Pass the maps that came with these tokens.")
        full = tokens.new_zeros(*places.shape, tokens.shape[-1])
        full[places] = tokens.flatten(0, 1)
        parts = full.split([m[0].numel() for m in (whole, *maps)], dim=1)
        return [part.transpose(1, 2).unflatten(2, m.shape[1:]) for part, m in zip(parts, (whole, *maps))]

    def sizes(self, pixels: Tensor) -> list[tuple[int, int]]:
        """(rows, cols) of each high-res scale for pictures of this shape."""
        config = self.config.vision
        return [grid_size(config, i, *pixels.shape[-2:]) for i in range(1, len(config.scales_px))]

    def _check(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point() or 0 in pixels.shape:
            raise InputError(f"[encode_low] pixels are {tuple(pixels.shape)} {pixels.dtype}; (batch, 3, height, width) of normalised floats is needed. "
                             "Resize and normalise the frame first.")
        return pixels.float()


def _order(looks: list[Look], sizes: list[tuple[int, int]]) -> Tensor:
    """Where tokens in look order go when read scale by scale, row-major: (batch, picked) int64."""
    starts = [sum(rows * cols for rows, cols in sizes[:i]) for i in range(len(sizes))]
    batch = len(looks[0][0])
    keys = [torch.cat([ids[i] + start for look in looks for start, ids in zip(starts, look)]) for i in range(batch)]
    return torch.stack(keys).argsort(dim=1)
