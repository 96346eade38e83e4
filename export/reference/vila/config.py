"""What the files of a VILA-HD checkpoint say, as frozen dataclasses. Imports no torch.

A checkpoint is a folder with config.json (model_type llava_topdown_llama) and the sub-folders llm/, vision_tower/ and
mm_projector/, each with its own config.json and weights. Sizes that the top-level file repeats (hidden_size, mm_hidden_size,
mm_low_res_token_num, mm_scale_num) are stale copies; they are taken from the parts.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ps3_sdk.errors import ExportError, InputError

from ..config import Ps3Config, VisionConfig
from ..fields import Fields
from ..side_files import PreprocessorConfig

PROJECTORS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projector type -> r: one language token is made of a block of r x r patches."""
MODES = ("after_prompt", "after_image")
RULES = ("patches", "blocks")
LANGUAGE_MODELS = ("qwen2", "llama", "mistral")
_PARTS = {"llm_cfg": "llm", "vision_tower_cfg": "vision_tower", "mm_projector_cfg": "mm_projector"}
CONFIDENCE, CONFIDENCE_KEYS, UNSEEN, AGAIN = "confidence.json", ("bias", "text", "place"), "unseen", "again"
_NO_LIMIT = 10 ** 9     # tokenizers without a limit store a number like 1e30


@dataclass(frozen=True)
class LookOptions:
    """How closely a frame is looked at. dataclasses.replace(config.looks, num_looks=3) changes one of a checkpoint's own.

    mode: after_prompt, the question says where, or after_image, the tower's prior does | num_looks: rounds, or "all"; 0 for none |
    num_tokens: patches of all looks together, wins over num_looks unless that is 0 | per_look: patches one look takes of each
    high-res scale, None for the tower's own | smooth: average the probabilities over 6 x 6 areas |
    rule: patches, the best ones, ties to the lower id (the public model leaves ties open), or blocks, whole blocks (see blocks.py) |
    around: ours, not the public model's: places within so many of the most probable one are picked first, by prompts alone.
    """
    mode: str = "after_prompt"
    num_looks: int | str = 1
    num_tokens: int | None = None
    per_look: tuple[int, ...] | None = None
    smooth: bool = False
    rule: str = "patches"
    around: int | None = None

    def __post_init__(self):
        for name, known in (("mode", MODES), ("rule", RULES)):
            if getattr(self, name) not in known:
                raise InputError(f"[select] {name} is {getattr(self, name)!r}; one of {', '.join(known)} is needed.")
        counts = self.per_look
        if counts is not None and (not counts or not sum(counts) or not all(isinstance(n, int) and n >= 0 for n in counts)):
            raise InputError(f"[select] per_look is {counts}; a count of at least 0 for each high-res scale is needed, not all 0.")


@dataclass(frozen=True)
class LlmConfig:
    """The language model. bias: of the query, key and value projections | rope_factor: positions are divided by it |
    vocab_size: rows of the stored embedding, of which more may exist than the tokenizer has ids."""
    model_type: str
    vocab_size: int
    width: int
    mlp_width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    bias: bool
    norm_epsilon: float
    rope_theta: float
    rope_factor: float
    tied: bool
    max_positions: int

    @classmethod
    def parse(cls, f: Fields) -> "LlmConfig":
        kind = f.choice("model_type", "", LANGUAGE_MODELS)
        f.choice("hidden_act", "silu", ("silu",))
        width, heads = _needed(f, "hidden_size"), _needed(f, "num_attention_heads")
        kv_heads = f.count("num_key_value_heads", None) or heads
        if heads % kv_heads:
            raise f.refuse("num_key_value_heads", f"a divisor of num_attention_heads {heads} is needed", "Correct the file.")
        head_width = f.count("head_dim", None) or width // heads
        if head_width % 2 or ("head_dim" not in f and width % heads):
            raise f.refuse("num_attention_heads", f"it must divide hidden_size {width} into even heads", "Correct the file.")
        positions = _needed(f, "max_position_embeddings")
        _no_window(f, kind, positions)
        for key in ("attention_bias", "mlp_bias"):
            if f.flag(key, False):
                raise f.refuse(key, "false is needed, no VILA-HD model has it", "Use another language model.")
        return cls(kind, _needed(f, "vocab_size"), width, _needed(f, "intermediate_size"), _needed(f, "num_hidden_layers"), heads, kv_heads, head_width,
                   kind == "qwen2", f.number("rms_norm_eps", 1e-6), *_rope(f), f.flag("tie_word_embeddings", False), positions)


