"""python -m ps3_sdk.training.places FROM TO: a checkpoint folder whose low-res places say where they are, and whose prompts know the words for it.
Without TO: how plain that is in FROM already, and which questions find their text, by what they name (held-out scenes).

Reading does without, so a trunk that learnt to read first has all but lost where its patches are: of the first embedded model's selection features no line told
row and column. What features do not say no prompt learns to ask for, and what no prompt asks for no feature learns to
say: that model found the text of a question that names only a place half as often as of one that names a colour. Here both are begun; training goes on from TO with --begin.
"""
from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import machine, nano

CHANNELS = 4            # the last ones of the selection's width: row, column, and how far from the middle row and column
MARK, SHARE = 6.0, 0.6  # length of the marks beside the patches' own rows; of the channels beside the features
AIMED = 0.4             # of a prompt's length in its channels, where it is sure of a place at the edge
NUM_SCENES, STEPS, TOGETHER = 64, 200, 96       # scenes to mark with; of teaching words, and prompts in each
KEPT = 0.3              # weight of what prompts say besides
ASIDE = 0.6             # where a thing on the left is: of the way from the middle to the edge


def coordinates(grid: int) -> Tensor:
    """(grid * grid, CHANNELS) f32 in -1..1, places row-major."""
    line = torch.linspace(-1, 1, grid)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([rows, columns, 2 * rows.abs() - 1, 2 * columns.abs() - 1], dim=-1).flatten(0, 1)


def aim(prompts: Tensor, truth: Tensor) -> Tensor:
    """How far prompts (q, width) aim beside the middle of the right places (q, grid * grid), of those questions that have one."""
    there, at = truth.sum(dim=1) > 0, coordinates(round(truth.shape[1] ** 0.5)).to(truth)[:, :2]
    return (beside(prompts, truth @ at / truth.sum(dim=1, keepdim=True).clamp(min=1)) * there).sum() / there.sum().clamp(min=1)


def beside(prompts: Tensor, wanted: Tensor) -> Tensor:
    """(q,) mean squared errors of row and column: prompts (q, width), wanted (q, 2) in -1..1."""
    length = AIMED * prompts.detach().norm(dim=1, keepdim=True)
    return ((prompts[:, -CHANNELS:-CHANNELS + 2] / length - wanted) ** 2).mean(dim=1)


@torch.no_grad()
def mark_places(model, lows: list[Tensor], prompts: Tensor) -> None:
    """Adds row and column to the low-res tokens' positions and gives the selection features CHANNELS that tell them.

    Both take directions that hardly anything else uses. Patches of the high-res scales keep the positions that they had: their residuals lose
    what the low-res table gains. lows: (places, patch values) f32 each, of some frames; prompts: (n, width), of any questions.
    """
    vision = model.vision.vision_model
    grid, width = model.config.vision.grids[0], model.config.vision.width
    _mark_tokens(vision, lows, grid, width)
    f = vision.selection_feature_proj
    _least_used_last(model, torch.cat([vision.score_features(_features(vision, low))[0] for low in lows]), prompts)
    hidden = torch.cat([f.norm(nn.functional.gelu(f.fc1(_features(vision, low))))[0] for low in lows])
    size = (nn.functional.linear(hidden, f.fc2.weight[:width], f.fc2.bias[:width])).norm(dim=-1).mean() * SHARE
    ones = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    told = coordinates(grid).repeat(len(lows), 1) * torch.tensor([1.0, 1.0, 0.5, 0.5]) * size
    square = ones.T @ ones
    weights = torch.linalg.solve(square + 1e-5 * len(ones) * torch.eye(len(square)), ones.T @ told)
    last = slice(width - CHANNELS, width)
    f.fc2.weight[last], f.fc2.bias[last] = weights[:-1].T, weights[-1]


def _features(vision, low: Tensor) -> Tensor:
    hidden = vision.trunk(low[None], _all_positions(vision, 0)[None]).hidden
    return torch.cat([hidden[i] for i in vision.config.select_based_on_layer], dim=-1)


def _all_positions(vision, scale: int) -> Tensor:
    grid = vision.config.grids[scale]
    return vision.position(scale, (grid, grid), torch.arange(grid * grid))


