"""What VILA-HD reads from a checkpoint's folder, and checkpoints that are damaged."""
import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
import tiny_models
from golden_vila import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.export.random_checkpoint import RandomCheckpoint
from ps3_sdk.export.reference.config import Ps3Config
from ps3_sdk.export.reference.vila.chat import Chat
from ps3_sdk.export.reference.vila.config import LookOptions, VilaConfig
from ps3_sdk.export.reference.vila.model import VilaHd

QUESTION = "Where does the exit lead to?"


@pytest.fixture
def frame():
    return Image.open(next(ROOT.glob("p6*/image0.png")))


@pytest.fixture
def folder(tmp_path):
    """A golden checkpoint to be damaged."""
    return shutil.copytree(ROOT / "models" / "pub_c", tmp_path / "pub_c")


def change(path, **values):
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**stored, **values}.items() if value is not ...}))


def test_tokenizer_without_tokenizer_json(folder):
    whole = Chat(folder / "llm")
    (folder / "llm" / "tokenizer.json").unlink()
    built = Chat(folder / "llm")
    for text in (QUESTION, "It's 42 ½ naïve\u0301 北京\n\n  <|im_end|> x", " a  b\t\nc", ""):
        assert built.ids(text) == whole.ids(text)
    assert (built.size, built.image_id, built.stop_ids) == (whole.size, whole.image_id, whole.stop_ids)
    (folder / "llm" / "merges.txt").unlink()
    with pytest.raises(ExportError, match="no tokenizer.json"):
        Chat(folder / "llm")