@dataclass(frozen=True)
class VilaConfig:
    """folders: of llm, vision_tower, mm_projector | downsample: r of the projector | prompt_head: linear, mlp, or None where the
    checkpoint has none (look_close_mode after_image) | token_layer: the vision block whose output is seen, -1 or -2 |
    dynamic_sizes: the frame's original size may leave out the finest scale | prob_embedding, not_seen: our own extensions, rows told how probable their
    place is, and the answer by which the model says that it cannot see what was asked | lower_case: ours, too, questions are read in lower case, as all were that it learnt from | confidence: ours, too, of confidence.json: bias, text and place, see
    ps3_sdk.probability.calibrated, and maybe unseen, the probability from which on alone not_seen is said, and again, how sure
    an answer is that is not looked for again | chat_template: qwen2, mistral, or None for the
    tokenizer's own | max_rows: prompt and answer together, in rows of the language model | mean, std: of the pixels."""
    folders: dict[str, Path]
    llm: LlmConfig
    vision: VisionConfig
    projector: str
    prompt_head: str | None
    position_embedding: bool
    prob_embedding: bool
    token_layer: int
    looks: LookOptions
    dynamic_sizes: bool
    chat_template: str | None
    not_seen: str | None
    lower_case: bool
    confidence: dict[str, float] | None
    max_rows: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def downsample(self) -> int:
        return PROJECTORS[self.projector]

    @property
    def low_grid(self) -> int:
        """Low-res tokens per side after the projector; the last ones may be padded."""
        return -(-self.vision.grids[0] // self.downsample)

    def max_rows_of(self, options: LookOptions) -> int:
        """max_rows, raised for many looks as the public command line does (it reckons with r = 2 and one frame)."""
        rows = [self.max_rows]
        if isinstance(options.num_looks, int):
            rows.append(options.num_looks * 2560 // 4 + 1024)
        if options.num_tokens is not None:
            rows.append(options.num_tokens // 4 + 1024)
        return max(rows)

    @classmethod
    def read(cls, folder: str | Path) -> "VilaConfig":
        """Raises ExportError naming the file and the key that is wrong, or the sub-folder that is not there."""
        folder = Path(folder)
        f = Fields.read(folder / "config.json")
        if f.values.get("model_type") != "llava_topdown_llama":
            raise f.refuse("model_type", "llava_topdown_llama is needed", "Pass a VILA-HD checkpoint, e.g. nvidia/VILA-HD-8B-PS3-4K-SigLIP2.")
        if not f.flag("ps3", False):
            raise f.refuse("ps3", "true is needed, this model looks closely through PS3", "Pass a VILA-HD checkpoint.")
        folders = {name: _part(f, folder, key, name) for key, name in _PARTS.items()}
        vision = Ps3Config.read(folders["vision_tower"]).vision
        projector = _projector(folders["mm_projector"])
        for px, grid in zip(vision.scales_px[1:], vision.grids[1:]):
            if grid % PROJECTORS[projector]:
                raise ExportError(f"[config] the {px} px scale has {grid} patches a side and {projector} takes {PROJECTORS[projector]} of them for one token; "
                                  "a multiple is needed. Use the projector that came with this tower.")
        _image_encoder(f)
        f.choice("image_aspect_ratio", "", ("resize",))
        if f.values.get("mm_vision_select_feature") != "cls_patch":
            raise f.refuse("mm_vision_select_feature", "cls_patch is needed (patch drops the first low-res token, which the public model does not survive)",
                           "Use the config.json that came with these weights.")
        layer = f.values.get("mm_vision_select_layer")
        if layer not in (-1, -2) or isinstance(layer, bool):
            raise f.refuse("mm_vision_select_layer", "-1 or -2 is needed, the tower keeps two layers", "Use the config.json that came with these weights.")
        mode = f.choice("look_close_mode", "", MODES)
        llm, pixels = LlmConfig.parse(Fields.read(folders["llm"] / "config.json")), PreprocessorConfig.read(folders["vision_tower"], vision.scales_px[-1])
        return cls(
            folders, llm, vision, projector, f.choice("top_down_prompt_head_type", "linear", ("linear", "mlp")) if mode == "after_prompt" else None,
            f.flag("high_res_pos_embed", False), f.flag("high_res_prob_embed", False), layer, _looks(f, mode),
            bool(f.flag("ps3_dynamic_aspect_ratio", None)), f.text("chat_template", None), f.text("not_seen", None), f.flag("lower_case", False), _confidence(folder), _max_rows(folders["llm"], llm), pixels.mean, pixels.std)


def _confidence(folder: Path) -> dict[str, float] | None:
    if not (folder / CONFIDENCE).exists():
        return None
    f = Fields.read(folder / CONFIDENCE)
    f.only(*CONFIDENCE_KEYS, UNSEEN, AGAIN)
    if missing := [key for key in CONFIDENCE_KEYS if key not in f]:
        raise f.refuse(missing[0], "a number is needed", "Make the file anew: python -m ps3_sdk.training.confidence.")
    shares = {key: f.number(key, None, above=0, below=1) for key in (UNSEEN, AGAIN) if key in f}
    return {key: f.number(key, None, above=-1000, below=1000) for key in CONFIDENCE_KEYS} | shares


def _needed(f: Fields, key: str) -> int:
    if key not in f:
        raise f.refuse(key, "an integer of at least 1 is needed", "Use the file published with the model.")
    return f.count(key, None)


def _looks(f: Fields, mode: str) -> LookOptions:
    num_looks = f.count("num_look_close", None, low=0)
    return LookOptions(mode, 1 if num_looks is None else num_looks, f.count("num_token_look_close", None, low=0), around=f.count("look_close_around", None))


def _part(f: Fields, folder: Path, key: str, name: str) -> Path:
    """A dict stands for the sub-folder of that name; a string is a path, relative to the checkpoint's folder."""
    value = f.values.get(key)
    if not isinstance(value, (dict, str)):
        raise f.refuse(key, "an object or a folder is needed", "Use the file published with the model.")
    part = folder / (value if isinstance(value, str) else name)
    if not part.is_dir():
        raise ExportError(f"[config] {key} of {f.file} stands for {part}, which is no folder; a VILA-HD checkpoint has {', '.join(_PARTS.values())}. "
                          "Download the missing folder.")
    return part


def _projector(folder: Path) -> str:
    f = Fields.read(folder / "config.json")
    return f.choice("mm_projector_type", "", tuple(PROJECTORS))


def _image_encoder(f: Fields) -> None:
    """Only the plain encoder, which ends every image with a line break, exists for VILA-HD."""
    value = f.values.get("image_encoder")
    if value is None:
        return
    try:
        encoder = json.loads(value) if isinstance(value, str) else dict(value)
        plain = str(encoder["_target_"]).split(".")[-1] == "BasicImageEncoder" and encoder.get("start_tokens") is None and encoder.get("end_tokens", "\n") == "\n"
    except (ValueError, TypeError, KeyError, AttributeError):
        plain = False
    if not plain:
        raise f.refuse("image_encoder", 'BasicImageEncoder without start_tokens and with end_tokens "\\n" is needed', "Use another checkpoint.")


def _rope(f: Fields) -> tuple[float, float]:
    """rope_theta and rope_factor. transformers 5 writes both into rope_parameters; of older files rope_scaling wins over it, as it does there."""
    theta, key = f.number("rope_theta", 10000.0), next((key for key in ("rope_scaling", "rope_parameters") if f.values.get(key)), None)
    _whole_heads(f)
    if key is None:
        return theta, 1.0
    rope = f.section(key)
    _whole_heads(rope)
    kind = rope.values.get("rope_type", rope.values.get("type", "default" if "rope_theta" in rope else None))
    if kind not in ("linear", "default"):
        raise f.refuse(key, "none, default or linear is needed", "Use another language model.")
    return rope.number("rope_theta", theta), rope.number("factor", 1.0) if kind == "linear" else 1.0


def _whole_heads(f: Fields) -> None:
    if f.number("partial_rotary_factor", 1.0) != 1:
        raise f.refuse("partial_rotary_factor", "1 is needed, positions turn whole heads here", "Use another language model.")


def _no_window(f: Fields, kind: str, positions: int) -> None:
    """Attention here sees every earlier row."""
    window = f.count("sliding_window", 4096 if kind == "mistral" and "sliding_window" not in f.values else None)
    active = f.flag("use_sliding_window", False) if kind == "qwen2" else kind == "mistral" and window is not None
    if active and (window is None or window < positions):
        raise f.refuse("sliding_window", f"attention over all {positions} positions is needed", "Use a model without sliding windows.")


def _max_rows(folder: Path, llm: LlmConfig) -> int:
    limit = Fields.read(folder / "tokenizer_config.json").number("model_max_length", None)
    return llm.max_positions if limit is None or limit > _NO_LIMIT else int(limit)
