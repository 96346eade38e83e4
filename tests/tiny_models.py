"""Tiny random checkpoints in the layout of the published ones, made without the reference. For any test that needs a model.

    folder = tiny_models.write(tmp_path, tiny_models.config("siglip2", "4k"))
"""
from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ps3_sdk.export.random_checkpoint import RandomCheckpoint
from ps3_sdk.export.reference.config import Ps3Config

FAMILIES = ("siglip", "siglip2", "c-radio")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_HIGH = {"1.5k": (2, 4), "4k": (2, 4, 10)}      # high-res scales in multiples of the low-res one


def config(family: str = "siglip", scales: str = "1.5k", text: bool = True, width: int = 32, depth: int = 3, **vision) -> dict:
    """The config.json of a tiny model. vision: fields of vision_config to change. scales: 1.5k or 4k."""
    radio = family == "c-radio"
    low, patch = (384, 16) if radio else (378, 14)
    fields = {
        "model_type": "ps3_vision_model", "model_name": f"tiny_{family}", "hidden_size": width, "pool": "map",
        "golden_trunk": {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 4, "mlp_ratio": 4.0 if radio else 3.7362,
                         "pos_embed_grid": 256 if radio else 27, **({"pool_embed_dim": 40, "pool_num_heads": 2} if radio else {})},
        "ps3_scales": [low, *(low * zoom for zoom in _HIGH[scales])], "select_based_on_layer": [0, depth // 2, depth - 1], "max_select_num": 2560,
        "highres_selection_module_hidden_dim": 24, "highres_selection_module_out_dim": 16, "highres_selection_module_depth": 2}
    if radio:
        fields |= {"radio": True, "class_token": False, "img_size": 4096, "radio_adapter_mlp_version": "v2", "radio_adapter_mlp_input_dim": width,
                   "radio_adapter_mlp_hidden_dim": 48, "radio_adapter_mlp_output_dim": 40, "radio_adapter_mlp_num_inner": 1}
    fields |= vision
    if not text:
        return fields
    tower = {"width": 32, "heads": 4, "layers": 2, "mlp_ratio": 3.0, "vocab_size": 320, "context_length": 64, "output_dim": 40 if radio else width,
             "prompt_proj_dim": width, "pool_type": "last", "no_causal_mask": True, "proj_bias": True}
    if family == "siglip2":
        tower |= {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
    return {"model_type": "ps3", "vision_config": fields, "text_config": tower}


def write(folder: str | Path, values: dict | None = None, *, seed: int = 0, dtype: str = "f32", shards: int = 1,
          change: dict[str, torch.Tensor | None] | None = None) -> Path:
    """Write config.json, weights, preprocessor_config.json and (with a text tower) the tokenizer; returns the folder.

    dtype: f32, f16 or bf16 | shards: how many safetensors files | change: tensors to add, replace, or (None) leave out.
    """
    folder, values = Path(folder), values or config()
    folder.mkdir(parents=True, exist_ok=True)
    parsed = Ps3Config.from_dict(values)
    put = lambda name, content: (folder / name).write_text(json.dumps(content, indent=1))
    put("config.json", values)
    put("preprocessor_config.json", {"image_size": [parsed.vision.scales_px[-1]] * 2, "mean": [0.5] * 3, "std": [0.5] * 3,
                                     "resize_mode": "squash", "interpolation": "bicubic"})
    if parsed.text is not None:
        from ps3_sdk.export.seeded_bundle import byte_tokenizer
        (folder / "tokenizer.json").write_bytes(byte_tokenizer())
        put("tokenizer_config.json", {"tokenizer_name": "tiny", "context_length": parsed.text.context_length, "clean": "canonicalize"})
    source = RandomCheckpoint(parsed, seed)
    tensors = {key: source.tensor(key).to(DTYPES[dtype]) for key in source.keys()}
    for key, tensor in (change or {}).items():
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    _save(folder, tensors, shards)
    return folder


def _save(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        part = names[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
