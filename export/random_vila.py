"""A VILA-HD checkpoint with seeded random weights in the layout of the published ones, for tests and benchmarks.

    write_random_vila(folder, vision=dict(model_name="vit_so400m_patch14_siglip_378", ..), llm=dict(hidden_size=3584, ..))

llm/, vision_tower/ and mm_projector/ with their config files, safetensors in shards, and a tokenizer of the true size whose words
are bytes. Tensors are drawn, rounded and written one at a time, so that any size fits in memory.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from .random_checkpoint import draw
from .reference.config import Ps3Config
from .reference.model import Ps3Model
from .reference.vila.chat import _KNOWN, SYSTEM
from .reference.vila.config import VilaConfig
from .reference.vila.llm import Decoder
from .reference.vila.projector import Projector
from .weights import INDEX, SINGLE
from .write_bundle import SafetensorsLayout

TEXT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[BOS]", "[PAD]")     # the public tokenizer's last ones ...
MEDIA_TOKENS = ("<vila/sentinel>", "<image>", "<vila/video>")                       # ... and those VILA adds
SHARD_BYTES = 4 << 30
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def write_random_vila(folder: str | Path, vision: dict, llm: dict, *, projector: str = "mlp_downsample_2x2_fix", num_ids: int = 151651, dtype: str = "BF16",
                      seed: int = 0, shard_bytes: int = SHARD_BYTES, max_rows: int = 8192, progress: Callable[[str], None] = lambda line: None, **settings) -> int:
    """Write the checkpoint; returns its bytes.

    Args:
        vision: keys of vision_tower/config.json | llm: keys of llm/config.json, Qwen2's unless it says otherwise.
        num_ids: ids the tokenizer has, at most llm's vocab_size | dtype: BF16, F16 or F32 | max_rows: the tokenizer's limit.
        settings: further keys of the top-level config.json, e.g. num_look_close.
    """
    folder = Path(folder)
    vision = {"model_type": "ps3_vision_model", "pool": "map", "ps3_scales": [378, 756, 1512, 3780], "max_select_num": 2560, "separate_pos_emb": True,
              "highres_selection_feature": True, "radio": False, **vision}
    llm = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
           "use_sliding_window": False, "bos_token_id": num_ids - 5, "eos_token_id": num_ids - 6, **llm}
    size = vision["ps3_scales"][-1]
    top = {"model_type": "llava_topdown_llama", "architectures": ["LlavaTopDownLlamaModel"], "ps3": True, "llm_cfg": {}, "vision_tower_cfg": {}, "mm_projector_cfg": {},
           "look_close_mode": "after_prompt", "num_look_close": 1, "top_down_prompt_head_type": "linear", "high_res_pos_embed": True, "mm_vision_select_layer": -2,
           "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize", **settings}
    files = {"config.json": top, "llm/config.json": llm, "llm/generation_config.json": {"eos_token_id": num_ids - 6}, "vision_tower/config.json": vision,
             "vision_tower/preprocessor_config.json": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "mean": [0.5] * 3, "std": [0.5] * 3, "image_size": [size, size]},
             "mm_projector/config.json": {"model_type": "v2l_projector", "mm_projector_type": projector}}
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=1))
    _write_tokenizer(folder / "llm", num_ids, max_rows)
    config = VilaConfig.read(folder)
    with torch.device("meta"):
        parts = {"vision_tower": Ps3Model(Ps3Config("ps3_vision_model", config.vision, None)), "mm_projector": Projector(config), "llm": Decoder(config.llm)}
    for name, part in parts.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        _write_shards(folder / name, shapes, dtype, seed, shard_bytes, lambda line, name=name: progress(f"{name}: {line}"))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_tokenizer(folder: Path, num_ids: int, max_rows: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    letters, special = sorted(pre_tokenizers.ByteLevel.alphabet()), (*TEXT_TOKENS, *MEDIA_TOKENS)
    words = letters + [f"w{i}" for i in range(num_ids - len(letters) - len(special))]       # never read, but they can be said
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": "[BOS]", "eos_token": "<|im_end|>", "pad_token": "[PAD]", "model_max_length": max_rows,
        "chat_template": _KNOWN["VILA's qwen2"].replace("SYSTEM", SYSTEM)}))


def _write_shards(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int, shard_bytes: int, progress) -> None:
    """model.safetensors, or as many shards of at most shard_bytes as it takes and their index."""
    width, shards, room = torch.empty(0, dtype=_STORED[dtype]).element_size(), [], 0
    for name, shape in shapes.items():
        num_bytes = int(np.prod(shape)) * width
        if num_bytes > room or not shards:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = (dtype, shape)
        room -= num_bytes

    def load(name: str) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(draw(name, shapes[name], seed))).to(_STORED[dtype])
        return tensor.view(torch.uint16).numpy() if dtype == "BF16" else tensor.numpy()

    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, tensors in zip(names, shards):
        with open(folder / name, "wb") as file:
            for chunk in SafetensorsLayout(tensors).chunks(load):
                file.write(chunk)
        progress(f"wrote {name}, {(folder / name).stat().st_size / 1e6:.0f} MB")
    if len(shards) > 1:
        where = {key: name for name, tensors in zip(names, shards) for key in tensors}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
