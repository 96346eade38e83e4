"""From a checkpoint or a bundle to a bundle of engines: `ps3 build`, or from a checkout `python export/build_engine.py`.

    bundle of float32 ONNX -> networks in the engine's types -> their error on a frame, in ONNX Runtime -> engines -> a bundle of them

The error is measured before anything is built for a GPU, on the very graphs the builder gets: a precision that is too coarse
for these weights is refused in seconds. Whether the engine then computes what its graph says only its GPU can show: `ps3 verify`.
"""
from __future__ import annotations

if __name__ == "__main__" and not __package__:      # python export/build_engine.py: run the installed module of the same name
    import sys
    sys.path.pop(0)                                 # this folder, whose modules have names that others use too
    try:
        from ps3_sdk.export.build_engine import main
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed. In the checkout: pip install '.[export]'")
    sys.exit(main())

import stat
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Callable

from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import ExportError, InputError, RuntimeMissingError
from ps3_sdk.runtimes.trt_vendor import vendor
from ps3_sdk.session import DEFAULT_BUNDLE

from .engine_options import RTX_SMS, EngineOptions, check_files, check_options, known_sms, rtx_sms
from .engine_sizes import Size, check_sizes, estimate, looks_of
from .graph import Graph
from .precision import PRODUCTS
from .standard_onnx import read_network, standard
from .stop import ended_by_sigterm

Progress = Callable[[str], None]


@ended_by_sigterm()
def build_engine(source: str | Path, output: str | Path, options: EngineOptions, *, dry_run: bool = False, progress: Progress = lambda line: None) -> list[str]:
    """Build `output` from "default", a bundle, a checkpoint folder or a hub id.

    Returns lines that say what was built, or would be: a dry run refuses what is refused before any work. Raises InputError and ExportError as the options' modules say;
    RuntimeMissingError where the builder is not installed. Nothing is left at `output` then but what was there before.
    """
    check_options(options, rtx=None)
    module = None if options.runtime == "onnx" or dry_run and not _installed(options.runtime) else vendor(options.runtime, "build")
    if module is not None and options.runtime == "tensorrt-rtx":
        options = replace(options, sms=rtx_sms(options, module))
    elif options.runtime == "tensorrt":
        options = replace(options, sms=_own_sm(options, dry_run))
    # once more, with the GPUs it will be for: before frames are run and weights are read
    check_options(options, known_sms(module) if module is not None and options.runtime == "tensorrt-rtx" else RTX_SMS)
    check_files(output, options)
    kind = _kind(source)
    if kind == "folder" and (dry_run or options.max_tokens is not None or options.max_batch > 1):       # before it is exported
        from . import export_checkpoint as checkpoint
        manifest = checkpoint.sizes_of(source)
        check_sizes(options, manifest)
        if dry_run:
            checkpoint.check_arguments(checkpoint.is_vila_checkpoint(str(source)), {"--llm-precision": None if options.llm_precision == "fp32" else options.llm_precision})
            return estimate({graph.name: _size(standard(graph)) for graph in checkpoint.vision_networks(source)}, options, manifest).lines(options)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=None if dry_run else Path(output).resolve().parent, prefix=".ps3-build-")))
        bundle = stack.enter_context(_open(source, kind, folder, options, dry_run, progress))
        check_sizes(options, bundle.manifest)
        names = vision_networks(bundle.manifest)
        graphs = {name: read_network(bundle, name) for name in names}
        if dry_run:
            return estimate({name: _size(graph) for name, graph in graphs.items()}, options, bundle.manifest).lines(options)
        from .engine_bundle import write_engine_bundle
        lines = write_engine_bundle(bundle, graphs, Path(output), folder, options, module, progress)
        return [*lines, *filter(None, [looks_of(options, bundle.manifest)])]


def vision_networks(manifest: dict) -> list[str]:
    """Names of the networks that become engines. A language model's stays onnxruntime's: its operators are that runtime's own."""
    return [name for name in manifest["networks"] if name != "decode"]


def _size(graph: Graph) -> Size:
    return Size(sum(weight.num_bytes // 4 for weight in graph.weights.values()), sum(node.op_type in PRODUCTS for node in graph.nodes))


def _installed(runtime: str) -> bool:
    try:
        vendor(runtime, "build")
    except RuntimeMissingError:
        return False
    return True


def _own_sm(options: EngineOptions, dry_run: bool) -> tuple[int, ...]:
    """TensorRT builds for the GPU it runs on. Raises where there is none, or another was asked for."""
    from ps3_sdk.runtimes.cuda_driver import Driver
    try:
        driver = Driver()
    except RuntimeMissingError as error:
        if dry_run:
            return options.sms
        raise ExportError(f"[build] TensorRT builds on the GPU that the engine is for; {str(error).split('] ', 1)[1]}") from error
    sm = driver.sm
    driver.close()
    if options.sms and set(options.sms) != {sm}:
        raise ExportError(f"[build] sm {', '.join(map(str, options.sms))} was asked for; TensorRT builds for the GPU it runs on, here sm_{sm}. Leave --sm out, build on the other "
                          "machine, or use --runtime tensorrt-rtx, which builds for several at once.")
    return (sm,)


def _kind(source: str | Path) -> str | None:
    """What lies at a source: "file", the embedded bundle's for the word default whatever is here; "folder"; None for what may be a hub id."""
    try:
        mode = _path(source).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):      # the last: no path at all
        return None
    except OSError as error:
        raise InputError(f"[build] {source} cannot be reached: {error.strerror}; an engine.plan or a checkpoint folder is needed. Check the path and the permissions of its folders.") from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else None


def _path(source: str | Path) -> Path:
    return DEFAULT_BUNDLE if source == "default" else Path(source)


def _open(source: str | Path, kind: str | None, folder: Path, options: EngineOptions, dry_run: bool, progress: Progress) -> Bundle:
    """The float32 bundle to build from; a checkpoint is exported first, its stages compared with PyTorch."""
    if kind == "file":
        if options.llm_precision != "fp32":
            raise InputError(f"[build] --llm-precision was given; {source} is a bundle, whose language model stays as it is. Leave it out, or give the checkpoint.")
        return Bundle.open(_path(source))
    if dry_run:
        raise ExportError(f"[build] {source} is no file or folder here; a dry run fetches nothing. Give a bundle, a checkpoint folder or \"default\".")
    from .export_checkpoint import export_checkpoint, is_vila_checkpoint
    progress(f"export {source} to ONNX first")
    exported = folder / "onnx.plan"
    frame = None if is_vila_checkpoint(str(source)) else options.check_frame       # of VILA-HD the export takes none; the engines are measured on it
    export_checkpoint(str(source), exported, check_frame=frame, llm_precision=options.llm_precision, progress=progress)
    return Bundle.open(exported)


def main(arguments: list[str] | None = None) -> int:
    from ps3_sdk import cli
    import sys
    return cli.main(["build", *(sys.argv[1:] if arguments is None else arguments)])

