"""How sure is an answer? python -m ps3_sdk.training.confidence CHECKPOINT writes CHECKPOINT/confidence.json, which exports take along.

Held-out scenes of split val are asked as the SDK asks. Of each answer that gives a value, two probabilities are known: the language model's of its
text, and score's of the place that was looked at. A logistic regression on both tells how probably it is right; a third of the scenes, not
fitted on, tell how well. Source: J. Platt, "Probabilistic outputs for support vector machines", 1999.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ps3_sdk.export.reference.vila.config import CONFIDENCE, CONFIDENCE_KEYS
from ps3_sdk.export.reference.vila.model import VilaHd
from ps3_sdk.probability import calibrated

from .nano import NOT_SEEN

MOST_TOKENS, FEWEST_ANSWERS = 32, 50
BINS = (0, 0.2, 0.4, 0.6, 0.8, 1.0001)


def asked(model: VilaHd, scene) -> list[tuple[float, float, bool]]:
    """Of a scene's questions that are answered by a value: probability of the text, of the place, and whether it is right."""
    options, seen, known, kept = replace(model.config.looks, rule="blocks"), model.look(scene.frame), None, []      # as the SDK selects
    for question in scene.questions:
        said = model.generate([seen, question.prompt], options, max_new_tokens=MOST_TOKENS, known=known)
        known = said.known
        if said.text != NOT_SEEN:
            kept.append((math.exp(said.logprob), float(said.picked[0].probs[0].max()), question.item is not None and said.text == question.answer))
    return kept


def fitted(answers: np.ndarray) -> dict[str, float]:
    """answers: (n, 3) probability of the text, of the place, 1 where it is right. Newton's method on the likelihood, a little ridge."""
    x = np.column_stack([np.ones(len(answers)), *(np.log(p / (1 - p)) for p in answers[:, :2].clip(1e-6, 1 - 1e-6).T)])
    weights = np.array([0.0, 1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        weights += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + 0.1 * np.eye(3), x.T @ (answers[:, 2] - p) - 0.1 * weights)
    return dict(zip(CONFIDENCE_KEYS, weights.round(4).tolist()))


def told(answers: np.ndarray, weights: dict[str, float]) -> list[str]:
    sure = np.array([calibrated(text, place, weights) for text, place, _ in answers])
    lines = []
    for low, high in zip(BINS, BINS[1:]):
        here = (sure >= low) & (sure < high)
        lines.append(f"confidence {low:.1f} - {min(high, 1):.1f}: {here.sum():4d} answers" + (f", {100 * answers[here, 2].mean():3.0f} % right" if here.any() else ""))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=240)
    options = parser.parse_args()
    from .scenes import Scenes
    model, scenes, groups, path = VilaHd.from_checkpoint(options.checkpoint), Scenes(split="val", seed=2), [], options.checkpoint / CONFIDENCE
    for i in range(options.scenes):
        groups.append(asked(model, scenes[i]))
        print(f"\r{i + 1}/{options.scenes} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    fit, kept = (np.array([answer for i, group in enumerate(groups) for answer in group if (i % 3 == 2) == held_out], float).reshape(-1, 3) for held_out in (False, True))
    if len(fit) < FEWEST_ANSWERS or len(set(fit[:, 2])) < 2:
        path.unlink(missing_ok=True)
        print(f"{len(fit)} answers, {int(fit[:, 2].sum())} of them right, tell nothing of confidence: at least {FEWEST_ANSWERS} are needed, right and wrong ones. No {CONFIDENCE} is written; "
              "train longer, or pass more --scenes.")
        return
    weights = fitted(fit)
    path.with_suffix(".new").write_text(json.dumps(weights) + "\n", "utf-8")
    path.with_suffix(".new").replace(path)
    print(f"{path}: {weights}, of {len(fit)} answers; of {len(kept)} others:", *told(kept, weights), sep="\n")


if __name__ == "__main__":
    main()
