"""The `ps3` command: ask, encode, export, build, verify, info, bench, eval, train, doctor. Answers go to stdout, progress and errors to stderr."""
from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import warnings
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from . import __version__
from .atomic import check_place, replaced
from .errors import InputError, Ps3Error, RuntimeMissingError

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130      # argparse itself exits with 2


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")       # a prompt may hold what the terminal has no character for
    try:
        status = options.run(options) or 0
        sys.stdout.flush()
        return status
    except Ps3Error as error:
        print(f"ps3: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("ps3: interrupted; nothing half-written was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:         # `ps3 info | head`
        return _no_more()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        print("ps3: what it says cannot be written to where its output goes: no space left. Free some, or send it elsewhere.", file=sys.stderr)
        return _no_more()


def _no_more() -> int:
    """Nothing can be written to standard output; what is left in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILED


def _plan(word: str) -> str:
    """A bundle's path; the word default is the embedded one's."""
    from .session import DEFAULT_BUNDLE
    return str(DEFAULT_BUNDLE) if word == "default" else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ps3", description="See detail in 4K frames: one low-res look, then only the patches a prompt needs.")
    parser.add_argument("--version", action="version", version=f"ps3_sdk {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def bundle_and_threads(sub) -> None:
        sub.add_argument("--bundle", metavar="PLAN", type=_plan, help="engine.plan to use (default: the embedded one)")
        sub.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
        sub.add_argument("--device", choices=("cpu", "cuda"), help="where ONNX bundles run (default: cpu; cuda needs onnxruntime-gpu in place of onnxruntime)")

    def selection(sub) -> None:
        how = sub.add_mutually_exclusive_group()
        how.add_argument("--bottom-up", action="store_true", help="pick patches by saliency, whatever the prompt")
        how.add_argument("--top-down", action="store_true", help="pick patches wherever the prompt's map is high, also of bundles that look around the most probable place first")
        sub.add_argument("--scales", type=int, metavar="N", help="look only at the first N high-res scales")
        sub.add_argument("--smooth", action="store_true", help="average the probabilities over 6 x 6 areas of the frame before picking")

    def frame(sub) -> None:
        sub.add_argument("frame", metavar="FRAME", help="picture file, or - for an encoded picture on stdin")

    ask = command("ask", _ask, "answer one question about a frame")
    frame(ask)
    ask.add_argument("prompt", metavar="PROMPT", help="what to look for; \"\" picks by saliency alone, with an encoder")
    bundle_and_threads(ask)
    amount = ask.add_mutually_exclusive_group()
    amount.add_argument("--looks", type=int, metavar="N", help="full looks of the model, in place of --tokens")
    amount.add_argument("--tokens", type=int, metavar="N", help="high-res patches to encode (default: what the bundle says, see ps3 info; of encoders one look); of a bundle that looks in one place, twice that and more are spent in further places until something is found")
    selection(ask)
    ask.add_argument("--choices", nargs="+", metavar="TEXT", help="rank these answers; after FRAME and PROMPT")
    ask.add_argument("--look-again", type=float, metavar="P", help="look at the frame again where the answer is less sure than this, 0: never (default: what the bundle says)")
    ask.add_argument("--max-tokens", type=int, metavar="N", help="of the answer in words, for bundles with a language model")
    ask.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    ask.add_argument("--overlay", metavar="PICTURE", help="draw what was looked at on the frame: .jpg .png .webp .bmp .tif")

    encode = command("encode", _encode, "write PS3's tokens, probability maps and picked patches to an .npz")
    frame(encode)
    bundle_and_threads(encode)
    query = encode.add_mutually_exclusive_group()
    query.add_argument("--prompt", default="", metavar="TEXT", help="what to look for (default: nothing, so an encoder picks by saliency)")
    query.add_argument("--prompt-embedding", metavar="NPY", help="a prompt vector, (width,) float, as .npy")
    selection(encode)
    amount = encode.add_mutually_exclusive_group()
    amount.add_argument("--tokens", type=int, metavar="N", help="high-res patches to encode")
    amount.add_argument("--looks", type=int, metavar="N", help="full looks of the model, in place of --tokens")
    amount.add_argument("--all", action="store_true", help="every patch of every scale")
    encode.add_argument("-o", "--output", required=True, metavar="NPZ")

    export = command("export", _export, "turn a checkpoint folder or hub id into an engine.plan")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or hub id such as nvidia/PS3-4K-SigLIP2")
    export.add_argument("-o", "--output", required=True, metavar="PLAN")
    export.add_argument("--revision", help="hub revision")
    export.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="int8: a quarter of the size, faster on CPUs, less exact")
    export.add_argument("--llm-precision", choices=("fp32", "fp16", "int4"), default="fp32", help="of a VILA-HD checkpoint's language model")
    export.add_argument("--work-dir", metavar="FOLDER", help="of a VILA-HD export: what is finished here is used again after an interruption")
    export.add_argument("--check-frame", metavar="FRAME", help="of a PS3 encoder: picture to measure the bundle's error on, of the kind it will see (default: a drawn one)")
    export.add_argument("--tokenizer", metavar="JSON", help="of a PS3 encoder: tokenizer.json to use when the checkpoint has none")

    from .export import engine_options
    engine_options.add_arguments(command("build", _build, "build engines for TensorRT or TensorRT-RTX, or ONNX with reference values, from a bundle or checkpoint"))

    verify = command("verify", _verify, "hold a bundle to the reference values inside, on this machine")
    verify.add_argument("bundle", metavar="PLAN", type=_plan, help="or the word default for the embedded one")
    verify.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    verify.add_argument("--device", choices=("cpu", "cuda"), help="where ONNX bundles run (default: cpu)")
    verify.add_argument("--json", action="store_true", help="print the result as JSON; the error of a stage is null where it is infinitely off")
    verify.add_argument("-o", "--output", metavar="JSON", help="write the result there too")

    info = command("info", _info, "print a bundle's data sheet")
    info.add_argument("bundle", nargs="?", metavar="PLAN", type=_plan, default="default", help="default: the embedded bundle")
    info.add_argument("--json", action="store_true", help="print the manifest itself")

    bench = command("bench", _bench, "time every stage on this machine")
    bundle_and_threads(bench)
    bench.add_argument("--frame", metavar="PICTURE", help="default: seeded noise of 3840x2160")
    bench.add_argument("--prompt", default="", metavar="TEXT")
    bench.add_argument("--tokens", type=int, metavar="N")
    bench.add_argument("--runs", type=int, default=10)
    bench.add_argument("--json", action="store_true")

    from .evaluate import command as evaluation
    sub = command("eval", _eval, "how often answers are right, on scenes made for it or on questions of your own")
    evaluation.add_arguments(sub)
    bundle_and_threads(sub)

    from .training import recipe
    recipe.add_arguments(command("train", recipe.train, "train the small model of our own by its whole recipe, continuing where it was stopped"))

    command("doctor", _doctor, "check this installation and say what is missing")
    return parser


def _session(options):
    from .session import LICENCE_NOTE, Session
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # said below, as one line
        session = Session(options.bundle, threads=options.threads, device=options.device)
    for note in session.notes:
        if note.startswith(LICENCE_NOTE):
            print(f"ps3: {note}", file=sys.stderr)
    return session


def _selection(options) -> dict:
    return {"selection": "bottom_up" if options.bottom_up else "top_down" if options.top_down else None, "scales": options.scales, "smooth": options.smooth}


def _frame(options):
    return sys.stdin.buffer.read() if options.frame == "-" else options.frame


def _ask(options) -> None:
    if options.overlay:
        from .draw import suffix_of
        suffix_of(options.overlay)      # said before the work
    with _session(options) as session:
        answer = session.ask(_frame(options), options.prompt, tokens=options.tokens, looks=options.looks, choices=options.choices, look_again=options.look_again, max_tokens=options.max_tokens,
                             **_selection(options))
        print(answer.to_json() if options.json else answer, flush=True)
        if options.overlay:
            answer.save_overlay(options.overlay)
    if options.overlay:
        print(f"{answer.headline()} -> {options.overlay}", file=sys.stderr if options.json else sys.stdout)


def _encode(options) -> None:
    embedding = None
    if options.prompt_embedding:
        try:
            embedding = np.load(options.prompt_embedding, allow_pickle=False)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise InputError(f"[encode] {options.prompt_embedding} cannot be read as a vector: {error}. Write it with numpy.save, float32.") from error
    check_place(options.output, "encode")
    if Path(options.output).suffix != ".npz":
        raise InputError(f"[encode] {options.output} is to hold several arrays; a name that ends in .npz is needed. Name it so.")
    with _session(options) as session:
        encoding = session.encode(_frame(options), options.prompt, prompt_embedding=embedding, tokens=options.tokens,
                                  looks="all" if options.all else options.looks, **_selection(options))
    arrays = {"tokens": encoding.tokens}
    for px, ids in encoding.picked.items():
        arrays[f"prob_{px}"], arrays[f"picked_{px}"] = encoding.prob_at(px), ids
    _write_npz(Path(options.output), arrays)
    for note in encoding.notes:
        print(f"ps3: {note}", file=sys.stderr)
    picked = ", ".join(f"{len(ids)} of {px} px" for px, ids in encoding.picked.items())
    print(f"{options.output}: {len(encoding.tokens)} tokens of width {encoding.tokens.shape[1]} ({encoding.num_low} low-res; {picked}) in {encoding.timing.total_ms:.0f} ms")


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with replaced(path) as beside, open(beside, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise InputError(f"[encode] {path} cannot be written: {error.strerror or error}. Choose a writable place with room.") from error


def _export(options) -> None:
    progress = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        from .export.export_checkpoint import export_checkpoint
        export_checkpoint(options.checkpoint, options.output, revision=options.revision, tokenizer=options.tokenizer, precision=options.precision, check_frame=options.check_frame,
                          llm_precision=options.llm_precision, work_dir=options.work_dir, progress=progress)
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(f"[export] {error.name} is not installed, exporting needs it. pip install 'ps3_sdk[export]'") from error
    print(f"{options.output}: ready. ps3 info {options.output}")


def _build(options) -> None:
    progress = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        from .export.build_engine import build_engine
        from .export.engine_options import from_arguments
        lines = build_engine(options.source, options.output, from_arguments(options), dry_run=options.dry_run, progress=progress)
    except ModuleNotFoundError as error:
        raise RuntimeMissingError(f"[build] {error.name} is not installed, building needs it. pip install 'ps3_sdk[export]'") from error
    print("\n".join(lines))


def _verify(options) -> int:
    from .verify import verify
    error = None
    if options.output:
        check_place(options.output, "verify")
    try:
        report = verify(options.bundle, threads=options.threads, device=options.device)
    except Ps3Error as failed:
        if not hasattr(failed, "report"):
            raise
        report, error = failed.report, failed
    result = json.dumps({"bundle": options.bundle, "passed": error is None, "why": None if error is None else str(error), **report.to_dict()}, indent=1, allow_nan=False)
    print(result if options.json else report.table())
    if options.output:
        try:
            with replaced(Path(options.output)) as beside:
                Path(beside).write_text(result + "\n")
        except OSError as failed:
            raise InputError(f"[verify] {options.output} cannot be written: {failed.strerror or failed}. Choose a writable place.") from failed
    if error is not None:
        raise error
    if not options.json:
        print(f"{options.bundle}: every stage is within its limits on this machine")
    return 0


def _info(options) -> None:
    from .bundle import Bundle, describe
    with Bundle.open(options.bundle) as bundle:
        print(json.dumps(bundle.manifest, indent=2, allow_nan=False) if options.json else describe(bundle))


def _bench(options) -> None:
    from .measure import bench
    with _session(options) as session:
        result = bench(session, options.frame, options.prompt, options.tokens, options.runs)
    print(json.dumps(result, allow_nan=False) if options.json else result)


def _eval(options) -> None:
    from .evaluate import command
    figures, note = command.run(options, _session)
    if note:
        print(f"ps3: {note}", file=sys.stderr)
    print(figures)


def _doctor(options) -> int:
    from .measure import doctor
    lines, healthy = doctor()
    print("\n".join(lines))
    return 0 if healthy else EXIT_FAILED
