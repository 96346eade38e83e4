"""The small model: its configuration, its folder in the layout of a VILA-HD checkpoint, its first weights.

The classes are the reference's (ps3_sdk.export.reference.vila); only the sizes are small. Patch 14, scales 378, 756, 1512, 3780, a
language model of Qwen2's architecture. Position residuals are a row's plus a column's: a table of every place would weigh more
than the model, and each of its rows would hardly ever be trained.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ps3_sdk.atomic import replaced
from ps3_sdk.errors import InputError
from ps3_sdk.export.reference.vila.chat import Chat
from ps3_sdk.export.reference.vila.config import CONFIDENCE, VilaConfig
from ps3_sdk.export.reference.vila.model import VilaHd

from .tokenizer import ADDED, make_tokenizer

SCALES_PX = (378, 756, 1512, 3780)
SYSTEM = "See"
NOT_SEEN = "not visible"


@dataclass(frozen=True)
class Sizes:
    """What may differ between a quick and a long training. mlp widths: 4 times the vision width, mlp of the language model as given."""
    vision_width: int = 128
    vision_depth: int = 8
    vision_heads: int = 4
    view_hidden: int = 128
    view_width: int = 96
    language_width: int = 192
    language_depth: int = 5
    language_heads: int = 6
    language_mlp: int = 512
    num_token: int = 482          # four low-res places at every scale, 4 * (4 + 16 + 100), and 2 that rounding takes
    around: int = 1               # places looked at closely are the most probable one's neighbours


def write_folder(folder: str | Path, sizes: Sizes = Sizes(), vocabulary: int = 448) -> Path:
    """The JSON files and the tokenizer of a checkpoint folder; the weights are added by save(). A folder that has them stays as it is."""
    folder, depth = Path(folder), sizes.vision_depth
    if (folder / "llm/tokenizer.json").exists():
        return folder
    tokenizer, settings = make_tokenizer(vocabulary)
    layers = sorted({0, depth // 3, 2 * depth // 3, depth - 1})
    files = {
        "config.json": {
            "model_type": "llava_topdown_llama", "architectures": ["LlavaTopDownLlamaModel"], "ps3": True, "look_close_mode": "after_prompt",
            "top_down_prompt_head_type": "linear", "high_res_pos_embed": True, "high_res_prob_embed": True, "image_aspect_ratio": "resize", "mm_vision_select_feature": "cls_patch",
            "mm_vision_select_layer": -1, "not_seen": NOT_SEEN, "lower_case": True, "num_look_close": None, "num_token_look_close": sizes.num_token, "look_close_around": sizes.around, "image_encoder": None,
            "llm_cfg": {}, "vision_tower_cfg": {}, "mm_projector_cfg": {}},
        "mm_projector/config.json": {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample_2x2_fix"},
        "vision_tower/config.json": {
            "model_type": "ps3_vision_model", "model_name": "ps3_nano", "hidden_size": sizes.vision_width, "pool": "map",
            "golden_trunk": {"patch_size": 14, "embed_dim": sizes.vision_width, "depth": depth, "num_heads": sizes.vision_heads, "mlp_ratio": 4.0, "pos_embed_grid": 27},
            "ps3_scales": list(SCALES_PX), "select_based_on_layer": layers, "max_select_num": 2560, "separate_pos_emb": True, "factored_pos_emb": True,
            "highres_selection_module_hidden_dim": sizes.view_hidden, "highres_selection_module_out_dim": sizes.view_width, "highres_selection_module_depth": 3},
        "vision_tower/preprocessor_config.json": {
            "image_processor_type": "PS3ImageProcessor", "image_size": [SCALES_PX[-1]] * 2, "resize_mode": "squash", "interpolation": "bicubic",
            "mean": [0.5] * 3, "std": [0.5] * 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "llm/config.json": {
            "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": sizes.language_width,
            "intermediate_size": sizes.language_mlp, "num_hidden_layers": sizes.language_depth, "num_attention_heads": sizes.language_heads,
            "num_key_value_heads": sizes.language_heads, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
            "bos_token_id": tokenizer.token_to_id(ADDED[0]), "eos_token_id": tokenizer.token_to_id("<|im_end|>")},
        "llm/tokenizer_config.json": settings,
    }
    for name, values in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    (folder / "llm/tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    return folder


def copy_folder(source: str | Path, folder: str | Path, changed: dict[Path, dict] | None = None) -> Path:
    """Configuration and tokenizer of a checkpoint folder for a training that goes on from its weights: other token ids would be other words.

    changed: files of JSON, by their paths inside, that are written with these values instead. Raises InputError: `folder` has other ones already.
    """
    source, folder = Path(source), Path(folder)
    for path in sorted(path for path in source.rglob("*.json") if path.name != CONFIDENCE):      # that is of the weights that were measured
        inside = path.relative_to(source)
        made, wanted = folder / inside, path.read_bytes()
        if changed is not None and inside in changed:
            wanted = (json.dumps(changed[inside], indent=1) + "\n").encode()
        if made.exists() and made.read_bytes() != wanted:
            raise InputError(f"[training] {made} is not what {path} is, so its weights do not fit. Begin in another RUN folder.")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(wanted)
    return folder


def new_model(folder: str | Path, seed: int = 0) -> VilaHd:
    """A model of the folder's configuration with first weights."""
    config = VilaConfig.read(Path(folder))
    model = VilaHd(config, Chat(config.folders["llm"], config.chat_template, config.lower_case))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_first(name, parameter, generator))
        _first_positions(model)
    model.llm.cut_vocabulary(model.chat.size)
    return model


