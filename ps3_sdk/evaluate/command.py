"""The `ps3 eval` command."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ..ask import SELECTIONS
from ..atomic import replaced
from ..errors import InputError, RuntimeMissingError


OF_SCENES = ("questions", "unanswerable", "domains", "split", "frame", "fallback")      # options


def add_arguments(sub) -> None:
    sub.add_argument("what", metavar="WHAT", help="scenes: our held-out ones; a folder in V*Bench's layout; or a .jsonl file of questions (docs/evaluation.md)")
    sub.add_argument("--questions", type=int, metavar="N", help="scenes: questions per domain (default 100)")
    sub.add_argument("--unanswerable", type=int, metavar="N", help="scenes: questions per domain that have no answer (default: half as many)")
    sub.add_argument("--domains", nargs="+", metavar="NAME", help="scenes: some of driving household gaming ui (default: all)")
    sub.add_argument("--split", help="scenes: test, val or train (default test)")
    sub.add_argument("--frame", metavar="WxH", help="scenes: frame size (default 3840x2160)")
    sub.add_argument("--fallback", action="store_true", help="scenes: go on without fonts and word lists, to try the command")
    sub.add_argument("--seed", type=int, help="of the scenes, or of the order of options in a folder (default 0)")
    sub.add_argument("--tokens", type=int, metavar="N", help="high-res patches per question (default: what the bundle says; of encoders one look)")
    sub.add_argument("--scales", type=int, metavar="N", help="look only at the first N high-res scales")
    sub.add_argument("--selection", choices=SELECTIONS, help="pick patches wherever the prompt's map is high, or by saliency (default: as the model was trained)")
    sub.add_argument("--look-again", type=float, metavar="P", help="look at a frame again where the answer is less sure than this, 0: never (default: as ps3 ask does)")
    sub.add_argument("--max-tokens", type=int, default=32, metavar="N", help="of an answer in words (default 32)")
    sub.add_argument("--json", action="store_true", help="print every figure as JSON")
    sub.add_argument("-o", "--output", metavar="FOLDER", help="keep results, summary and plots there; the same command continues what was interrupted")


def run(options, open_session) -> tuple[str, str]:
    """What the command says: the figures, and a note where plots could not be drawn. open_session: of these options."""
    from .plots import plot
    from .progress import Bar
    from .run import evaluate
    from .summary import table

    items = _items(options)
    start = time.perf_counter()
    with open_session(options) as session:
        summary = evaluate(session, items, tokens=options.tokens, scales=options.scales, selection=options.selection, look_again=options.look_again, max_tokens=options.max_tokens,
                           folder=options.output, open_seconds=time.perf_counter() - start, progress=Bar(sys.stderr))
    note, text = "", json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    if options.output:
        _write(Path(options.output) / "summary.json", text)
        try:
            plot(summary, Path(options.output) / "summary.png")
        except RuntimeMissingError as error:
            note = str(error)
        except Exception as error:      # of matplotlib, whatever it is: the figures are there all the same
            note = f"[evaluate] the plots could not be drawn: {error}; the figures are in {options.output}/summary.json."
    return text if options.json else table(summary), note


def _items(options):
    from .questions import read_questions
    from .scene_items import DOMAINS, SceneItems
    from .vstar import read_vstar

    seed = 0 if options.seed is None else options.seed
    if options.what == "scenes":
        return SceneItems(100 if options.questions is None else options.questions, unanswerable=options.unanswerable, domains=options.domains or DOMAINS, split=options.split or "test",
                          seed=seed, frame_px=_size(options.frame or "3840x2160"), fallback=options.fallback)
    is_folder = Path(options.what).is_dir()
    unused = [name for name in (*OF_SCENES, *(() if is_folder else ("seed",))) if getattr(options, name) is not None and getattr(options, name) is not False]
    if unused:
        raise InputError(f"[evaluate] {' '.join(f'--{name}' for name in unused)} is of scenes; {options.what} is asked whole. Leave it out.")
    return read_vstar(options.what, seed) if is_folder else read_questions(options.what)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and 256 <= int(width) <= 16384 and 256 <= int(height) <= 16384):
        raise InputError(f"[evaluate] the frame is {text!r}; width x height in pixels is needed, 256 to 16384 each. Pass 3840x2160.")
    return int(height), int(width)


def _write(path: Path, text: str) -> None:
    try:
        with replaced(path) as beside:
            Path(beside).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"[evaluate] {path} cannot be written: {error.strerror or error}. Choose a writable folder with room.") from error
