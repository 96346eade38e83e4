"""How sure is an answer? python -m ps3_sdk.training.confidence CHECKPOINT writes CHECKPOINT/confidence.json, which exports take along.

Held-out scenes of split val are asked as the SDK asks. First: from which probability on is it to be said that something is not visible? Two fifths of
what is answered in training are, fewer questions in use. Of some thresholds those are near the best with which nearly as many questions are answered right, those whose
answer that is among them; the highest of these is taken, since a value that is told with little confidence is of more use than none. Then, of each answer that gives a value, two probabilities are known: the language model's of its text, and score's of the place that
was looked at. A logistic regression on both tells how probably it is right. Answers that are less sure than AGAIN are looked for again, part of a patch further on
(ps3_sdk/again.py). A third of the scenes, not fitted on, tell how well all this does.
Source: J. Platt, "Probabilistic outputs for support vector machines", 1999.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np
import torch

from ps3_sdk.again import cut, is_better
from ps3_sdk.atomic import replaced
from ps3_sdk.evaluate.progress import Bar
from ps3_sdk.export.reference.vila.config import AGAIN as KEY, CONFIDENCE, CONFIDENCE_KEYS, UNSEEN
from ps3_sdk.export.reference.vila.model import VilaHd
from ps3_sdk.probability import calibrated

from . import machine

MOST_TOKENS, FEWEST_ANSWERS = 32, 50
BINS = (0, 0.2, 0.4, 0.6, 0.8, 1.0001)
THRESHOLDS = (0.0, *np.linspace(0.5, 0.95, 10).round(2).tolist())
NEARLY = 0.0025         # of the questions
AGAIN = 0.8             # a fifth of all questions; from 0.9 on a third, and hardly more were right


class Asked(NamedTuple):
    """A question. unseen: probability of NOT_SEEN, 0 where another answer is more probable | text, place: probabilities of the best other answer and of the place that was looked at |
    right: whether that answer is | there: whether the question has one | again: the same of a second look, part of a patch further on."""
    unseen: float
    text: float
    place: float
    right: bool
    there: bool
    again: "Asked | None" = None

    def has_value(self, least: float) -> bool:
        """Whether it is answered by a value where NOT_SEEN is said from a probability of `least` on."""
        return not self.unseen or self.unseen < least

    def given(self, weights: dict[str, float]) -> "Asked":
        """What is answered at last, itself or again: as ps3_sdk.again decides."""
        least, other = weights.get(UNSEEN, 0.0), self.again
        sure = lambda each: calibrated(each.text, each.place, weights) if each.has_value(least) else 1 - each.unseen     # that something is there
        if other is None or (sure(self) if self.has_value(least) else self.unseen) >= AGAIN:
            return self
        return other if is_better(sure(self), sure(other), other.has_value(least)) else self


@torch.no_grad()
def asked(model: VilaHd, scene) -> list[Asked]:
    """Every question of a scene, asked as the SDK asks, and again in a second look."""
    looks, kept = {}, []

    def ask(edges: tuple[int, int, int, int], question) -> tuple[Asked, tuple[float, float]]:
        """The frame without so much at its top, left, bottom and right; what is answered, and the place (y, x) in pixels."""
        top, left, bottom, right = edges
        h, w = scene.frame.shape[:2]
        seen, known = looks.get(edges) or (model.look(np.ascontiguousarray(scene.frame[top:h - bottom, left:w - right])), None)
        said = model.generate([seen, question.prompt], options, max_new_tokens=MOST_TOKENS, known=known, unseen=2.0)
        looks[edges], there, prob = (seen, said.known), question.item is not None, said.picked[0].probs[0].flatten()
        first = model.llm.logits(said.known.hidden).softmax(dim=0)
        unseen = float(first[model.unseen_id]) if int(first.argmax()) == model.unseen_id else 0.0
        side = math.isqrt(len(prob))
        row, column = divmod(int(prob.argmax()), side)
        return Asked(unseen, math.exp(said.logprob), float(prob.max()), there and said.text == question.answer, there), ((row + 0.5) * h / side, (column + 0.5) * w / side)

    options, finest = replace(model.config.looks, rule="blocks"), model.config.vision.grids[-1]        # as the SDK selects
    for question in scene.questions:
        one, place = ask((0, 0, 0, 0), question)
        kept.append(one._replace(again=ask(cut(scene.frame.shape[:2], finest, place), question)[0]))
    return kept


def answered(questions: Sequence[Asked], unseen: float) -> np.ndarray:
    """Of the questions that are answered by a value: (n, 3) probability of the text, of the place, 1 where it is right."""
    return np.array([each[1:4] for each in questions if each.has_value(unseen)], float).reshape(-1, 3)


def good(questions: Sequence[Asked], unseen: float) -> int:
    """How many are answered right, by a text or by NOT_SEEN."""
    return sum(each.right if each.has_value(unseen) else not each.there for each in questions)


def threshold_of(questions: Sequence[Asked]) -> float:
    """The highest of THRESHOLDS with which nearly as many are answered right as with the best."""
    found = {threshold: good(questions, threshold) for threshold in THRESHOLDS}
    return max(threshold for threshold, count in found.items() if count >= max(found.values()) - NEARLY * len(questions))


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
    bar = Bar(sys.stderr)
    for i in range(options.scenes):
        groups.append(asked(model, scenes[i]))
        bar(i + 1, options.scenes, "scenes")
    own, others = ([each for i, group in enumerate(groups) for each in group if (i % 3 == 2) == held_out] for held_out in (False, True))
    unseen = threshold_of(own)
    fit = answered(own, unseen)
    if len(fit) < FEWEST_ANSWERS or len(set(fit[:, 2])) < 2:
        path.unlink(missing_ok=True)
        print(f"{len(fit)} answers, {int(fit[:, 2].sum())} of them right, tell nothing of confidence: at least {FEWEST_ANSWERS} are needed, right and wrong ones. No {CONFIDENCE} is written; "
              "train longer, or pass more --scenes.")
        return
    more = ({UNSEEN: unseen} if unseen else {}) | {KEY: AGAIN}
    weights = fitted(fit) | more
    weights = fitted(answered([each.given(weights) for each in own], unseen)) | more        # the surer one of two is less often right than one that is as sure by itself
    given = [each.given(weights) for each in others]
    for text, some, threshold in (("not visible whenever it is most probable", others, 0.0), (f"from {unseen:.2f} on", others, unseen), ("and looked again", given, unseen)):
        there, values = [each for each in some if each.there], answered([each for each in some if not each.there], threshold)
        print(f"{text}, {len(some)} other questions: {100 * answered(there, threshold)[:, 2].sum() / max(len(there), 1):.1f} % of those with an answer right, "
              f"values for {len(values)} of {len(some) - len(there)} without")
    with replaced(path) as beside:
        Path(beside).write_text(json.dumps(weights) + "\n", "utf-8")
    kept = answered(given, unseen)
    print(f"{path}: {weights}, of {len(fit)} answers; of {len(kept)} others:", *told(kept, weights), sep="\n")


if __name__ == "__main__":
    machine.command(main)
