"""python -m ps3_sdk.training.view FROM RUN: the view network of the checkpoint FROM is taught what kind of thing each place is of, in RUN/model. Continues where it was stopped.

The network of the 1512 px view is what tells small things apart before anything is looked at closely. It goes on saying what it said, which the prompts
know how to ask for, and learns the kind and the colour of the thing at each place; with --twice with twice the channels. Training goes on from RUN/model with --begin.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps3_sdk.errors import InputError
from ps3_sdk.export.reference.scoring import ViewNet

from . import machine, nano
from .examples import Example, make_example
from .frames import Ring
from .optimiser import Optimiser, schedule
from .scenes import Scenes
from .state import Run, copy_heads, load_heads, means, save_heads
from .things import Things, labels_of

TAUGHT = 4.0        # weight of saying what the old network said
NEW, OTHER = 0.25, 0.25      # of a filter's size, what is new in it; of what a channel gives, to those that its twin gives to mostly
FRAME_PX, CHECKED = (1080, 1920), 64    # of the scenes; held-out ones
LOG_EVERY, SAVE_EVERY = 20, 100
NAME = "highres_selection_feature_module"


class Telling(nn.Module):
    """A view network and what is read from it; forward gives loss and measures of some examples."""

    def __init__(self, old: ViewNet, new: ViewNet):
        super().__init__()
        self.net, self.things = new, Things(new.out_proj.out_channels)
        self._old = [old]       # not a part: it learns nothing

    def forward(self, examples: Sequence[Example]) -> tuple[Tensor, dict]:
        views = torch.stack([example.view for example in examples])
        features = self.net(views)
        with torch.no_grad():
            wanted = self._old[0](views)
        off = 1 - F.cosine_similarity(features.float(), wanted.float(), dim=2).mean()
        loss, kind = self.things(features, labels_of(examples, round(features.shape[1] ** 0.5)))
        return TAUGHT * off + loss, {"off": off.detach(), "things": loss.detach(), "kind": kind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("run", type=Path)
    parser.add_argument("--twice", action="store_true", help="with twice the channels that FROM has")
    parser.add_argument("--seconds", type=float, default=1500, help="train for so long, in all sittings")
    parser.add_argument("--scenes", type=int, default=3, help="per step and process")
    parser.add_argument("--uses", type=int, default=2, help="of each scene")
    parser.add_argument("--lr", type=float, default=1.0, help="factor on both learning rates")
    machine.add_options(parser)
    options = parser.parse_args()
    if options.device != "cpu":
        raise InputError(f"[training] --device {options.device}; this stage runs on the processor alone.")
    begin_folder(options.source, options.run / "model", 1 + options.twice)
    machine.launch(work, options)


def begin_folder(source: Path, folder: Path, times: int) -> None:
    """Configuration, tokenizer and training's heads of a checkpoint folder with so many times the channels in the view network. Raises InputError: `folder` has other ones."""
    name = "vision_tower/config.json"
    settings = json.loads((source / name).read_text("utf-8"))
    settings["highres_selection_module_hidden_dim"] *= times
    text = json.dumps(settings, indent=1) + "\n"
    if (folder / name).exists() and (folder / name).read_text("utf-8") != text:
        raise InputError(f"[training] {folder / name} is of another training. Take another RUN folder.")
    if not (folder / name).exists():
        nano.copy_folder(source, folder)
        copy_heads(source, folder)
        (folder / name).write_text(text, "utf-8")


