"""What is compared with the reference: the models, and for each what is asked of it. Read by run_peer.py and by the tests.

Needs numpy alone, because the reference's environment reads it too. Pictures are made from a seed on both sides.
"""
from __future__ import annotations

import zlib

import numpy as np

SCALES = {"siglip": ((378, 756, 1512), (378, 756, 1512, 3780)), "c-radio": ((384, 768, 1536), (384, 768, 1536, 3840))}

_TEXT = dict(vocab_size=97, context_length=12, width=32, heads=4, layers=2, mlp_ratio=2.5, output_dim=40, pool_type="last", no_causal_mask=True, proj_bias=True)
_VIEW = dict(highres_selection_module_hidden_dim=24, highres_selection_module_out_dim=20, highres_selection_module_depth=2)


def _vision(width: int, scales: tuple[int, ...], layers: list[int], **more) -> dict:
    return dict(hidden_size=width, pool="map", ps3_scales=list(scales), select_based_on_layer=layers, max_select_num=2560, **_VIEW) | more


def _trunk(width: int, depth: int, heads: int, patch: int = 14, grid: int = 27, ratio: float = 3.7362) -> dict:
    return dict(patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio, pos_embed_grid=grid)


def _radio(width: int, version: str, inner: int) -> dict:
    return dict(radio=True, class_token=False, img_size=4096, radio_adapter_mlp_version=version, radio_adapter_mlp_input_dim=width,
                radio_adapter_mlp_hidden_dim=56, radio_adapter_mlp_output_dim=1152, radio_adapter_mlp_num_inner=inner)


SIGLIP2_TEXT = dict(_TEXT, act_kwargs={"approximate": "tanh"}, norm_kwargs={"eps": 1e-6}, mlp_ratio=3.7362)

MODELS = {
    # name: trunk, vision_config, text_config (None: a vision-only checkpoint), how it is saved
    "siglip-1.5k": dict(trunk=_trunk(32, 4, 2), vision=_vision(32, SCALES["siglip"][0], [0, 1, 2, 3]), text=_TEXT, saved="f32"),
    "siglip-4k": dict(trunk=_trunk(48, 3, 3), vision=_vision(48, SCALES["siglip"][1], [0, 2]), text=None, saved="f16"),
    "siglip2-1.5k": dict(trunk=_trunk(32, 3, 4), vision=_vision(32, SCALES["siglip"][0], [-3, 1, 2], separate_pos_emb=False, highres_selection_feature=False),
                         text=SIGLIP2_TEXT, saved="bf16"),
    "siglip2-4k": dict(trunk=_trunk(48, 4, 4), vision=_vision(48, SCALES["siglip"][1], [0, 1, 3], max_select_num_each_scale=[40, 700, 1500]),
                       text=SIGLIP2_TEXT, saved="shards"),
    "c-radio-1.5k": dict(trunk=_trunk(32, 3, 2, 16, 256, 4.0), vision=_vision(32, SCALES["c-radio"][0], [0, 1, 2], final_norm=True, **_radio(32, "v1", 2)),
                         text=_TEXT, saved="f16"),
    "c-radio-4k": dict(trunk=_trunk(48, 3, 3, 16, 256, 4.0), vision=_vision(48, SCALES["c-radio"][1], [0, 2], **_radio(48, "v2", 2)), text=_TEXT, saved="old_name"),
}

_SMALL = _vision(16, (378, 756), [0], highres_selection_feature=False, separate_pos_emb=False)
TEXTS = {
    # text towers no published model has, but the reference can build
    "first": dict(_TEXT, pool_type="first", proj_bias=False), "argmax": dict(_TEXT, pool_type="argmax", no_causal_mask=False),
    "none": dict(_TEXT, pool_type="none"), "layer-scale": dict(_TEXT, ls_init_value=0.3, no_causal_mask=False, act_kwargs={"approximate": "tanh"}),
    "class-token": dict(_TEXT, embed_cls=True, no_causal_mask=False, pad_id=1), "class-token-open": dict(_TEXT, embed_cls=True, proj_bias=False),
}
MODELS |= {f"text-{name}": dict(trunk=_trunk(16, 1, 2), vision=_SMALL, text=text, saved="f32") for name, text in TEXTS.items()}

