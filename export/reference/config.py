"""What a PS3 checkpoint's config.json says, as frozen dataclasses. Imports no torch.

Accepted: `model_type` ps3 (text and vision), ps3_vision_model (vision alone, also a VILA-HD vision_tower folder).
A key that is absent has the value that ps3-torch 0.1.3 gives it. The trunk's shape is not in the file, only its timm name:
KNOWN_TRUNKS has the published ones, an object `golden_trunk` in the file describes any other.
Source: NVlabs/PS3 @ f7e3fd4, configuration_ps3; timm 1.0.15, vision_transformer.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ps3_sdk.errors import ExportError

from .fields import Fields

VIEW_PX = 1512      # side of the picture the view network scores; the same for every scale set


@dataclass(frozen=True)
class TrunkShape:
    """A plain ViT without class token. position_grid: side of its stored position table, in patches."""
    patch_px: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    position_grid: int

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


KNOWN_TRUNKS = {
    "vit_so400m_patch14_siglip_384": TrunkShape(14, 1152, 27, 16, 3.7362, 27),
    "vit_so400m_patch14_siglip_378": TrunkShape(14, 1152, 27, 16, 3.7362, 27),
    "vit_large_patch16_224": TrunkShape(16, 1024, 24, 16, 4.0, 14),
}
_SIGLIP2_TRUNKS = ("vit_so400m_patch14_siglip_378",)
_WITH_CLASS_TOKEN = ("vit_large_patch16_224",)      # unless the file turns it off
RADIO_POOL = (1152, 16, 3.7362)                     # width, heads, mlp ratio of the SigLIP head behind the C-RADIO adapter


@dataclass(frozen=True)
class VisionConfig:
    """Field names are the file's where the file has them.

    scales_px: ascending, the first is the low-res one | select_based_on_layer: block indices >= 0 whose outputs are the
    selection features | per_look: patches one look takes of each high-res scale | factored_pos_emb: our own extension, the residual
    position of a scale is a row's plus a column's instead of a table of every place | view_*: the network on the 1512 px view;
    meaningful when highres_selection_feature | pool_*: the attention pool, whose width is the pooled feature's.
    """
    model_name: str
    trunk: TrunkShape
    scales_px: tuple[int, ...]
    select_based_on_layer: tuple[int, ...]
    per_look: tuple[int, ...]
    separate_pos_emb: bool
    factored_pos_emb: bool
    highres_selection_feature: bool
    view_hidden_width: int
    view_width: int
    view_depth: int
    view_patch_px: int
    radio: bool
    final_norm: bool
    radio_adapter_mlp_version: str | None
    radio_adapter_mlp_hidden_dim: int | None
    radio_adapter_mlp_num_inner: int | None
    pool_width: int
    pool_heads: int
    pool_mlp_ratio: float

    view_px = VIEW_PX

    @property
    def width(self) -> int:
        return self.trunk.width

    @property
    def feature_width(self) -> int:
        return self.trunk.width * len(self.select_based_on_layer)

    @property
    def grids(self) -> tuple[int, ...]:
        """Patches per side of each scale of a square picture."""
        return tuple(px // self.trunk.patch_px for px in self.scales_px)

    @property
    def view_grid(self) -> int:
        return self.view_px // self.view_patch_px


@dataclass(frozen=True)
class TextConfig:
    """The text tower. width, heads, layers, mlp_ratio: its transformer | output_dim: the contrastive feature's width |
    prompt_proj_dim: the prompt's width | act_kwargs, norm_kwargs: options of GELU and LayerNorm, e.g. approximate and eps."""
    output_dim: int
    prompt_proj_dim: int
    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int
    mlp_ratio: float
    ls_init_value: float | None
    embed_cls: bool
    pad_id: int
    no_causal_mask: bool
    pool_type: str
    proj_bias: bool
    act_kwargs: dict = field(default_factory=dict)
    norm_kwargs: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Ps3Config:
    """model_type: ps3 or ps3_vision_model | text: None for a vision-only checkpoint."""
    model_type: str
    vision: VisionConfig
    text: TextConfig | None

    @property
    def family(self) -> str:
        """siglip, siglip2 or c-radio."""
        if self.vision.radio:
            return "c-radio"
        tanh = self.text is not None and self.text.act_kwargs.get("approximate") == "tanh"
        return "siglip2" if tanh or self.vision.model_name in _SIGLIP2_TRUNKS else "siglip"

    @classmethod
    def read(cls, folder: str | Path) -> "Ps3Config":
        """The config.json of a checkpoint folder. Raises ExportError naming the key that is wrong."""
        return cls.parse(Fields.read(Path(folder) / "config.json"))

    @classmethod
    def from_dict(cls, values: dict) -> "Ps3Config":
        return cls.parse(Fields(values, "config.json"))

    @classmethod
    def parse(cls, fields: Fields) -> "Ps3Config":
        kind = fields.values.get("model_type")
        if kind == "ps3_vision_model":
            return cls(kind, _vision(fields), None)
        if kind != "ps3":
            todo = "Pass its vision_tower folder." if "vision_tower_cfg" in fields.values else "Pass a PS3 checkpoint, e.g. nvidia/PS3-4K-SigLIP2."
            raise fields.refuse("model_type", "ps3 or ps3_vision_model is needed", todo)
        config = cls(kind, _vision(fields.section("vision_config")), _text(fields.section("text_config")))
        if config.text.prompt_proj_dim != config.vision.width:
            raise ExportError(f"[config] text_config.prompt_proj_dim is {config.text.prompt_proj_dim} and the vision trunk is {config.vision.width} wide; "
                              "a prompt must be as wide as the trunk. Use the config.json that came with these weights.")
        return config


