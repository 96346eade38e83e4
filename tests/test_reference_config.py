"""config.json and its neighbours: every published shape is understood, everything else is refused by name, without torch."""
import copy
import json
import subprocess
import sys

import pytest

from ps3_sdk.errors import ExportError
from ps3_sdk.export.reference.config import KNOWN_TRUNKS, Ps3Config
from ps3_sdk.export.reference.side_files import CLIP_MEAN, PreprocessorConfig, TokenizerConfig

VISION = {"model_type": "ps3_vision_model", "model_name": "vit_so400m_patch14_siglip_384", "pool": "map", "ps3_scales": [378, 756, 1512, 3780], "max_select_num": 2560}
RADIO = {"model_type": "ps3_vision_model", "model_name": "vit_large_patch16_224", "pool": "map", "class_token": False, "img_size": 4096, "radio": True,
         "ps3_scales": [384, 768, 1536, 3840], "select_based_on_layer": [0, 7, 14, 23], "radio_adapter_mlp_version": "v2", "radio_adapter_mlp_input_dim": 1024,
         "radio_adapter_mlp_hidden_dim": 1520, "radio_adapter_mlp_output_dim": 1152, "radio_adapter_mlp_num_inner": 3}
FULL = {"model_type": "ps3", "vision_config": VISION, "text_config": {"width": 64, "heads": 4}}
TRUNK = {"patch_size": 14, "embed_dim": 48, "depth": 4, "num_heads": 3, "mlp_ratio": 3.7362, "pos_embed_grid": 27}


def changed(values, **fields):
    return {**copy.deepcopy(values), **fields}


def test_reading_a_configuration_imports_no_torch(tmp_path):
    code = "import sys; from ps3_sdk.export.reference import config, side_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_published_shapes():
    vision = Ps3Config.from_dict(VISION).vision
    assert (vision.width, vision.trunk.depth, vision.trunk.num_heads, vision.trunk.mlp_width, vision.grids) == (1152, 27, 16, 4304, (27, 54, 108, 270))
    assert vision.per_look == (85, 341, 2133) and vision.feature_width == 4 * 1152 and vision.view_grid == 54 and vision.final_norm
    radio = Ps3Config.from_dict(RADIO).vision
    assert (radio.width, radio.trunk.position_grid, radio.grids, radio.pool_width, radio.pool_heads) == (1024, 256, (24, 48, 96, 240), 1152, 16)
    assert not radio.final_norm and radio.radio_adapter_mlp_num_inner == 3


@pytest.mark.parametrize("values,family", [
    (VISION, "siglip"), (changed(VISION, model_name="vit_so400m_patch14_siglip_378"), "siglip2"), (RADIO, "c-radio"), (FULL, "siglip"),
    (changed(FULL, text_config={"act_kwargs": {"approximate": "tanh"}}), "siglip2")])
def test_families(values, family):
    assert Ps3Config.from_dict(values).family == family


def test_absent_keys_have_the_reference_s_defaults():
    text = Ps3Config.from_dict(FULL).text
    assert (text.context_length, text.vocab_size, text.layers, text.pool_type, text.pad_id, text.proj_bias) == (77, 49408, 12, "argmax", 0, False)
    vision = Ps3Config.from_dict({"model_type": "ps3_vision_model", "model_name": VISION["model_name"], "pool": "map"}).vision
    assert vision.scales_px == (378, 756, 1512) and vision.per_look == (256, 1024) and vision.select_based_on_layer == (0, 9, 18, 26) and vision.separate_pos_emb


def test_scales_are_sorted_layers_counted_from_the_end_and_tags_dropped():
    vision = Ps3Config.from_dict(changed(VISION, ps3_scales=[1512, 378, 756], select_based_on_layer=[-1, 0], model_name="vit_so400m_patch14_siglip_384.webli")).vision
    assert vision.scales_px == (378, 756, 1512) and vision.select_based_on_layer == (26, 0)
    assert Ps3Config.from_dict(changed(VISION, max_select_num_each_scale=[1, 2, 3])).vision.per_look == (1, 2, 3)


def test_a_trunk_may_be_described():
    shape = Ps3Config.from_dict(changed(VISION, model_name="anything", select_based_on_layer=[0, 3], golden_trunk=TRUNK)).vision.trunk
    assert (shape.width, shape.depth, shape.head_width, shape.mlp_width) == (48, 4, 16, 179)