def test_missing_media_tokens_are_added_in_order(folder):
    stored = json.loads((folder / "llm" / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["id"] < 405]
    (folder / "llm" / "tokenizer.json").write_text(json.dumps(stored))
    settings = json.loads((folder / "llm" / "tokenizer_config.json").read_text())
    change(folder / "llm" / "tokenizer_config.json", added_tokens_decoder={n: t for n, t in settings["added_tokens_decoder"].items() if int(n) < 405})
    chat = Chat(folder / "llm")
    assert chat.size == 408 and chat.image_id == 406


def test_chat_templates(folder):
    qwen = Chat(folder / "llm")
    assert Chat(folder / "llm", "qwen2").text("q") == qwen.text("q")
    file = folder / "llm" / "tokenizer_config.json"
    own = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe short.<|im_end|>\\n' }}{% endif %}"
           "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    change(file, chat_template=own)
    assert Chat(folder / "llm").text("q") == "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    mistral = Chat(folder / "llm", "mistral")
    assert mistral.text(" q ") == "[BOS][INST] q [/INST]" and mistral.template.prompt_end == "[/INST]" and mistral.stop_ids == {402}
    for wrong in (own + " ", own.replace("Be short.", "{{ date }}"), None):
        change(file, chat_template=wrong)
        with pytest.raises(ExportError, match="VILA's qwen2, Qwen2's own"):
            Chat(folder / "llm")
    with pytest.raises(ExportError, match="qwen2 or mistral"):
        Chat(folder / "llm", "vicuna")


# -- bad checkpoints --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["llm", "vision_tower", "mm_projector"])
def test_a_missing_part_is_named(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(ExportError, match=rf"{name}, which is no folder"):
        VilaHd.from_checkpoint(folder)


@pytest.mark.parametrize("file,key,value,match", [
    ("mm_projector", "mm_projector_type", "linear", "mlp_downsample, mlp_downsample_2x2_fix, mlp_downsample_3x3_fix"),
    ("", "model_type", "llava_llama", "VILA-HD checkpoint"), ("", "ps3", False, "ps3 of config.json"), ("", "look_close_mode", "sometimes", "after_prompt, after_image"),
    ("", "mm_vision_select_layer", -3, "-1 or -2"), ("", "mm_vision_select_layer", ..., "mm_vision_select_layer"), ("", "mm_vision_select_feature", "patch", "cls_patch"),
    ("", "top_down_prompt_head_type", "big", "linear, mlp"), ("", "image_aspect_ratio", "pad", "resize"), ("", "llm_cfg", None, "llm_cfg"),
    ("", "image_encoder", '{"_target_": "a.TSPImageEncoder"}', "BasicImageEncoder"), ("", "num_look_close", "two", "num_look_close"),
    ("llm", "model_type", "gpt2", "qwen2, llama, mistral"), ("llm", "hidden_size", ..., "hidden_size of config.json is absent"), ("llm", "use_sliding_window", True, "sliding_window"),
    ("llm", "rope_scaling", {"type": "yarn", "factor": 4.0}, "rope_scaling"), ("llm", "rope_parameters", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}, "rope_parameters"),
    ("llm", "rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"), ("llm", "partial_rotary_factor", 0.5, "partial_rotary_factor"),
    ("llm", "rope_parameters", {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}, "partial_rotary_factor"), ("llm", "num_key_value_heads", 3, "num_key_value_heads"), ("llm", "hidden_act", "gelu", "hidden_act")])
def test_settings_refused(folder, file, key, value, match):
    change(folder / file / "config.json", **({key: value} if key != "use_sliding_window" else {key: value, "sliding_window": 100}))
    with pytest.raises(ExportError, match=match):
        VilaConfig.read(folder)


@pytest.mark.parametrize("values, wanted", [
    (dict(rope_theta=2e4), (2e4, 1)), (dict(), (1e4, 1)), (dict(rope_theta=2e4, rope_scaling={"type": "linear", "factor": 2.0}), (2e4, 2)),
    (dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), (1e6, 1)), (dict(rope_parameters={"rope_theta": 1e6}), (1e6, 1)),
    (dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}), (1e6, 4)), (dict(rope_theta=2e4, rope_parameters={"rope_type": "linear", "factor": 4.0}), (2e4, 4)),
    (dict(rope_theta=2e4, rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default", "rope_theta": 1e6}), (2e4, 2))])
def test_rotary_positions_of_old_and_new_files(folder, values, wanted):
    """transformers 5 saves rope_parameters, and no rope_theta beside it."""
    change(folder / "llm" / "config.json", **{"rope_theta": ..., "rope_scaling": ...} | values)
    llm = VilaConfig.read(folder).llm
    assert (llm.rope_theta, llm.rope_factor) == wanted


def test_every_wrong_key_is_named(folder):
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.extra"] = tensors.pop("model.norm.weight")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, path)
    with pytest.raises(ExportError) as error:
        VilaHd.from_checkpoint(folder)
    for line in ("model.norm.weight is missing", "model.layers.0.extra is unknown", "model.layers.1.mlp.up_proj.weight has shape [3, 3] and must have [160, 64]"):
        assert line in str(error.value)


def test_shards_of_mixed_precision(folder, frame):
    path, whole = folder / "llm" / "model.safetensors", VilaHd.from_checkpoint(folder)
    tensors, files = load_file(path), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    path.unlink()
    halves = [dict(sorted(tensors.items())[i::2]) for i in range(2)]
    save_file(halves[0], path.parent / files[0])
    save_file({key: tensor.float() for key, tensor in halves[1].items()}, path.parent / files[1])
    listed = {key: file for half, file in zip(halves, files) for key in half}
    (path.parent / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    parts = [frame, QUESTION]
    assert VilaHd.from_checkpoint(folder).generate(parts, max_new_tokens=4).ids == whole.generate(parts, max_new_tokens=4).ids
    (path.parent / files[1]).unlink()
    with pytest.raises(ExportError, match=f"lacks {files[1]}"):
        VilaHd.from_checkpoint(folder)


def test_a_stored_copy_of_a_tied_head_is_allowed(folder):
    path = folder / "llm" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert VilaHd.from_checkpoint(folder).llm.lm_head is None


def test_a_checkpoint_without_prompt_head(folder, frame):
    change(folder / "config.json", look_close_mode="after_image")
    path = folder / "mm_projector" / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "top_down" not in key}, path)
    model = VilaHd.from_checkpoint(folder)
    assert len(model.generate([frame, QUESTION], max_new_tokens=3).ids) == 3
    with pytest.raises(InputError, match="no top-down prompt head"):
        model.generate([frame, QUESTION], LookOptions("after_prompt"))


def test_a_full_ps3_model_as_vision_tower(folder, frame):
    """model_type ps3: its vision half is used, its text half is left alone."""
    stored = json.loads((folder / "vision_tower" / "config.json").read_text())
    values = {"model_type": "ps3", "vision_config": stored, "text_config": tiny_models.config()["text_config"]}
    (folder / "vision_tower" / "config.json").write_text(json.dumps(values))
    path, random = folder / "vision_tower" / "model.safetensors", RandomCheckpoint(Ps3Config.from_dict(values))
    plain = VilaHd.from_checkpoint(ROOT / "models" / "pub_c").generate([frame, QUESTION], max_new_tokens=4)
    save_file({**load_file(path), **{key: random.tensor(key) for key in random.keys() if key.startswith("text_model.")}}, path)
    assert VilaHd.from_checkpoint(folder).generate([frame, QUESTION], max_new_tokens=4).ids == plain.ids