def _vision(f: Fields) -> VisionConfig:
    scales = _scales(f)
    trunk = _trunk(f, scales[0])
    for px in scales:
        if px % scales[0] or px % trunk.patch_px:
            raise f.refuse("ps3_scales" if "ps3_scales" in f else "s3_scales",
                           f"every scale must be a multiple of the first and of the {trunk.patch_px} px patch", "Correct the file.")
    if f.values.get("pool", "avg") != "map":
        raise f.refuse("pool", 'PS3 pools with attention, "map" is needed', "Correct the file.")
    if not f.flag("dynamic_img_size", True):
        raise f.refuse("dynamic_img_size", "several scales share one position table, true is needed", "Correct the file.")
    radio = f.flag("radio", False)
    return VisionConfig(
        model_name=f.text("model_name", ""), trunk=trunk, scales_px=scales, select_based_on_layer=_layers(f, trunk.depth), per_look=_per_look(f, scales),
        separate_pos_emb=f.flag("separate_pos_emb", True), factored_pos_emb=f.flag("factored_pos_emb", False), highres_selection_feature=f.flag("highres_selection_feature", True),
        view_hidden_width=f.count("highres_selection_module_hidden_dim", 512), view_width=f.count("highres_selection_module_out_dim", 512),
        view_depth=f.count("highres_selection_module_depth", 3, low=0), view_patch_px=f.count("highres_selection_module_kernel_size", 28),
        radio=radio, final_norm=not radio or f.flag("final_norm", False), **_adapter(f, trunk, radio))


def _scales(f: Fields) -> tuple[int, ...]:
    """ps3_scales, or s3_scales as older files call it, ascending."""
    new, old = f.counts("ps3_scales", None), f.counts("s3_scales", None)
    if new and old and sorted(new) != sorted(old):
        raise f.refuse("s3_scales", f"it contradicts ps3_scales {list(new)}", "Remove the one that does not fit the weights.")
    scales = tuple(sorted(new or old or (378, 756, 1512)))
    if len(scales) < 2 or len(set(scales)) < len(scales):
        raise f.refuse("ps3_scales" if new else "s3_scales", "at least two different scales are needed", "Correct the file.")
    return scales


