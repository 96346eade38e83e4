"""A deeper model that says what a checkpoint says: python -m ps3_sdk.training.grow CHECKPOINT -o OUT [--trunk N ..] [--language N ..]

Behind each block named a new one is put: its copy, but for the two matrices that add to the residual stream, which are zero. So every
hidden state stays as it was, and training goes on from there with more to learn in; what selection sees are the same blocks' outputs.
Source: Chen, Goodfellow and Shlens, "Net2Net", arXiv 1511.05641; Bachlechner et al., "ReZero is all you need", arXiv 2003.04887.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Sequence

from ps3_sdk.errors import InputError

from . import nano
from .state import HEADS

TRUNK, TRUNK_ADDS = "vision_model.trunk.blocks.", ("attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias")
LANGUAGE, LANGUAGE_ADDS = "model.layers.", ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def grow(source: str | Path, output: str | Path, trunk: Sequence[int] = (), language: Sequence[int] = ()) -> None:
    """trunk, language: behind which blocks, counted from 0, new ones are put. Heads that only training knows go along.

    Raises InputError: no such block, or `output` holds another model.
    """
    source, output = Path(source), Path(output)
    vision, llm = (json.loads((source / part / "config.json").read_text("utf-8")) for part in ("vision_tower", "llm"))
    shape = vision["golden_trunk"]
    trunk, language = _order("trunk", shape["depth"], trunk), _order("language", llm["num_hidden_layers"], language)
    first = {old: new for new, old in reversed(list(enumerate(trunk)))}
    shape["depth"], llm["num_hidden_layers"] = len(trunk), len(language)
    vision["select_based_on_layer"] = [first[layer] for layer in vision["select_based_on_layer"]]
    changed = {Path("vision_tower/config.json"): vision, Path("llm/config.json"): llm}
    nano.copy_folder(source, output, changed)
    _grown(source / "vision_tower", output / "vision_tower", TRUNK, trunk, TRUNK_ADDS)
    _grown(source / "llm", output / "llm", LANGUAGE, language, LANGUAGE_ADDS)
    for name in ("mm_projector/model.safetensors", HEADS):
        if (source / name).exists():
            (output / name).write_bytes((source / name).read_bytes())


def _order(part: str, depth: int, behind: Sequence[int]) -> list[int]:
    """Per block of the grown model which old one it is, or is a copy of: the first of equal ones is the old one."""
    wrong = [n for n in behind if not 0 <= n < depth]
    if wrong:
        raise InputError(f"[training] --{part} {wrong[0]}: there is no such block; this {part} has blocks 0..{depth - 1}.")
    return sorted([*range(depth), *behind])


def _grown(source: Path, output: Path, blocks: str, order: Sequence[int], adds: Sequence[str]) -> None:
    from safetensors.torch import load_file, save_file
    weights = load_file(source / "model.safetensors")
    grown = {name: value for name, value in weights.items() if not name.startswith(blocks)}
    for new, old in enumerate(order):
        own = f"{blocks}{old}."
        for name in (name for name in weights if name.startswith(own)):
            part = name.removeprefix(own)
            copied = new > 0 and order[new - 1] == old
            grown[f"{blocks}{new}.{part}"] = weights[name].new_zeros(weights[name].shape) if copied and part in adds else weights[name].clone()
    path = output / "model.safetensors"
    save_file(grown, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CHECKPOINT")
    parser.add_argument("-o", "--output", required=True, help="checkpoint folder, made anew")
    parser.add_argument("--trunk", type=int, nargs="*", default=(), metavar="N", help="blocks of the vision trunk behind which one is put")
    parser.add_argument("--language", type=int, nargs="*", default=(), metavar="N", help="layers of the language model behind which one is put")
    options = parser.parse_args()
    grow(options.source, options.output, options.trunk, options.language)
    print(f"{options.output}: {options.source} with {len(options.trunk)} more blocks in the trunk, {len(options.language)} more in the language model; it says the same until it is trained on")


if __name__ == "__main__":
    main()