def _first(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros_like(parameter)
    if parameter.ndim == 1:
        if name.endswith("prior_prompt"):
            return torch.randn(parameter.shape, generator=generator) * 0.1
        return torch.full_like(parameter, 0.5) if name.endswith(".weight") and "highres_selection" in name and "norm" not in name and "stem" not in name else torch.ones_like(parameter)
    fan_in = math.prod(parameter.shape[1:])
    gain = 0.02 if "embed" in name else fan_in ** -0.5
    if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")):
        gain *= 0.3         # what blocks add starts small
    if name.endswith("high_res_prob_embed"):
        return torch.randn(parameter.shape, generator=generator) * 0.35     # as long as the rows it is added to
    if name.startswith("projector.layers.4."):
        gain *= 0.3         # rows about as long as their position: where a row is must not drown in what it shows
    return torch.randn(parameter.shape, generator=generator) * gain


def _first_positions(model: VilaHd) -> None:
    """Sines of places: slow ones in the low-res table, which is resampled, and all the way down to four patches in the residuals."""
    vision = model.vision.vision_model
    width = vision.config.width
    rows, columns = torch.meshgrid(torch.arange(27.0), torch.arange(27.0), indexing="ij")
    vision.trunk.pos_embed.copy_(0.3 * torch.cat([_sines(rows.flatten(), width // 2, 4, 54), _sines(columns.flatten(), width // 2, 4, 54)], dim=1))
    for part, other in ((vision.pos_emb_residual_rows, False), (vision.pos_emb_residual_columns, True)):
        for table in part:
            half = _sines(torch.arange(float(table.shape[1])), width // 2, 3, 64)
            table.zero_()
            (table[0, :, width // 2:] if other else table[0, :, :width // 2]).copy_(0.3 * half)
    projector = model.projector
    if projector.high_res_pos_embed is not None:
        width = projector.high_res_pos_embed.shape[-1]
        projector.high_res_pos_embed.copy_(0.5 * torch.cat([_sines(rows.flatten(), width // 2, 2, 54), _sines(columns.flatten(), width // 2, 2, 54)], dim=1)[None])


def _sines(places: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """(n,) places -> (n, width): sines and cosines of periods from `shortest` to `longest`."""
    periods = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 2)
    angle = places[:, None] * (2 * math.pi / periods)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


@torch.no_grad()
def first_patch_embedding(model: VilaHd, patches: Tensor, seed: int = 0) -> None:
    """Patch embedding = whitened principal components of real patches, turned at random: (n, 588) normalised pixels.

    Reading starts more than twice as fast as from random filters.
    """
    proj = model.vision.vision_model.trunk.patch_embed.proj
    width = proj.weight.shape[0]
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((patches - mean).T))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
    weight = 0.5 * turn @ (vectors / (values + 1e-3).sqrt()).T
    proj.weight.copy_(weight.reshape(proj.weight.shape))
    proj.bias.copy_(-weight @ mean)


@torch.no_grad()
def load(model: VilaHd, folder: str | Path) -> None:
    """The weights of a checkpoint folder that save() wrote into a model of the same configuration. Raises RuntimeError: other names or shapes."""
    from safetensors.torch import load_file
    for name, part in _parts(model).items():
        part.load_state_dict(load_file(Path(folder) / name / "model.safetensors"))


def _parts(model: VilaHd) -> dict[str, nn.Module]:
    return {"vision_tower": model.vision, "mm_projector": model.projector, "llm": model.llm}


def save(model: VilaHd, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """The weights into a folder made by write_folder, in the layout that NVIDIA's checkpoints have; each file is written beside and renamed. How sure other
    weights were is forgotten."""
    from safetensors.torch import save_file
    (Path(folder) / CONFIDENCE).unlink(missing_ok=True)
    for name, part in _parts(model).items():
        with replaced(Path(folder) / name / "model.safetensors") as beside:
            save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in part.state_dict().items()}, beside)
