"""One door to every export: the kind of checkpoint decides which."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from ps3_sdk.atomic import check_place
from ps3_sdk.errors import ExportError

from .graph import Graph
from .make_bundle import geometry, make_bundle, networks
from .reference.config import Ps3Config
from .stop import ended_by_sigterm
from .weights import Checkpoint, locate

NOT_OF_VILA = {"--check-frame": "VILA-HD's stages are measured on inputs of their own", "--tokenizer": "VILA-HD's own is in its folder llm"}
OF_VILA_ALONE = {"--llm-precision": "a PS3 encoder has no language model", "--work-dir": "an encoder is exported in one go, only of VILA-HD are finished networks kept"}


@ended_by_sigterm()
def export_checkpoint(checkpoint: str, output: str | Path, *, revision: str | None = None, tokenizer: str | Path | None = None, precision: str = "fp32",
                      llm_precision: str = "fp32", check_frame: str | Path | None = None, work_dir: str | Path | None = None, progress: Callable[[str], None] = lambda line: None) -> None:
    """Write `output` from a PS3 encoder (make_bundle) or a VILA-HD model (make_vlm); arguments and errors are theirs.

    Before weights are fetched, raises ExportError also for an argument that the kind of checkpoint does not know, RuntimeMissingError where a package is missing.
    """
    from .llm_builder import check_packages
    from .make_vlm import make_vlm
    check_place(output, "export", ExportError)
    vila = is_vila_checkpoint(checkpoint, revision)
    check_arguments(vila, {"--check-frame": check_frame, "--tokenizer": tokenizer, "--llm-precision": None if llm_precision == "fp32" else llm_precision, "--work-dir": work_dir})
    if vila:
        check_packages()
        make_vlm(checkpoint, output, revision=revision, precision=precision, llm_precision=llm_precision, work_dir=work_dir, progress=progress)
    else:
        make_bundle(checkpoint, output, revision=revision, tokenizer=tokenizer, precision=precision, check_frame=check_frame, progress=progress)


def is_vila_checkpoint(checkpoint: str, revision: str | None = None) -> bool:
    """Whether a folder or hub id is a VILA-HD model rather than a PS3 encoder; of a hub id config.json alone is fetched."""
    from .make_vlm import is_vila
    return is_vila(locate(checkpoint, revision, ["config.json"])[0])


def check_arguments(vila: bool, given: dict) -> None:
    """Raises ExportError for an argument that the kind of checkpoint does not know; given: {argument: its value, None where it was not given}."""
    for name, why in (NOT_OF_VILA if vila else OF_VILA_ALONE).items():
        if given.get(name) is not None:
            raise ExportError(f"[export] {name} was given; {why}. Leave it out.")


def sizes_of(folder: str | Path) -> dict:
    """What the manifest of a checkpoint folder's bundle will say of sizes: its geometry, but for the statistics of pixels, and of its language model how it is looked for."""
    from .make_vlm import is_vila
    from .reference.vila.config import VilaConfig
    if not is_vila(Path(folder)):
        return {"geometry": geometry(Ps3Config.read(folder).vision, 0, (), ()), "language": None}
    config = VilaConfig.read(folder)
    return {"geometry": geometry(config.vision, 0, (), ()), "language": {"downsample": config.downsample, "num_looks": config.looks.num_looks, "num_tokens": config.looks.num_tokens}}


def vision_networks(folder: str | Path) -> list[Graph]:
    """The networks of a checkpoint folder that become engines, its weights unread; the language model is not among them. Raises ExportError: no such checkpoint."""
    from . import make_vlm
    if make_vlm.is_vila(Path(folder)):
        model, parts = make_vlm.VilaHd.outline(Path(folder))
        return make_vlm.networks(parts["vision_tower"][1], parts["mm_projector"][1], model.config)
    config = Ps3Config.read(folder)     # first: it says better what is wrong with a folder of another model
    return networks(Checkpoint.open(folder), config)