@pytest.mark.parametrize("values,words", [
    (changed(VISION, model_name="vit_huge"), ["model_name", *KNOWN_TRUNKS, "golden_trunk"]),
    (changed(VISION, model_type="clip"), ['"clip"', "ps3_vision_model"]),
    ({"vision_tower_cfg": {}, "model_type": "llava_topdown_llama"}, ["vision_tower folder"]),
    (changed(FULL, vision_config=None), ["vision_config"]),
    (changed(FULL, text_config=[]), ["text_config", "a list"]),
    (changed(FULL, text_config={"prompt_proj_dim": 7}), ["prompt_proj_dim", "1152"]),
    (changed(FULL, text_config={"heads": 7}), ["text_config.heads", "divisor"]),
    (changed(FULL, text_config={"pool_type": "mean"}), ["pool_type", "argmax"]),
    (changed(FULL, text_config={"act_kwargs": {"inplace": True}}), ["act_kwargs", "inplace"]),
    (changed(FULL, text_config={"norm_kwargs": {"eps": 0}}), ["norm_kwargs.eps"]),
    (changed(FULL, text_config={"act_kwargs": {"approximate": "erf"}}), ["approximate", "tanh"]),
    (changed(VISION, pool="avg"), ["pool", "map"]),
    (changed(VISION, dynamic_img_size=False), ["dynamic_img_size"]),
    (changed(VISION, class_token=True), ["class_token"]),
    (changed(RADIO, class_token=None), ["class_token"]),
    (changed(VISION, ps3_scales=[378]), ["ps3_scales", "two"]),
    (changed(VISION, ps3_scales=[378, 378]), ["ps3_scales"]),
    (changed(VISION, ps3_scales=[378, 700]), ["ps3_scales", "14 px"]),
    (changed(VISION, ps3_scales="378"), ["ps3_scales", "list"]),
    (changed(VISION, s3_scales=[378, 756]), ["s3_scales", "contradicts"]),
    (changed(VISION, select_based_on_layer=[27]), ["select_based_on_layer", "0 to 26"]),
    (changed(VISION, select_based_on_layer=[]), ["select_based_on_layer"]),
    (changed(VISION, max_select_num=0), ["max_select_num", "at least 1"]),
    (changed(VISION, max_select_num=True), ["max_select_num"]),
    (changed(VISION, max_select_num_each_scale=[1, 2]), ["max_select_num_each_scale", "3 high-res"]),
    (changed(VISION, separate_pos_emb="yes"), ["separate_pos_emb", "true or false"]),
    (changed(VISION, golden_trunk={"embed_dim": 48}), ["golden_trunk.depth"]),
    (changed(VISION, golden_trunk=changed(TRUNK, num_heads=5)), ["num_heads", "48"]),
    (changed(VISION, golden_trunk=changed(TRUNK, reg_tokens=4)), ["reg_tokens"]),
    (changed(RADIO, radio_adapter_mlp_version="v3"), ["radio_adapter_mlp_version", "v2"]),
    (changed(RADIO, radio_adapter_mlp_input_dim=768), ["radio_adapter_mlp_input_dim", "1024"]),
    (changed(RADIO, radio_adapter_mlp_hidden_dim=None), ["radio_adapter_mlp_hidden_dim"]),
])
def test_refused_by_name(values, words):
    with pytest.raises(ExportError) as caught:
        Ps3Config.from_dict(values)
    assert str(caught.value).startswith("[config] ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"[" * 3000])
def test_broken_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ExportError, match="config.json"):
        Ps3Config.read(tmp_path)


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values))


def test_preprocessor(tmp_path):
    write(tmp_path, "preprocessor_config.json", {"image_size": [3780, 3780], "mean": 0.5, "std": [0.5, 0.25, 0.5], "resize_mode": "squash"})
    got = PreprocessorConfig.read(tmp_path, 3780)
    assert got.mean == (0.5, 0.5, 0.5) and got.std == (0.5, 0.25, 0.5) and got.image_px == 3780
    write(tmp_path, "preprocessor_config.json", {})
    assert PreprocessorConfig.read(tmp_path, 3780).mean == CLIP_MEAN


@pytest.mark.parametrize("values", [{"image_size": 1512}, {"image_size": [3780, 1512]}, {"mean": [1, 2]}, {"std": [1, 0, 1]}, {"mean": "half"},
                                    {"resize_mode": "crop"}, {"interpolation": "bilinear"}])
def test_preprocessor_refused(tmp_path, values):
    write(tmp_path, "preprocessor_config.json", values)
    with pytest.raises(ExportError, match=next(iter(values))):
        PreprocessorConfig.read(tmp_path, 3780)


def test_tokenizer(tmp_path):
    write(tmp_path, "tokenizer_config.json", {"tokenizer_name": "timm/ViT-SO400M-14-SigLIP-384", "context_length": 64, "clean": "canonicalize"})
    got = TokenizerConfig.read(tmp_path)
    assert (got.context_length, got.clean, got.strip_sep_token) == (64, "canonicalize", False)
    for values in ({}, {"tokenizer_name": "x", "clean": "none"}, {"tokenizer_name": "x", "context_length": 0}):
        write(tmp_path, "tokenizer_config.json", values)
        with pytest.raises(ExportError):
            TokenizerConfig.read(tmp_path)
    with pytest.raises(ExportError, match="does not exist"):
        TokenizerConfig.read(tmp_path / "nowhere")
