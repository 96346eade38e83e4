"""The mean of two or more checkpoint folders' weights: python -m ps3_sdk.training.average FOLDER FOLDER .. -o OUT [--but NAME]

Of a training and one that went on from it, the mean is often better than either: what each step threw them aside by is gone.
Source: Wortsman et al., "Model soups", arXiv 2203.05482.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Sequence

import torch

from ps3_sdk.errors import InputError

from . import nano
from .state import HEADS

TOKENIZER = "llm/tokenizer.json"


@torch.no_grad()
def average(folders: Sequence[str | Path], output: str | Path, but: str | None = None) -> None:
    """but: weights with this in their names are the last folder's, where the others may have other shapes; so are settings and files that others lack.

    Raises InputError: a folder has no weights, other names, shapes or files of JSON than the last, or another tokenizer.
    """
    from safetensors.torch import load_file, save_file
    folders, output = [Path(folder) for folder in folders], Path(output)
    last = folders[-1]
    own = {folder: {path.relative_to(folder) for path in folder.rglob("*.safetensors")} for folder in folders}
    for folder, names in own.items():
        if not names:
            raise InputError(f"[training] {folder} holds no weights; checkpoint folders are needed, such as RUN/model of a training.")
    for folder in folders if but is None else [last]:
        nano.copy_folder(folder, output)        # refuses other configurations and tokenizers than those that are there
    if any((folder / TOKENIZER).read_bytes() != (last / TOKENIZER).read_bytes() for folder in folders):
        raise InputError(f"[training] {TOKENIZER} is not the same in all of {', '.join(map(str, folders))}: other token ids are other words. Average checkpoints of one model.")
    for name in sorted(set.union(*own.values())):
        having = [folder for folder in folders if name in own[folder]]
        if last not in having or but is None and len(having) < len(folders):
            raise InputError(f"[training] {next(folder for folder in folders if folder not in having)} has no {name}, {having[0]} has. Average checkpoints of one model.")
        every = [load_file(folder / name) for folder in having]
        shapes = [{key: value.shape for key, value in weights.items() if but is None or but not in key} for weights in every]
        if any(each != shapes[0] for each in shapes):
            raise InputError(f"[training] {name} has not the same names and shapes in all of {', '.join(map(str, folders))}. Average checkpoints of one model.")
        mean = dict(every[-1])
        for key in shapes[-1]:
            mean[key] = torch.stack([weights[key].float() for weights in every]).mean(dim=0).to(mean[key].dtype)
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(mean, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("-o", "--output", required=True, help="checkpoint folder, made anew")
    parser.add_argument("--but", metavar="NAME", help="weights with this in their names are the last folder's, such as those of a view network that was made wider")
    options = parser.parse_args()
    average(options.folders, options.output, options.but)
    print(f"{options.output}: the mean of {len(options.folders)} checkpoints" + ("" if (Path(options.output) / HEADS).exists() else f", without {HEADS}: trainings that go on from it make new ones"))


if __name__ == "__main__":
    main()
