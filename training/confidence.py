"""How sure is an answer? python -m ps3_sdk.training.confidence CHECKPOINT writes CHECKPOINT/confidence.json, which exports take along.

Held-out scenes of split val are asked as the SDK asks. Of each answer that gives a value, two probabilities are known: the language model's of its
text, and score's of the place that was looked at. A logistic regression on both tells how probably it is right; a third of the scenes, not
fitted on, tell how well. Source: J. Platt, "Probabilistic outputs for support vector machines", 1999.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from ps3_sdk.errors import InputError
from ps3_sdk.export.reference.vila.config import CONFIDENCE, CONFIDENCE_KEYS
from ps3_sdk.probability import calibrated

from . import nano
from .closely import Closely, Look
from .examples import make_example
from .looking import taken
from .reading import Reader

MOST_TOKENS = 16
BINS = (0, 0.2, 0.4, 0.6, 0.8, 1.0001)


@torch.no_grad()
def said(closely: Closely, rows: torch.Tensor, kv, question: list[int]) -> tuple[str, float]:
    """The most probable answer, token by token, and its probability. rows: (1, k, width) high-res rows | kv: of the frame's low-res rows."""
    llm, ids, logprob = closely.model.llm, [], 0.0
    out, kv = llm(torch.cat([rows, llm.embed(torch.tensor([question + closely.tail_ids]))], dim=1), kv)
    for _ in range(MOST_TOKENS):
        logprobs = llm.logits(out[:, -1]).log_softmax(dim=-1)[0]
        best = int(logprobs.argmax())
        logprob += float(logprobs[best])
        if best == closely.end_ids[0]:
            break
        ids.append(best)
        out, kv = llm(llm.embed(torch.tensor([[best]])), kv)
    return closely.model.chat.answer(ids), float(np.exp(logprob))


@torch.no_grad()
def asked(closely: Closely, scene, rng: np.random.Generator) -> list[tuple[float, float, bool]]:
    """Of a scene's questions that are answered by a value: probability of the text, of the place, and whether it is right."""
    example, kept = make_example(scene, rng), []
    found = closely.find([example])
    for (_, answer), question, prob in zip(example.asked, found.questions, found.prob.numpy()):
        rows, place, _ = closely.look([example], found.seen, [Look(0, closely.cells(closely.near(prob, False)), [], [])])
        text, sure = said(closely, closely.model.projector.told(rows, torch.from_numpy(prob)[place]), taken(found.kv, torch.tensor([0])), question)
        if text != nano.NOT_SEEN:
            kept.append((sure, float(prob.max()), text == answer))
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


def newer(path: Path, others) -> bool:
    return path.exists() and all(path.stat().st_mtime > other.stat().st_mtime for other in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=120)
    options = parser.parse_args()
    if newer(options.checkpoint / CONFIDENCE, options.checkpoint.rglob("*.safetensors")):
        print(f"{options.checkpoint / CONFIDENCE} is newer than the weights; delete it to measure again")
        return
    from .scenes import Scenes
    model = nano.new_model(options.checkpoint).eval()
    nano.load(model, options.checkpoint)
    closely, scenes, rng, groups = Closely(model, Reader(model.vision.vision_model)), Scenes(split="val", seed=2), np.random.default_rng(0), []
    for i in range(options.scenes):
        groups.append(asked(closely, scenes[i], rng))
        print(f"\r{i + 1}/{options.scenes} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    fit, kept = (np.array([answer for i, group in enumerate(groups) for answer in group if (i % 3 == 2) == held_out], float).reshape(-1, 3) for held_out in (False, True))
    if len(fit) < 50 or len(set(fit[:, 2])) < 2:
        raise InputError(f"[training] {len(fit)} answers, {int(fit[:, 2].sum())} of them right, tell nothing about confidence; 50 are needed, right ones and wrong ones. Pass more --scenes.")
    weights = fitted(fit)
    beside = (options.checkpoint / CONFIDENCE).with_suffix(".new")
    beside.write_text(json.dumps(weights) + "\n", "utf-8")
    beside.replace(options.checkpoint / CONFIDENCE)
    print(f"{options.checkpoint / CONFIDENCE}: {weights}, of {len(fit)} answers; of {len(kept)} others:", *told(kept, weights), sep="\n")


if __name__ == "__main__":
    main()
