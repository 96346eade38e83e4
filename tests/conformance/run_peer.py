"""Make the models of cases.py with ps3-torch, save them as it saves them, and record what it answers.

Run by the tests with the python of install_peer.sh: run_peer.py OUT. Afterwards OUT has, per model, a checkpoint folder
(<model>/checkpoint) and <model>/<case>.safetensors, the inputs that are not made from a seed and all outputs.
"""
from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import peer_torchvision  # noqa: F401  (before ps3)
import cases
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

warnings.filterwarnings("ignore")

from ps3 import PS3Config, PS3Model, PS3VisionConfig, PS3VisionModel  # noqa: E402


def register_trunk(name: str, shape: dict) -> None:
    """Tell timm a tiny vision transformer by name."""
    def build(pretrained=False, **options):
        options = {key: value for key, value in options.items() if not key.startswith(("pretrained", "cache_dir"))}
        plain = dict(img_size=shape["pos_embed_grid"] * shape["patch_size"], class_token=False)
        return VisionTransformer(patch_size=shape["patch_size"], embed_dim=shape["embed_dim"], depth=shape["depth"],
                                 num_heads=shape["num_heads"], mlp_ratio=shape["mlp_ratio"], **{**plain, **options})
    build.__name__, build.__module__ = name, __name__
    register_model(build)


def randomise(model: torch.nn.Module) -> None:
    """Give every parameter a value of its own, so that none is a zero or one that could hide a mistake."""
    norms = {f"{name}.weight" for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in norms or name.endswith("gamma") or (p.ndim == 1 and name.endswith("weight")):
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif p.ndim == 1:
                p.copy_(0.2 * torch.randn_like(p))
            elif p.ndim == 3 or "embedding" in name:        # tables and the latent query
                p.copy_(0.5 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (p[0].numel() ** -0.5))


def make(name: str, folder: Path) -> torch.nn.Module:
    """Build, save and return a model; its f32 weights are those in the file."""
    spec = cases.MODELS[name]
    trunk = f"tiny_{name.replace('-', '_').replace('.', '_')}"
    register_trunk(trunk, spec["trunk"])
    vision = dict(spec["vision"], model_name=trunk)
    torch.manual_seed(len(name))
    if spec["text"] is None:
        model = PS3VisionModel(PS3VisionConfig(**vision))
    else:
        model = PS3Model(PS3Config(text_config=dict(spec["text"], prompt_proj_dim=vision["hidden_size"]), vision_config=vision))
    model.eval()
    randomise(model)
    if spec["saved"] in ("f16", "bf16"):
        model.to(torch.float16 if spec["saved"] == "f16" else torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200KB" if spec["saved"] == "shards" else "5GB")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    written = config.get("vision_config", config)
    written["golden_trunk"] = spec["trunk"]
    if spec["saved"] == "old_name":
        written["s3_scales"] = written.pop("ps3_scales")
    path.write_text(json.dumps(config))
    return model.float()


def encode_low(vision, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    outs = vision.forward_low_res(pixels, output_hidden_states=True, return_kv_cache=True)
    found = {f"hidden{i}": h for i, h in enumerate(outs["hidden_states"])} | {"kv": outs["output_kv_cache"], "pooled": outs["x"]}
    found["features"] = torch.cat([outs["hidden_states"][i] for i in vision.config.select_based_on_layer], dim=-1)
    found["score_features"] = vision.selection_feature_proj(found["features"])[..., :vision.width]
    if vision.config.highres_selection_feature:
        view = torch.nn.functional.interpolate(pixels, size=1512, mode="bicubic")
        found["view_features"] = vision.highres_selection_feature_module(view).flatten(2).transpose(1, 2)
    return found


def answer(model, name: str, case: str, options: dict) -> dict[str, torch.Tensor]:
    vision = model.vision_model
    base, looks = vision.ps3_scales[-1], []
    choose = type(vision).get_selection_maps

    def observed(*args, **kwargs):
        looks.append(choose(vision, *args, **kwargs))
        return looks[-1]

    vision.get_selection_maps = observed
    vision.num_hidden_layers_to_return = vision.layers if options.get("hidden") else 1
    tensor = lambda array: None if array is None else torch.from_numpy(array)
    pixels = tensor(cases.pixels(name, case, options, base))
    asked = {key: options[key] for key in ("num_look_close", "num_token_look_close", "smooth_selection_prob", "only_select_first_n_scale", "pool_gt_token_only") if key in options}
    if isinstance(asked.get("only_select_first_n_scale"), int):
        asked["only_select_first_n_scale"] = [asked["only_select_first_n_scale"]] * len(pixels)
    if "is_global_text" in options:
        asked["is_global_text"] = torch.tensor(options["is_global_text"])[:, None]
    out = vision(pixels, prompt=tensor(cases.prompt(name, case, options, vision.width)), gt_selection_maps=tensor(cases.given(options, base)),
                 output_hidden_states=not options.get("pooled"), **asked)
    found = {f"prob{i}": p for i, p in enumerate(out.selection_probs)}
    for t, maps in enumerate(looks):
        found |= {f"look{t}.map{i}": m.to(torch.uint8) for i, m in enumerate(maps)}
    if options.get("pooled"):
        found["pooled"] = out.pooled_output
        found |= {f"prior{i}": p for i, p in enumerate(out.bottomup_selection_probs)}
        found |= {f"asked{i}": p for i, p in enumerate(out.topdown_selection_probs or [])}
    else:
        found["tokens"] = out.last_hidden_state
        if options.get("hidden"):
            found |= {f"hidden{i}": h for i, h in enumerate(out.hidden_states)}
        if options.get("feature_maps"):
            found |= {f"feature_map{i}": m for i, m in enumerate(vision.format_features_into_feature_maps(out.last_hidden_state, out.selection_maps))}
    if case in ("none", "one"):
        found |= {f"low.{key}": value for key, value in encode_low(vision, pixels).items()}
    return found


def main(out: Path) -> None:
    for name in cases.MODELS:
        model = make(name, out / name / "checkpoint")
        write = lambda case, found: save_file({key: value.clone().contiguous() for key, value in found.items()}, out / name / f"{case}.safetensors")
        for case, options in cases.CASES.get(name, {}).items():
            write(case, answer(model, name, case, options))
        if cases.MODELS[name]["text"] is not None:
            text = model.encode_text(torch.from_numpy(cases.text_ids(name)))
            write("text", {"pooled": text.pooled_output, "prompt": text.prompt})


if __name__ == "__main__":
    with torch.inference_mode():
        main(Path(sys.argv[1]))
