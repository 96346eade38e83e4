"""Stages 1 to 3 of the recipe: python -m ps3_sdk.training.answer POOL RUN look, then .. look_on, .. answer, .. score. Each continues where it was stopped.

look: dense text is read on and spelt, scenes are looked at: where is what is asked? It begins with what training.read left.
look_on: the same, from places that say where they are (training.places); it begins with RUN/look, or with --begin.
answer: scenes are answered the whole way, from places that the model picked; spelling and looking go on beside. It begins with RUN/look_on.
score: looking goes on alone, and only what places are scored by learns, so that nothing that reads changes. It begins with RUN/answer.
--begin takes another stage of RUN or a checkpoint folder, such as the embedded model's own. Frames are made by --workers other processes.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ps3_sdk.errors import InputError

from . import machine, nano
from .closely import Closely
from .examples import Cutter, make_example
from .frames import MOST_QUESTIONS, Ring
from .looking import Looking
from .optimiser import Optimiser, schedule
from .reading import DensePool, Reader, augmented, normalised, slot_accuracy
from .spell import Speller, Words, words_batch
from .state import Run, copy_heads, load_heads, means, save_heads

BEFORE = {"look": "read", "look_on": "look", "answer": "look_on", "score": "answer"}
LOG_EVERY = 10
NUM_CHECKED, TOGETHER = 24, 6   # held-out scenes; how many go through the networks together
VISION = "model.vision.vision_model."
TRUNK = (VISION + "trunk.", VISION + "pos_emb")
SCORE = (VISION + "selection_feature_proj.", VISION + "highres_selection_feature_module.", VISION + "prompt_proj_for_highres.", VISION + "prior_prompt",
         "model.projector.top_down_prompt_head.")       # what places are scored by
FRESH = 100             # steps in which nothing else learns from heads that were not there before: they would disturb it
READING = 4.0           # weight of reading dense text beside looking, which else undoes it: Muon's steps have one length, whichever loss they serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("stage", choices=tuple(BEFORE))
    parser.add_argument("--begin", help="stage of RUN, or a checkpoint folder; default: the stage before")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seconds", type=float, help="train for so long, in all sittings, instead of --steps")
    parser.add_argument("--scenes", type=int, default=1, help="answered per step and process, in stage answer")
    parser.add_argument("--looks", type=int, default=1, help="scenes per step and process that are only looked at")
    parser.add_argument("--small", action="store_true", help="these are drawn at 1920x1080, which is faster; what is answered is 4K always")
    parser.add_argument("--questions", type=int, default=MOST_QUESTIONS, help="per use of a scene, at most")
    parser.add_argument("--still", action="store_true", help="the trunk stays as it is: looking alone learns, twice as fast, and no reading is lost")
    parser.add_argument("--windows", type=int, default=24, help="of dense text per step and process")
    parser.add_argument("--spelt", type=int, default=24, help="words of these windows that are spelt")
    parser.add_argument("--places", type=int, default=4, help="of the low-res grid that an answer looks at")
    parser.add_argument("--workers", type=int, default=1, help="that make frames, per process")
    parser.add_argument("--dense-workers", type=int, default=1, help="that cut windows of dense text, per process")
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--uses", type=int, default=2, help="of each frame, with other questions")
    parser.add_argument("--ring", type=int, default=24, help="frames in memory, 25 MB each, per process")
    parser.add_argument("--lr", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--decay-from", type=float, default=0.4, help="share of the steps after which learning rates fall")
    parser.add_argument("--least", type=float, default=0.02, help="of the learning rates at the end")
    parser.add_argument("--mean-over", type=float, default=100, metavar="STEPS", help="what is checked and written are the weights' means over about so many; 1: the last ones")
    parser.add_argument("--check-every", type=int, default=250, help="steps between looks at held-out scenes")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="print where the time of N steps goes, after ten others, and go on")
    machine.add_options(parser)
    options = parser.parse_args()
    if is_checkpoint(options.begin):
        copy_heads(options.begin, nano.copy_folder(options.begin, options.run / "model"))
    nano.write_folder(options.run / "model")
    machine.launch(work, options)


def work(options: argparse.Namespace, rank: int) -> None:
    answering, scoring, cutter = options.stage == "answer", options.stage == "score", Cutter(options.device)
    model = nano.new_model(options.run / "model", options.seed)
    reader = Reader(model.vision.vision_model)
    looking = Closely(model, reader, options.places, cutter=cutter) if answering else Looking(model, reader)
    looking.fresh = begin(looking, options.run, options.begin or BEFORE[options.stage])
    speller = Speller(looking, through=answering)
    keep_still(looking, options.still, scoring)
    looking.to(options.device)
    optimiser = Optimiser(looking, muon_lr=0.01, adam_lr=1.2e-3)
    run = Run(options.run / options.stage, looking, optimiser, options.mean_over)
    rng = np.random.default_rng([options.seed, run.step, rank, 0])
    scenes = options.scenes if answering else 0
    frames = Frames(options, scenes, run.step, rank, cutter)
    dense = None if scoring else Words(options.pool, [options.seed, run.step, rank, 1], options.windows, options.spelt).batches(options.dense_workers)
    held_out = None if rank else HeldOut(options.pool, cutter)
    sums: dict[str, list] = {}

    def backward(loss: torch.Tensor, measures: dict) -> None:
        loss.backward()
        for key, value in measures.items():
            sums.setdefault(key, []).append(value)

    def progress() -> float:
        return machine.agreed(run.spent() / options.seconds if options.seconds else run.step / options.steps)

    profile = machine.Profile(10, options.profile) if options.profile and rank == 0 else None
    try:
        done = progress()
        while done < 1:
            if dense is not None:
                reader.smooth = None            # its table is trained in this stage
                patches, ids, labels, words = next(dense)
                patches, ids, labels = (t.to(options.device) for t in (patches, ids, labels))
                with machine.half(options):
                    slot, answer, slots, right = speller(augmented(normalised(patches), rng), ids, labels, words)
                backward(READING * slot + answer, {"spelt": right.float().mean(), "dense_slot": slot_accuracy(slots, labels)})
            if run.step >= FRESH:
                looking.fresh.clear()
            with machine.half(options):
                examples = frames.next()
                loss, measures = looking(examples, rng, scenes) if scenes else looking.search(examples)
            backward(loss, measures)
            optimiser.step(options.lr * schedule(done, decay_from=options.decay_from, least=options.least))
            run.stepped()
            if profile is not None:
                profile.step()
            done = progress()
            if rank:
                sums.clear()
                continue
            if run.step % LOG_EVERY == 0:
                run.log(**means(sums))
                sums.clear()
            if run.step % options.check_every == 0 or done >= 1:
                with run.mean.inside():
                    run.log(**{f"val_{key}": value for key, value in held_out.check(looking, speller, options).items()})
            if run.step % options.save_every == 0 or done >= 1:
                run.save()
                with run.mean.inside():
                    nano.save(model, options.run / "model", torch.float16)
                    save_heads(options.run / "model", **looking.heads)
    finally:
        frames.close()


def keep_still(looking: Looking, trunk: bool, scoring: bool) -> None:
    """Parameters that are to stay as they are need no gradient. scoring: all but what places are scored by, and training's own heads."""
    for name, parameter in looking.named_parameters():
        if trunk and name.startswith(TRUNK) or scoring and name.startswith(("model.", "reader.")) and not name.startswith(SCORE):
            parameter.requires_grad_(False)


