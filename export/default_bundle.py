"""The embedded bundle, from the checkpoint folder that training leaves: python -m ps3_sdk.export.default_bundle training/model -o ps3_sdk/assets/default.plan

docs/model_card.md says what the model is, tests/test_default_bundle.py what the file must do.
"""
from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Callable

from ps3_sdk.errors import ExportError

from .make_vlm import is_vila, make_vlm

LIMIT_BYTES = 24_000_000    # of the wheel
ANSWER_TOKENS = 32          # more than any text of the training has: a model that does not stop is stopped


def write_default(checkpoint: str | Path, output: str | Path, progress: Callable[[str], None] = lambda line: None) -> None:
    """Export in float32, with every stage's parity inside. The revision is a hash of the weights.

    Raises ExportError: not a VILA-HD folder, a stage that misses its bound, or a bundle too large for the wheel; `output` is as it was then.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if not is_vila(checkpoint):
        raise ExportError(f"[export] {checkpoint} is no VILA-HD checkpoint folder. Pass the folder model that training writes in its RUN folder.")
    identity = {"name": "ps3-nano", "source": "trained by ps3_sdk.training", "revision": hash_of(checkpoint), "licence": "Apache-2.0",
                "note": "small, trained on drawn scenes with text; see training/README.md"}
    beside = output.with_name(output.name + ".new")
    try:
        make_vlm(str(checkpoint), beside, identity=identity, answer_tokens=ANSWER_TOKENS, progress=progress)
        size = beside.stat().st_size
        if size > LIMIT_BYTES:
            raise ExportError(f"[export] the bundle has {size / 1e6:.1f} MB; the wheel takes {LIMIT_BYTES / 1e6:.0f}. Train a smaller model.")
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


def hash_of(checkpoint: Path) -> str:
    """16 hexadecimal digits of the SHA-256 of the folder's files, names and bytes, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(checkpoint).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ps3_sdk.export.default_bundle")
    parser.add_argument("checkpoint", help="the folder model of a training run")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    write_default(options.checkpoint, options.output, lambda line: print(line, file=sys.stderr, flush=True))