def _trunk(f: Fields, low_px: int) -> TrunkShape:
    name, class_token = (f.text("model_name", None) or "").split(".")[0], f.flag("class_token", None)     # name.tag is timm's form
    if "golden_trunk" in f:
        shape = f.section("golden_trunk")
        shape.only("depth", "embed_dim", "mlp_ratio", "num_heads", "patch_size", "pos_embed_grid", "pool_embed_dim", "pool_num_heads")
        patch_px = shape.count("patch_size", None) or 14
        trunk = TrunkShape(patch_px, shape.count("embed_dim", 0), shape.count("depth", 0), shape.count("num_heads", 0),
                           shape.number("mlp_ratio", 4.0), shape.count("pos_embed_grid", low_px // patch_px))
        if trunk.width % trunk.num_heads:
            raise shape.refuse("num_heads", f"a divisor of embed_dim {trunk.width} is needed", "Correct the file.")
    elif name in KNOWN_TRUNKS:
        trunk = KNOWN_TRUNKS[name]
        class_token = class_token if class_token is not None else name in _WITH_CLASS_TOKEN
    else:
        raise f.refuse("model_name", f"the known trunks are {', '.join(KNOWN_TRUNKS)}",
                       'For another plain ViT describe it beside model_name: "golden_trunk": {"patch_size": .., "embed_dim": .., "depth": .., '
                       '"num_heads": .., "mlp_ratio": .., "pos_embed_grid": ..}.')
    if class_token:
        raise f.refuse("class_token", "PS3 trunks have no class token, false is needed", "Correct the file.")
    img_size = f.count("img_size", None)
    if img_size and "golden_trunk" not in f:
        trunk = replace(trunk, position_grid=img_size // trunk.patch_px)
    return trunk


def _layers(f: Fields, depth: int) -> tuple[int, ...]:
    layers = f.counts("select_based_on_layer", (0, 9, 18, 26), low=-depth)
    if max(layers) >= depth:
        raise f.refuse("select_based_on_layer", f"the trunk has blocks 0 to {depth - 1}", "Correct the file.")
    return tuple(layer % depth for layer in layers)


def _per_look(f: Fields, scales: tuple[int, ...]) -> tuple[int, ...]:
    """int(max_select_num * s_i^2 / sum of s_j^2) over the high-res scales, unless the file lists them."""
    given = f.counts("max_select_num_each_scale", None, low=0)
    if given is None:
        pixels = [px * px for px in scales[1:]]
        return tuple(f.count("max_select_num", 1280) * area // sum(pixels) for area in pixels)
    if len(given) != len(scales) - 1 or not sum(given):
        raise f.refuse("max_select_num_each_scale", f"one count for each of the {len(scales) - 1} high-res scales is needed", "Correct the file.")
    return given


def _adapter(f: Fields, trunk: TrunkShape, radio: bool) -> dict:
    """What stands between the trunk and the attention pool, and the pool's shape."""
    if not radio:
        return dict(radio_adapter_mlp_version=None, radio_adapter_mlp_hidden_dim=None, radio_adapter_mlp_num_inner=None,
                    pool_width=trunk.width, pool_heads=trunk.num_heads, pool_mlp_ratio=trunk.mlp_ratio)
    width, heads, ratio = RADIO_POOL
    if "golden_trunk" in f:
        shape = f.section("golden_trunk")
        width, heads = shape.count("pool_embed_dim", width), shape.count("pool_num_heads", heads)
        if width % heads:
            raise shape.refuse("pool_num_heads", f"a divisor of pool_embed_dim {width} is needed", "Correct the file.")
    for key, needed in (("radio_adapter_mlp_input_dim", trunk.width), ("radio_adapter_mlp_output_dim", width)):
        if f.values.get(key) != needed:
            raise f.refuse(key, f"{needed} is needed, it joins the trunk to the attention pool", "Correct the file.")
    if "radio_adapter_mlp_hidden_dim" not in f:
        raise f.refuse("radio_adapter_mlp_hidden_dim", "a C-RADIO model needs its adapter's width", "Correct the file.")
    return dict(radio_adapter_mlp_version=f.choice("radio_adapter_mlp_version", "", ("v1", "v2")),
                radio_adapter_mlp_hidden_dim=f.count("radio_adapter_mlp_hidden_dim", None),
                radio_adapter_mlp_num_inner=f.count("radio_adapter_mlp_num_inner", 0, low=0), pool_width=width, pool_heads=heads, pool_mlp_ratio=ratio)


def _text(f: Fields) -> TextConfig:
    """final_ln_after_pool, output_tokens and the tokenizer's name are read by nothing in PS3's text tower."""
    act, norm = Fields(f.values.get("act_kwargs") or {}, f.file, "text_config.act_kwargs"), Fields(f.values.get("norm_kwargs") or {}, f.file, "text_config.norm_kwargs")
    act.only("approximate")
    norm.only("eps")
    width, heads = f.count("width", 512), f.count("heads", 8)
    if width % heads:
        raise f.refuse("heads", f"a divisor of width {width} is needed", "Correct the file.")
    return TextConfig(
        output_dim=f.count("output_dim", 1152), prompt_proj_dim=f.count("prompt_proj_dim", 1152), context_length=f.count("context_length", 77),
        vocab_size=f.count("vocab_size", 49408), width=width, heads=heads, layers=f.count("layers", 12), mlp_ratio=f.number("mlp_ratio", 4.0),
        ls_init_value=f.number("ls_init_value", None), embed_cls=f.flag("embed_cls", False), pad_id=f.count("pad_id", 0, low=0),
        no_causal_mask=f.flag("no_causal_mask", False), pool_type=f.choice("pool_type", "argmax", ("first", "last", "argmax", "none")),
        proj_bias=f.flag("proj_bias", False),
        act_kwargs={"approximate": act.choice("approximate", "none", ("none", "tanh"))} if "approximate" in act else {},
        norm_kwargs={"eps": norm.number("eps", 1e-5)} if "eps" in norm else {})
