"""The certificate of a bundle: how far each stage is from the PyTorch reference on a picture, measured, not assumed.

A stage's error is the largest difference over its outputs, relative to the largest value of that output. Every network is
given the reference's own inputs, so that one stage's error is not counted again in the next.
"""
from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ps3_sdk import _core
from ps3_sdk.datasheet import ON_A_FRAME
from ps3_sdk.errors import ExportError
from ps3_sdk.frame import Frame
from ps3_sdk.position import position_rows

from .apart import let_go, on_disk
from .check_picture import read_picture, sample_picture  # noqa: F401  (part of this module's words)
from .reference.geometry import cut, resize
from .reference.model import Ps3Model
from .reference.stages import Stage, stages
from .reference.vision import residual_keys
from .streaming import Streamed

LIMIT = 1e-5            # fp32 against fp32; a larger error means a wrong network, not rounding
LIMIT_INT8 = 0.1        # of the two stages that run the encoder; random weights give 0.02
HIGH_PATCHES = 256      # patches of encode_high's comparison
BATCH = 2               # batches of 1 and 2 take different paths in a runtime, so two are compared ...
LARGE_WIDTH = 512       # ... but not of models this wide, whose keys and values alone would be 0.4 GB on either side
VISION = "vision_model"
READS = {               # what each network's reference reads besides blocks
    "encode": (f"{VISION}.trunk.patch_embed.",),
    "score_features": (f"{VISION}.selection_feature_proj.", f"{VISION}.highres_selection_feature_module."),
    "pool": (f"{VISION}.trunk.norm.", f"{VISION}.trunk.siglip_proj.", f"{VISION}.trunk.attn_pool."),
    "encode_prompt": ("text_model.",)}


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value; 0 for two empty arrays."""
    if got.shape != want.shape:
        raise ExportError(f"[check] an output has shape {got.shape}, the reference's has {want.shape}; this export is wrong. Report it.")
    if not want.size:
        return 0.0
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30))


def measure(streamed: Streamed, networks: dict, geometry: dict, tables: dict[str, np.ndarray], folder: Path, precision: str = "fp32",
            progress=lambda line: None, picture: np.ndarray | None = None) -> dict[str, dict]:
    """Run every stage beside the reference: {stage: {max_relative_error, against, inputs}}.

    streamed: the reference. networks: name -> ps3_sdk.runtimes Network. folder: where large results wait for each other.
    picture: (height, width, 3) uint8, default sample_picture(). Raises ExportError when a stage is further than its limit from the reference.
    """
    compare = Comparison(streamed, networks, geometry, tables, folder, progress, picture)
    with torch.inference_mode():
        errors = compare.run()
    against = f"PyTorch {torch.__version__.split('+')[0]} float32"
    limit = {stage: LIMIT_INT8 if precision == "int8" and stage.startswith("encode_") and stage != "encode_prompt" else LIMIT for stage in errors}
    bad = [f"{stage} is off by {error:.1e} (allowed {limit[stage]:.0e})" for stage, (error, _) in errors.items() if not error <= limit[stage]]
    if bad:
        fix = "Export these weights as fp32." if precision == "int8" else "Report the checkpoint's config.json."
        raise ExportError(f"[check] {', '.join(bad)} from {against}. Nothing was written. {fix}")
    return {stage: {"max_relative_error": error, "against": against, "inputs": inputs} for stage, (error, inputs) in errors.items()}


class Comparison:
    def __init__(self, streamed: Streamed, networks: dict, geometry: dict, tables: dict[str, np.ndarray], folder: Path, progress, picture):
        self.networks, self.geometry, self.tables, self.folder, self.progress = networks, geometry, tables, folder, progress
        self.streamed, self.model = streamed, streamed.model.eval()
        self.stages = stages(self.model)
        self.picture, self.what = (sample_picture(), "the picture") if picture is None else (picture, ON_A_FRAME)
        self.batch = 1 if geometry["width"] >= LARGE_WIDTH else BATCH
        self.frame = Frame.of(self.picture)

    def run(self) -> dict[str, tuple[float, str]]:
        g, vision = self.geometry, self.model.config.vision
        picture = self._reference_picture(g["scales_px"][-1])
        low_ids = np.arange(vision.grids[0] ** 2, dtype=np.int32)
        picks = self._picks()
        cuts = [(g["scales_px"][0], low_ids), *picks.items()]
        gathered = [self._gather(px, ids) for px, ids in cuts]
        wanted = [self._cut(picture, px, ids) for px, ids in cuts]
        view = self._view(picture)
        del picture
        errors = {"gather": (max(max(map(relative_error, *pair)) for pair in zip(gathered, wanted)), f"{sum(len(ids) for _, ids in cuts)} patches of {self._size()}")}
        let_go(self.tables)
        self.progress("check gather")

        (patches, position), high = wanted[0], [np.concatenate(part) for part in zip(*wanted[1:])]
        two = lambda array: np.concatenate([array[None], array[None, ::-1]])[:self.batch]     # the picture, and its patches reversed
        low_in = {"patches": two(patches), "position": two(position), "keep": np.array([len(low_ids)]), **self._past(self.batch, 0)}
        error, low = self._network("encode", low_in)
        score_in = {"features": low["features"], **({"view": np.repeat(view[None], self.batch, 0)} if view is not None else {})}
        score_error, scored = self._network("score_features", score_in)
        errors["encode_low"] = (max(error, score_error), f"{self.what}, batch {self.batch}")

        past = {f"past_{kind}_{i}": low[f"{kind}_{i}"] for i in range(g["depth"]) for kind in ("key", "value")}
        error, out = self._network("encode", {"patches": two(high[0]), "position": two(high[1]), "keep": np.array([0]), **past})
        errors["encode_high"] = (error, f"{len(high[0])} patches of {len(picks)} scales{self._of()}, batch {self.batch}")
        error, _ = self._network("pool", {"tokens": out["tokens"]})
        errors["decode"] = (error, f"pooling of {len(high[0])} tokens, batch {self.batch}")
        if "encode_prompt" in self.networks:
            error, text = self._network("encode_prompt", dict(zip(["ids"], [t.numpy() for t in self.stages["encode_prompt"].example({"batch": self.batch})])))
            errors["encode_prompt"] = (error, f"random token ids, batch {self.batch}")
        errors["score"] = (self._score(scored), "the prior prompt on the picture")
        self.progress("check score")
        return {stage: errors[stage] for stage in ("encode_low", "encode_prompt", "score", "gather", "encode_high", "decode") if stage in errors}

    def _size(self) -> str:
        height, width = self.picture.shape[:2]
        return f"a {width}x{height} picture" if self.what != ON_A_FRAME else f"{self.what}, {width}x{height}"

    def _of(self) -> str:
        return f" of {self.what}" if self.what == ON_A_FRAME else ""

    def _network(self, name: str, inputs: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
        """Error of a network and the reference's outputs, for the next stage."""
        stage: Stage = self.stages[name]
        with self.streamed.resident(*READS[name]):
            wanted = stage(*(_tensor(inputs[spec.name]) for spec in stage.inputs))
        wanted = on_disk({spec.name: tensor.numpy() for spec, tensor in zip(stage.outputs, wanted)}, self.folder)
        got = self.networks[name].run(inputs, list(wanted))
        self.progress(f"check {name}")
        return max(relative_error(got[key], wanted[key]) for key in wanted), wanted

    def _reference_picture(self, base: int) -> torch.Tensor:
        """The reference's preprocessing: squash to base x base (Pillow bicubic, horizontal pass first), /255, (x - mean) / std."""
        height = self.picture.shape[0]
        squashed = Image.fromarray(self.picture).resize((base, height), Image.Resampling.BICUBIC).resize((base, base), Image.Resampling.BICUBIC)
        pixels = torch.empty(1, 3, base, base)
        for channel, values in enumerate(np.asarray(squashed).transpose(2, 0, 1)):
            pixels[0, channel] = (torch.from_numpy(values.astype(np.float32)).div_(255) - self.geometry["mean"][channel]) / self.geometry["std"][channel]
        return pixels

    def _picks(self) -> dict[int, np.ndarray]:
        rng, scales = np.random.Generator(np.random.PCG64(1)), self.geometry["scales_px"][1:]
        grid = lambda px: px // self.geometry["patch_px"]
        return {px: np.sort(rng.choice(grid(px) ** 2, HIGH_PATCHES // len(scales), replace=False)).astype(np.int32) for px in scales}

    def _gather(self, px: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        g = self.geometry
        patches = _core.gather(self.frame.core, g["scales_px"][-1], px, g["patch_px"], ids, g["mean"], g["std"])
        return patches, position_rows(self.tables, g, px, ids)

    def _cut(self, tensor: torch.Tensor, px: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vision, index = self.model.vision_model, self.geometry["scales_px"].index(px)
        ids, side = torch.from_numpy(ids.astype(np.int64)), px // self.geometry["patch_px"]
        patches = cut(resize(tensor, (px, px)), self.geometry["patch_px"], ids[None])[0]
        with self.streamed.resident(f"{VISION}.trunk.pos_embed", *(f"{VISION}.{key}" for key in residual_keys(vision.config, index))):
            return patches.numpy(), vision.position(index, (side, side), ids).reshape(len(ids), -1).numpy()

    def _view(self, tensor: torch.Tensor) -> np.ndarray | None:
        px, patch = self.geometry["view_px"], self.geometry["view_patch_px"]
        return None if px is None else cut(resize(tensor, (px, px)), patch)[0].numpy()

    def _past(self, batch: int, tokens: int) -> dict[str, np.ndarray]:
        g = self.geometry
        empty = np.empty((batch, g["heads"], tokens, g["width"] // g["heads"]), np.float32)
        return {f"past_{kind}_{i}": empty for i in range(g["depth"]) for kind in ("key", "value")}

    def _score(self, scored: dict[str, np.ndarray]) -> float:
        from .reference.scoring import probability
        prior = self.tables["prior_prompt"].copy()
        first = {name: np.ascontiguousarray(array[0]) for name, array in scored.items()}
        weight, bias = (self.tables.get(f"view_prompt_{name}") for name in ("weight", "bias"))
        got = _core.score(first["low_features"], first.get("view_features"), prior, weight, bias)
        view_prompt = None if weight is None else torch.from_numpy(weight @ prior + bias)[None]
        view = torch.from_numpy(first["view_features"])[None] if view_prompt is not None else None
        wanted = probability(torch.from_numpy(first["low_features"])[None], torch.from_numpy(prior)[None], view, view_prompt)[0]
        return relative_error(got, wanted.numpy())


def _tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same memory, which the reference only reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # views of files are not writable, and need not be
        return torch.from_numpy(np.ascontiguousarray(array))
