"""Where a model of stage 2 fails: python -m training.conditions RUN. Share of the answers right where only so much can be read.

Each question is answered behind the low-res rows and the window of its own text, then with the windows of 1, 2 and 4 other things beside.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from . import nano
from .examples import make_example
from .joint import Joint, places_of
from .reading import Reader
from .spell import begin

OTHERS = (0, 1, 2, 4)


@torch.no_grad()
def conditions(joint: Joint, example) -> list[list[bool]]:
    """Per question that has a window: is the answer right, whole, beside each of OTHERS?"""
    chat, found = joint.model.chat, []
    seen, score, low_rows = joint.see_low(example)
    count = len(example.windows)
    past = [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in seen.kv]
    rows, blocks = joint.rows(joint.see(example.windows, joint.positions(3, example.window_ids), past).hidden[-1], example.window_ids)
    _, kv = joint.read_prefix(low_rows)
    probs = joint.prob(score, joint.model.projector.prompt(joint.read_prompts(kv, [chat._encode("\n" + prompt) for prompt, *_ in example.asked])))
    for prob, (prompt, answer, window, _) in zip(probs, example.asked):
        if window is None:
            continue
        apart = [i for i in range(count) if i != window and not set(blocks[i]) & set(blocks[window])]
        found.append([])
        for others in OTHERS:
            shown = [window] + apart[:others]
            order = np.argsort(blocks[shown], axis=None)
            told = joint.model.projector.told(rows[shown].flatten(0, 1)[order], prob[torch.from_numpy(places_of(blocks[shown].ravel()[order]))])
            high_kv = joint.model.llm(told[None], kv)[1]
            found[-1] += joint.read_answers(high_kv, [chat._encode("\n" + prompt)], [chat._encode(answer)])[1]
    return found


def main() -> None:
    from .scenes import Scenes
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", default="answer", help="whose weights: folder of RUN")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    model = nano.new_model(options.run / "model")
    joint = Joint(model, Reader(model.vision.vision_model))
    begin(joint, options.run, options.stage)
    scenes, right = Scenes(split=options.split, seed=options.seed), []
    for i in range(options.scenes):
        right += conditions(joint, make_example(scenes[i], np.random.default_rng(i)))
    for others, share in zip(OTHERS, np.mean(right, axis=0)):
        print(f"{others} other things: {100 * share:.0f} % of {len(right)} answers right")


if __name__ == "__main__":
    main()
