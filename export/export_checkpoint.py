"""One door to every export: the kind of checkpoint decides which."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from ps3_sdk.errors import ExportError

from .graph import Graph
from .make_bundle import make_bundle, networks
from .reference.config import Ps3Config
from .weights import Checkpoint, locate


def export_checkpoint(checkpoint: str, output: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None, precision: str = "fp32",
                      llm_precision: str = "fp32", check_frame: str | Path | None = None, work_dir: str | Path | None = None, progress: Callable[[str], None] = lambda line: None) -> None:
    """Write `output` from a PS3 encoder (make_bundle) or a VILA-HD model (make_vlm); arguments and errors are theirs."""
    from .make_vlm import is_vila, make_vlm
    if is_vila(locate(checkpoint, revision)[0]):
        if check_frame is not None:
            raise ExportError("[export] a frame to check on was given; VILA-HD's stages are measured on inputs of their own. Leave it out.")
        make_vlm(checkpoint, output, revision=revision, precision=precision, llm_precision=llm_precision, work_dir=work_dir, progress=progress)
    else:
        make_bundle(checkpoint, output, revision=revision, tokenizer=tokenizer, precision=precision, check_frame=check_frame, progress=progress)


def vision_networks(folder: str | Path) -> list[Graph]:
    """The networks of a checkpoint folder that become engines, its weights unread; the language model is not among them. Raises ExportError: no such checkpoint."""
    from . import make_vlm
    if make_vlm.is_vila(Path(folder)):
        model, parts = make_vlm.VilaHd.outline(Path(folder))
        return make_vlm.networks(parts["vision_tower"][1], parts["mm_projector"][1], model.config)
    source = Checkpoint.open(str(folder))
    return networks(source, Ps3Config.read(source.folder))