_ONE = dict(num_look_close=1)
CASES = {
    "siglip-1.5k": {
        "none": dict(num_look_close=0), "one": dict(_ONE, prompt=True, feature_maps=True, hidden=True), "prior_batch": dict(num_look_close=2, batch=2),
        "all": dict(num_look_close="all", prompt=True), "tokens_few": dict(num_token_look_close=700, prompt=True, batch=2),
        "tokens_many": dict(num_token_look_close=3000, prompt=True), "tokens_exact": dict(num_token_look_close=5120),
        "given": dict(_ONE, prompt=True, gt="float"), "given_whole": dict(num_look_close=2, gt="int64"), "smooth": dict(num_look_close=2, prompt=True, smooth_selection_prob=True),
        "given_smooth": dict(_ONE, batch=2, gt="float", smooth_selection_prob=True), "first": dict(num_look_close=3, only_select_first_n_scale=1),
        "first_each": dict(_ONE, batch=2, only_select_first_n_scale=[1, 2]), "first_tokens": dict(num_token_look_close=900, only_select_first_n_scale=2),
        "wide": dict(num_look_close=2, prompt=True, size=(1008, 1512), batch=2), "tall": dict(_ONE, size=(1512, 700), gt="float", feature_maps=True),
        "tall_smooth": dict(num_token_look_close=2000, size=(1500, 901), smooth_selection_prob=True), "other_size": dict(_ONE, prompt=True, size=(640, 640)),
        "pooled": dict(pooled=True, prompt=True, batch=2), "pooled_given": dict(pooled=True, prompt=True, batch=2, gt="float", pool_gt_token_only=True, is_global_text=[False, True]),
        "pooled_given_nowhere": dict(pooled=True, prompt=True, batch=2, gt="float", gt_in=[False, True], pool_gt_token_only=True), "pooled_prior": dict(pooled=True, gt="int64", smooth_selection_prob=True),
    },
    "siglip-4k": {"one": dict(_ONE, prompt=True, feature_maps=True), "first": dict(num_look_close=2, only_select_first_n_scale=2), "tokens": dict(num_token_look_close=3000, prompt=True)},
    "siglip2-1.5k": {"none": dict(num_look_close=0, prompt=True), "two": dict(num_look_close=2, prompt=True), "wide": dict(_ONE, size=(900, 1512), batch=2),
                     "pooled": dict(pooled=True, prompt=True, gt="float", pool_gt_token_only=True)},
    "siglip2-4k": {"one": dict(_ONE, prompt=True), "smooth_wide": dict(num_token_look_close=2500, size=(2126, 3780), smooth_selection_prob=True)},
    "c-radio-1.5k": {"none": dict(num_look_close=0), "two_batch": dict(num_look_close=2, prompt=True, batch=2, feature_maps=True), "wide": dict(_ONE, size=(1000, 1536)),
                     "tall_given": dict(num_token_look_close=2600, size=(1536, 800), gt="float"), "pooled": dict(pooled=True, prompt=True, batch=2, is_global_text=[True, False])},
    "c-radio-4k": {"one": dict(_ONE, prompt=True), "pooled": dict(pooled=True, gt="float", pool_gt_token_only=True)},
}


def _generator(*words) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, words)).encode()))


def pixels(model: str, case: str, options: dict, base_px: int) -> np.ndarray:
    """(batch, 3, height, width) f32 in [-1, 1]: coarse colour fields under fine noise."""
    height, width = options.get("size", (base_px, base_px))
    g, batch = _generator(model, case, "pixels"), options.get("batch", 1)
    coarse = g.integers(0, 192, (batch, 3, 7, 9), dtype=np.uint8)
    rows, cols = np.arange(height) * 7 // height, np.arange(width) * 9 // width
    picture = coarse[:, :, rows][:, :, :, cols] + g.integers(0, 64, (batch, 3, height, width), dtype=np.uint8)
    return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)


def prompt(model: str, case: str, options: dict, width: int) -> np.ndarray | None:
    """(batch, width) f32"""
    return _generator(model, case, "prompt").standard_normal((options.get("batch", 1), width)).astype(np.float32) if options.get("prompt") else None


def given(options: dict, base_px: int) -> np.ndarray | None:
    """(batch, height, width) of the dtype the case names: a box whose edges fall inside patches; other boxes in other images, none where gt_in is false."""
    if "gt" not in options:
        return None
    height, width = options.get("size", (base_px, base_px))
    maps = np.zeros((options.get("batch", 1), height, width), "float32" if options["gt"] == "float" else options["gt"])
    for i, image in enumerate(maps):
        image[height // 5 + 11 * i:height // 2 + 3, width // 3:width * 3 // 4 - 50 * i] = options.get("gt_in", [True] * len(maps))[i]
    return maps


def text_ids(model: str) -> np.ndarray:
    """(3, 12) int64: full, padded with 1, and with the largest id inside."""
    ids = _generator(model, "ids").integers(2, 90, (3, 12))
    ids[1, 7:] = 1
    ids[2, 5] = 96
    return ids