@torch.no_grad()
def widen(new: ViewNet, old: ViewNet, patches: Tensor) -> None:
    """A network of twice the channels says at first nearly what the old one says: each channel is there twice, and the second of its patch filters has
    something to see that the old ones are blind for, a principal component of what they leave of `patches` (n, values).

    Source: Chen, Goodfellow and Shlens, "Net2Net", arXiv 1511.05641, for the channels.
    """
    twice = lambda own, other: own.copy_(torch.cat([other, other]))
    filters = old.stem[0].weight.flatten(1)
    left = patches - patches.mean(dim=0)
    span = torch.linalg.qr(filters.T)[0]
    left = left - left @ span @ span.T
    values, vectors = torch.linalg.eigh(torch.cov(left.T))
    seen = (patches @ filters.T).std(dim=0).mean()
    more = NEW * seen * (vectors.flip(1)[:, :len(filters)] / values.flip(0)[:len(filters)].sqrt()).T
    new.stem[0].weight.copy_(torch.cat([filters, filters + more]).view_as(new.stem[0].weight))
    new.stem[0].bias.copy_(torch.cat([old.stem[0].bias, old.stem[0].bias - more @ patches.mean(dim=0)]))
    twice(new.stem[1].weight, old.stem[1].weight), twice(new.stem[1].bias, old.stem[1].bias)
    for block, other in zip(new.blocks, old.blocks):
        for part in ("weight", "conv_dw.weight", "conv_dw.bias", "norm.weight", "norm.bias", "mlp.fc1.bias", "mlp.fc2.bias"):
            twice(block.get_parameter(part), other.get_parameter(part))
        first, second = other.mlp.fc1.weight, other.mlp.fc2.weight / 2
        block.mlp.fc1.weight.copy_(torch.cat([torch.cat([first * (1 - OTHER), first * OTHER], dim=1), torch.cat([first * OTHER, first * (1 - OTHER)], dim=1)]))
        block.mlp.fc2.weight.copy_(torch.cat([torch.cat([second, second], dim=1)] * 2))
    new.out_proj.weight.copy_(torch.cat([old.out_proj.weight, old.out_proj.weight], dim=1) / 2)
    new.out_proj.bias.copy_(old.out_proj.bias)


def work(options: argparse.Namespace, rank: int) -> None:
    old, new = nano.new_model(options.source), nano.new_model(options.run / "model", options.seed)
    nano.load(old, options.source)
    ring = Ring("train", options.seed, size=24, uses=options.uses, frame_px=FRAME_PX, start=1_000_000 * rank)
    try:
        telling = Telling(getattr(old.vision.vision_model, NAME), getattr(new.vision.vision_model, NAME))
        if options.twice:
            widen(telling.net, getattr(old.vision.vision_model, NAME), torch.cat([example.view for example in ring.next(4)]))
        else:
            telling.net.load_state_dict(getattr(old.vision.vision_model, NAME).state_dict())
        load_heads(options.source, things=telling.things)
        optimiser = Optimiser(telling, muon_lr=0.01, adam_lr=1.2e-3)
        run = Run(options.run / "view", telling, optimiser, 100)
        held_out = None if rank else held_out_examples()
        sums: dict[str, list] = {}
        done = machine.agreed(run.spent() / options.seconds)
        while done < 1:
            with machine.half(options):
                loss, measures = telling(ring.next(options.scenes))
            loss.backward()
            optimiser.step(options.lr * schedule(done, decay_from=0.3))
            run.stepped()
            done = machine.agreed(run.spent() / options.seconds)
            for key, value in measures.items():
                sums.setdefault(key, []).append(value)
            if rank == 0 and run.step % LOG_EVERY == 0:
                run.log(**means(sums))
            if run.step % LOG_EVERY == 0:
                sums.clear()
            if rank == 0 and (run.step % SAVE_EVERY == 0 or done >= 1):
                write(run, telling, old, new, options, held_out)
    finally:
        ring.close()


def held_out_examples() -> list[Example]:
    """Scenes that no training sees."""
    scenes, rng = Scenes(split="val", seed=5, frame_px=FRAME_PX), np.random.default_rng(0)
    return [make_example(scene, rng, captions=scenes.captions(rng, scene.domain, scene.items)) for scene in (scenes[i] for i in range(CHECKED))]


@torch.no_grad()
def write(run: Run, telling: Telling, old, new, options: argparse.Namespace, held_out: list[Example]) -> None:
    """State, checkpoint and what held-out scenes say."""
    with run.mean.inside():
        measures: dict[str, list] = {}
        for start in range(0, len(held_out), 8):
            for key, value in telling(held_out[start:start + 8])[1].items():
                measures.setdefault(key, []).append(value)
        run.log(**{f"val_{key}": value for key, value in means(measures).items()})
        kept = {name: value for name, value in old.state_dict().items() if NAME not in name}
        new.load_state_dict(kept, strict=False)
        nano.save(new, options.run / "model", torch.float16)
        save_heads(options.run / "model", things=telling.things)
    run.save()


if __name__ == "__main__":
    machine.command(main)
