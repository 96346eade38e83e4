"""Stage 2 of the recipe: python -m training.answer RUN --steps 4000. Scenes, the whole way of an answer. Continues where it was stopped.

Begins with what training.spell left in RUN/spell. Frames are made by --workers other processes meanwhile.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from . import nano
from .examples import make_example
from .frames import Ring
from .joint import Joint
from .optimiser import Optimiser, schedule
from .reading import Reader
from .state import Run

LOG_EVERY, CHECK_EVERY, SAVE_EVERY = 10, 100, 50
NUM_CHECKED = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--scenes", type=int, default=4, help="per step")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--uses", type=int, default=3, help="of each frame, with other questions and windows")
    parser.add_argument("--ring", type=int, default=40, help="frames in memory, 25 MB each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lr", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    model = nano.new_model(options.run / "model", options.seed)
    joint = Joint(model, Reader(model.vision.vision_model))
    spelt = torch.load(options.run / "spell" / "state.pt", map_location="cpu", weights_only=True)["model"]
    joint.load_state_dict(spelt, strict=False)              # all but the contrast's temperature
    optimiser = Optimiser(joint, muon_lr=0.01, adam_lr=1e-3)
    run = Run(options.run / "answer", joint, optimiser)
    joint.to(options.device)
    rng = np.random.default_rng([options.seed, run.step])
    ring = Ring("train", options.seed, options.ring, options.uses, options.workers, start=run.step * options.scenes // options.uses)
    held_out = _held_out()
    sums: dict[str, list[float]] = {}
    try:
        while run.step < options.steps:
            for _ in range(options.scenes):
                loss, measures = joint(make_example(ring.next(), rng), rng)
                (loss / options.scenes).backward()
                for key, value in measures.items():
                    sums.setdefault(key, []).append(value)
            optimiser.step(options.lr * schedule(run.step / options.steps))
            run.step += 1
            if run.step % LOG_EVERY == 0:
                run.log(**{key: float(np.nanmean(values)) for key, values in sums.items() if not np.isnan(values).all()})
                sums = {}
            if run.step % CHECK_EVERY == 0:
                run.log(**{f"val_{key}": value for key, value in check(joint, held_out).items()})
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save()
                nano.save(model, options.run / "model")
    finally:
        ring.close()


def _held_out() -> list:
    from .scenes import Scenes
    scenes, rng = Scenes(split="val", seed=1), np.random.default_rng(7)
    return [make_example(scenes[i], rng) for i in range(NUM_CHECKED)]


@torch.no_grad()
def check(joint: Joint, examples: list) -> dict[str, float]:
    """Mean measures on held-out examples; exact: answers whose every token is the most probable one."""
    rng, found = np.random.default_rng(0), {}
    for example in examples:
        for key, value in joint(example, rng)[1].items():
            found.setdefault(key, []).append(value)
    return {key: float(np.nanmean(values)) for key, values in found.items()}


if __name__ == "__main__":
    main()
