"""A small PS3 encoder of seeded random numbers in the layout of a 4K one: python -m ps3_sdk.export.seeded_bundle OUTPUT

Tests, benchmarks and examples run every stage of an encoder on it; it knows nothing and says so in each answer. The same versions
of the tools give the same bytes.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable

from .make_bundle import Prepared, write
from .random_checkpoint import RandomCheckpoint
from .reference.config import Ps3Config

SEED = 3
CONFIG = {
    "model_type": "ps3",
    "vision_config": {
        "model_name": "ps3_seeded", "golden_trunk": {"patch_size": 14, "embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 3.0, "pos_embed_grid": 27},
        "hidden_size": 48, "pool": "map", "ps3_scales": [378, 756, 1512, 3780], "select_based_on_layer": [0, 1, 2], "max_select_num": 2560,
        "separate_pos_emb": False, "highres_selection_module_hidden_dim": 24, "highres_selection_module_out_dim": 24, "highres_selection_module_depth": 2},
    "text_config": {
        "width": 48, "heads": 3, "layers": 2, "mlp_ratio": 3.0, "vocab_size": 258, "context_length": 64, "output_dim": 48, "prompt_proj_dim": 48,
        "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}


def byte_tokenizer() -> bytes:
    """tokenizer.json of the plainest kind: one id per byte, an end, a pad."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<end>": 1, **{letter: 2 + i for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    return tokenizer.to_str().encode()


def write_seeded(output: str | Path, progress: Callable[[str], None] = lambda line: None) -> None:
    """Export the encoder; takes about two seconds."""
    config = Ps3Config.from_dict(CONFIG)
    prepared = Prepared(config, "ps3-seeded", "Apache-2.0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tokenizer=byte_tokenizer(), weights="random",
                        note="Seeded random weights: shows how the stages work together, answers nothing.")
    write(RandomCheckpoint(config, SEED), prepared, output, progress)


if __name__ == "__main__":
    write_seeded(sys.argv[1], lambda line: print(line, file=sys.stderr))
