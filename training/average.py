"""The mean of two or more checkpoint folders' weights: python -m ps3_sdk.training.average FOLDER FOLDER .. -o OUT

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
from .reading import HEAD


@torch.no_grad()
def average(folders: Sequence[str | Path], output: str | Path) -> None:
    """Raises InputError: a folder has no weights, other names, shapes or files of JSON than the first."""
    from safetensors.torch import load_file, save_file
    folders, output = [Path(folder) for folder in folders], Path(output)
    names = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors"))
    if not names:
        raise InputError(f"[training] {folders[0]} holds no weights; checkpoint folders are needed, such as RUN/model of a training.")
    for folder in folders:
        nano.copy_folder(folder, output)        # refuses other configurations and tokenizers than those that are there
    for name in names:
        missing = [folder for folder in folders if not (folder / name).exists()]
        if missing:
            raise InputError(f"[training] {missing[0]} has no {name}, {folders[0]} has. Average checkpoints of one model.")
        every = [load_file(folder / name) for folder in folders]
        shapes = [{key: value.shape for key, value in weights.items()} for weights in every]
        if any(each != shapes[0] for each in shapes):
            raise InputError(f"[training] {name} has not the same names and shapes in all of {', '.join(map(str, folders))}. Average checkpoints of one model.")
        mean = {key: torch.stack([weights[key].float() for weights in every]).mean(dim=0).to(value.dtype) for key, value in every[0].items()}
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(mean, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("-o", "--output", required=True, help="checkpoint folder, made anew")
    options = parser.parse_args()
    average(options.folders, options.output)
    print(f"{options.output}: the mean of {len(options.folders)} checkpoints" + ("" if (Path(options.output) / HEAD).exists() else f", without {HEAD}: no training goes on from it"))


if __name__ == "__main__":
    main()
