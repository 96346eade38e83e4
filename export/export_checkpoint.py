"""One door to every export: the kind of checkpoint decides which."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from .make_bundle import make_bundle
from .weights import locate


def export_checkpoint(checkpoint: str, output: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None, precision: str = "fp32",
                      llm_precision: str = "fp32", work_dir: str | Path | None = None, progress: Callable[[str], None] = lambda line: None) -> None:
    """Write `output` from a PS3 encoder (make_bundle) or a VILA-HD model (make_vlm); arguments and errors are theirs."""
    from .make_vlm import is_vila, make_vlm
    if is_vila(locate(checkpoint, revision)[0]):
        make_vlm(checkpoint, output, revision=revision, precision=precision, llm_precision=llm_precision, work_dir=work_dir, progress=progress)
    else:
        make_bundle(checkpoint, output, revision=revision, tokenizer=tokenizer, precision=precision, progress=progress)
