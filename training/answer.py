"""Stages 2 and 3 of the recipe: python -m training.answer POOL RUN --steps 4000. Scenes, the whole way of an answer. Continues where it was stopped.

Stage 2 begins with what training.spell left in RUN/spell, and goes on spelling beside, so that reading is not forgotten. --closely is
stage 3: it begins with RUN/answer, and what is read lies in places that the model itself picked, at every scale. Frames are made by
--workers other processes meanwhile.
"""
from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from . import machine, nano
from .closely import Closely
from .examples import make_example
from .frames import Ring
from .joint import Joint
from .optimiser import Optimiser, schedule
from .reading import DensePool, Reader, slot_accuracy
from .spell import Speller, begin, words_batch
from .state import Run

LOG_EVERY, CHECK_EVERY, SAVE_EVERY = 10, 250, 50
NUM_CHECKED = 24
QUESTIONS = 8           # answered of a scene
SPELT_WORDS = 2         # asked of a window that is spelt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--closely", action="store_true", help="stage 3")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=1, help="per step and process that are answered")
    parser.add_argument("--looks", type=int, default=2, help="more scenes that are only looked at: where is what is asked?")
    parser.add_argument("--windows", type=int, default=64, help="of dense text per step and process that are read on, so that reading goes on getting better")
    parser.add_argument("--spelt", type=int, default=12, help="of these windows, how many are also spelt")
    parser.add_argument("--places", type=int, default=6, help="of the low-res grid that stage 3 looks at")
    parser.add_argument("--workers", type=int, default=1, help="that make frames, per process")
    parser.add_argument("--uses", type=int, default=1, help="of each frame, with other questions and windows")
    parser.add_argument("--ring", type=int, default=12, help="frames in memory, 25 MB each, per process")
    parser.add_argument("--lr", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--begin", help="stage whose weights to begin with: a folder of RUN; default spell, --closely: answer")
    machine.add_options(parser)
    options = parser.parse_args()
    nano.write_folder(options.run / "model")
    machine.launch(work, options)


def work(options: argparse.Namespace, rank: int) -> None:
    stage, before = ("closely", "answer") if options.closely else ("answer", "spell")
    pool = DensePool(options.pool, "train")
    model = nano.new_model(options.run / "model", options.seed)
    reader = Reader(model.vision.vision_model)
    joint = Closely(model, reader, options.places) if options.closely else Joint(model, reader)
    begin(joint, options.run, options.begin or before)
    speller = Speller(model, reader)
    optimiser = Optimiser(joint, muon_lr=0.01, adam_lr=1.2e-3)
    run = Run(options.run / stage, joint, optimiser)
    joint.to(options.device)
    joint.see, see = machine.compiled(joint.see, options), machine.compiled(speller.see, options)
    rng = np.random.default_rng([options.seed, run.step, rank])
    first = run.step * (options.scenes + options.looks) // options.uses + rank * 1_000_000
    ring = Ring("train", options.seed, options.ring, options.uses, options.workers, start=first)
    held_out = [] if rank else _held_out()
    sums: dict[str, list[float]] = {}
    rng_data, executor = np.random.default_rng([options.seed, run.step, rank, 1]), ThreadPoolExecutor(1)

    def dense():
        patches, ids, labels, words = words_batch(pool, rng_data, options.windows, SPELT_WORDS, augment=True)
        return patches, ids, labels, [word for word in words if word[0] < options.spelt]

    try:
        upcoming = executor.submit(dense)
        while run.step < options.steps:
            reader.smooth = None            # its table is trained in this stage
            patches, ids, labels, words = upcoming.result()
            upcoming = executor.submit(dense)
            with machine.half(options):
                slot, answer, slots, right = speller(*(t.to(options.device) for t in (patches, ids, labels)), words, rng, see)
            (slot + answer).backward()
            sums.setdefault("spelt", []).append(float(np.mean(right)))
            sums.setdefault("dense_slot", []).append(slot_accuracy(slots.cpu(), labels))
            for n in range(options.scenes + options.looks):
                with machine.half(options):
                    example = make_example(ring.next(), rng, questions=QUESTIONS) if n < options.scenes else make_example(ring.next(), rng, windows=0)
                    loss, measures = joint(example, rng)
                (loss / (options.scenes if n < options.scenes else options.looks)).backward()
                for key, value in measures.items():
                    sums.setdefault(key, []).append(value)
            optimiser.step(options.lr * schedule(run.step / options.steps, decay_from=0.3))
            run.step += 1
            if rank:
                sums = {}
                continue
            if run.step % LOG_EVERY == 0:
                run.log(**{key: float(np.nanmean(values)) for key, values in sums.items() if not np.isnan(values).all()})
                sums = {}
            if run.step % CHECK_EVERY == 0:
                run.log(**{f"val_{key}": value for key, value in check(joint, held_out, options).items()})
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save()
                nano.save(model, options.run / "model")
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        ring.close()


def _held_out() -> list:
    from .scenes import Scenes
    scenes, rng = Scenes(split="val", seed=1), np.random.default_rng(7)
    return [make_example(scenes[i], rng) for i in range(NUM_CHECKED)]


@torch.no_grad()
def check(joint: Joint, examples: list, options: argparse.Namespace) -> dict[str, float]:
    """Mean measures on held-out examples; exact: answers whose every token is the most probable one."""
    rng, found = np.random.default_rng(0), {}
    joint.eval()            # places are not told
    for example in examples:
        with machine.half(options):
            measures = joint(example, rng)[1]
        for key, value in measures.items():
            found.setdefault(key, []).append(value)
    joint.train()
    return {key: float(np.nanmean(values)) for key, values in found.items()}


if __name__ == "__main__":
    main()