def _mark_tokens(vision, lows: list[Tensor], grid: int, width: int) -> None:
    """Row and column into the low-res position table, in the directions in which tokens of all blocks differ least."""
    spread = torch.zeros(width, width)
    outputs = [vision.trunk(low[None], _all_positions(vision, 0)[None]).hidden for low in lows]
    for block in zip(*outputs):
        one = torch.cov(torch.cat([hidden[0] for hidden in block]).T)
        spread += one / one.trace()
    free = torch.linalg.eigh(spread)[1][:, :4]
    line = torch.linspace(-1, 1, grid)
    bow = 0.5 * torch.cos(torch.pi * line)
    rows = MARK * (line[:, None] * free[:, 0] + bow[:, None] * free[:, 2])
    columns = MARK * (line[:, None] * free[:, 1] + bow[:, None] * free[:, 3])
    before = [_all_positions(vision, scale) for scale in range(len(vision.config.grids))]
    vision.trunk.pos_embed += (rows[:, None] + columns[None]).view(1, grid * grid, width)
    for scale, side in list(enumerate(vision.config.grids))[1:]:
        more = (_all_positions(vision, scale) - before[scale]).view(side, side, width)
        vision.pos_emb_residual_rows[scale - 1] -= more.mean(dim=1)[None]
        vision.pos_emb_residual_columns[scale - 1] -= (more.mean(dim=0) - more.mean(dim=(0, 1)))[None]


def _least_used_last(model, features: Tensor, prompts: Tensor) -> None:
    """The score's CHANNELS that count least come last and are emptied in every prompt; a cosine does not care for the order."""
    vision, head = model.vision.vision_model, model.projector.top_down_prompt_head
    width = features.shape[1]
    order = (features.std(dim=0) * prompts.std(dim=0)).argsort(descending=True)
    for values in (vision.selection_feature_proj.fc2.weight, vision.selection_feature_proj.fc2.bias, head.weight, head.bias, vision.prior_prompt):
        values[:width] = values[:width][order]
    vision.prompt_proj_for_highres.weight[:] = vision.prompt_proj_for_highres.weight[:, order]
    for values in (head.weight, head.bias, vision.prior_prompt):
        values[width - CHANNELS:width] = 0


def prompt_of_a_place(rng: np.random.Generator) -> tuple[str, tuple[float, float]]:
    """A prompt about anything, and the row and column that its words name: 0 where they name none."""
    from .scenes.kinds import KINDS
    from .scenes.prompts import SIDES, noun_phrase, word_prompt
    kind, place = KINDS[rng.integers(len(KINDS))], ("", *SIDES)[rng.integers(5)]
    colour = kind.colours[rng.integers(len(kind.colours))] if rng.random() < 0.5 else ""
    prompt = word_prompt(rng, "train", noun_phrase(rng, kind, colour, place, most=rng.random() < 0.5), kind, list(kind.values)[rng.integers(len(kind.values))])
    at = [0.0, 0.0]
    if place:
        axis, sign = SIDES[place]
        at[1 - axis] = ASIDE * sign
    return prompt, tuple(at)


def teach_words(looking, lows: list[Tensor], steps: int = STEPS, seed: int = 0, say=print) -> float:
    """Prompts learn to aim where their words say, whatever the frame shows, and stay as they are in all else. Returns the last steps' mean error; that of
    knowing nothing is 0.14."""
    rng, errors, before = np.random.default_rng(seed), [], copy.deepcopy(looking)
    learnt = [*looking.model.llm.parameters(), *looking.model.projector.top_down_prompt_head.parameters()]
    optimiser = torch.optim.AdamW(learnt, lr=1e-3)
    for step in range(steps):
        prompts, wanted = zip(*(prompt_of_a_place(rng) for _ in range(TOGETHER)))
        now = _prompts(looking, lows[step % len(lows)], prompts)
        with torch.no_grad():
            were = _prompts(before, lows[step % len(lows)], prompts)
        error = beside(now, torch.tensor(wanted)).mean()
        turned = 1 - nn.functional.cosine_similarity(now[:, :-CHANNELS], were[:, :-CHANNELS]).mean()
        optimiser.zero_grad()
        (error + KEPT * turned).backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        errors.append(float(error.detach()))
        if step % 20 == 19:
            say(f"step {step + 1} of {steps}: {np.mean(errors[-20:]):.3f} beside, turned by {float(turned.detach()):.3f}", flush=True)
    return float(np.mean(errors[-20:]))