class Frames:
    """The scenes of each step, those to answer first; with --small from a ring of their own, the others from one of smaller frames."""

    def __init__(self, options: argparse.Namespace, scenes: int, step: int, rank: int, cutter: Cutter):
        counts = {(2160, 3840): scenes, (1080, 1920): options.looks} if options.small else {(2160, 3840): scenes + options.looks}
        self._questions, self._rings = options.questions, []
        for n, (frame_px, count) in enumerate(counts.items()):
            if count:
                first = step * count // options.uses + rank * 1_000_000 + bool(scenes) * 500_000 + n * 250_000
                self._rings.append((count, Ring("train", options.seed, options.ring, options.uses, options.workers, frame_px, first, cutter,
                                                options.workers + 4 if cutter.cuda else None)))

    def next(self) -> list:
        return [example for count, ring in self._rings for example in ring.next(count, self._questions)]

    def close(self) -> None:
        for _, ring in self._rings:
            ring.close()


def is_checkpoint(stage: str | None) -> bool:
    return stage is not None and (Path(stage) / "config.json").exists()


def begin(module: nn.Module, run: Path, stage: str) -> set[str]:
    """Weights of an earlier stage of a run or of a checkpoint folder. Returns the names of heads that it does not have. Raises InputError: no such stage."""
    if is_checkpoint(stage):
        nano.load(module.model, stage)
        return load_heads(stage, **module.heads)
    path = run / stage / "state.pt"
    if not path.exists():
        raise InputError(f"[training] {path} does not exist. Train stage {stage} first, or pass --begin with another stage of {run} or a checkpoint folder.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = state.get("mean", state["model"])       # what that stage wrote into RUN/model, too
    if stage == "read":
        module.reader.load_state_dict(weights)
        return set(module.heads) - {"reading"}
    missing, other = module.load_state_dict(weights, strict=False)
    fresh = {name for name in module.heads if any(key.startswith(f"{name}.") for key in missing)}
    strange = [key for key in missing + other if key.startswith(("model.", "reader."))]     # else of heads that one of both stages has
    if strange:
        raise InputError(f"[training] {path} is of another model: {', '.join(strange[:3])}. Take another RUN, or train stage {stage} again.")
    return fresh


class HeldOut:
    """Frames and dense text that no training sees; check() gives mean measures. exact: answers whose every token is the most probable one."""

    def __init__(self, pool: Path, cutter: Cutter):
        from .scenes import Scenes
        scenes, rng = Scenes(split="val", seed=1), np.random.default_rng(7)
        self.examples = []
        for scene in (scenes[i] for i in range(NUM_CHECKED)):
            self.examples.append(make_example(scene, rng, MOST_QUESTIONS, cutter, scenes.captions(np.random.default_rng(11), scene.domain, scene.items)))
        self.words = words_batch(DensePool(pool, "val"), np.random.default_rng(3), 96, 4)

    @torch.no_grad()
    def check(self, looking: Looking, speller: Speller, options: argparse.Namespace) -> dict[str, float]:
        rng, found = np.random.default_rng(0), {}
        with machine.half(options):
            for start in range(0, NUM_CHECKED, TOGETHER):
                for key, value in looking(self.examples[start:start + TOGETHER], rng)[1].items():
                    found.setdefault(key, []).append(value)
            return means(found) | speller.check(*self.words)


if __name__ == "__main__":
    machine.command(main)