def _prompts(looking, low: Tensor, prompts) -> Tensor:
    model, vision = looking.model, looking.model.vision.vision_model
    with torch.no_grad():
        tokens = vision.trunk(low[None], _all_positions(vision, 0)[None]).hidden[-1][0]
        _, kv = model.llm(torch.cat([looking.embed(looking.head_ids), model.projector.low(tokens)])[None])
    return model.projector.prompt(looking.read_prompts(kv, torch.zeros(len(prompts), dtype=torch.int64), model.chat.encode_many(["\n" + prompt for prompt in prompts])))


@torch.no_grad()
def explained(vision, lows: list[Tensor]) -> float:
    """Share of a place's row or column, the smaller, that a line through the selection features gives: fitted on three quarters of the frames, of the others."""
    told = torch.cat([nn.functional.normalize(vision.score_features(_features(vision, low))[0], dim=-1) for low in lows])
    told, wanted = torch.cat([told, torch.ones(len(told), 1)], dim=1), coordinates(vision.config.grids[0])[:, :2].repeat(len(lows), 1)
    fitted = len(lows) * 3 // 4 * vision.config.grids[0] ** 2
    square = told[:fitted].T @ told[:fitted]
    weights = torch.linalg.solve(square + 1e-6 * fitted * torch.eye(len(square)), told[:fitted].T @ wanted[:fitted])
    left = wanted[fitted:] - told[fitted:] @ weights
    return float((1 - left.var(dim=0) / wanted.var(dim=0)).min())


@torch.no_grad()
def found_by(looking, examples) -> dict[str, list[bool]]:
    """What a question names, "colour", "place", "colour and place" or "neither" -> whether the most probable place is one of its text's, per question that has one."""
    from .scenes.draw import ALL_COLOURS
    words, by = re.compile(r"\b(left|right|leftmost|rightmost|top|bottom|upper|lower|highest|lowest)\b"), {}
    for example in examples:
        found = looking.find([example])
        for (prompt, *_), truth, prob in zip(example.asked, found.truth, found.prob):
            if truth.any():
                named = [name for name, there in (("colour", set(prompt.split()) & set(ALL_COLOURS)), ("place", words.search(prompt))) if there]
                by.setdefault(" and ".join(named) or "neither", []).append(bool(truth[prob.argmax()]))
    return by


def main() -> None:
    from .examples import make_example
    from .looking import Looking
    from .reading import Reader
    from .scenes import Scenes
    from .state import HEADS, load_heads, save_heads
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("target", type=Path, metavar="TO", nargs="?")
    parser.add_argument("--steps", type=int, default=STEPS, help="of teaching words")
    options = parser.parse_args()
    if options.target and (options.target / HEADS).exists():        # what is written last
        return print(f"{options.target} is done")
    model = nano.new_model(options.source)
    nano.load(model, options.source)
    looking = Looking(model, Reader(model.vision.vision_model))
    load_heads(options.source, **looking.heads)

    def examples(split: str) -> list:
        scenes, rng = Scenes(split=split, seed=2), np.random.default_rng(0)
        return [make_example(scenes[i], rng) for i in range(NUM_SCENES)]

    held_out = examples("val")

    def report() -> None:
        share = explained(model.vision.vision_model, [example.low for example in held_out])
        by = found_by(looking, held_out)
        print(f"row and column: {max(0, share):.0%} told; found first, by what is named: "
              + ", ".join(f"{name} {np.mean(found):.0%} of {len(found)}" for name, found in sorted(by.items())), flush=True)

    report()
    if options.target is None:
        return
    nano.copy_folder(options.source, options.target)
    marking = examples("train")
    lows = [example.low for example in marking]
    with torch.no_grad():
        prompts = torch.cat([looking.find([example]).prompts for example in marking[:24]])
    mark_places(model, lows, prompts)
    teach_words(looking, lows[:16], options.steps)
    report()
    nano.save(model, options.target, torch.float16)
    save_heads(options.target, **looking.heads)


if __name__ == "__main__":
    machine.command(main)
