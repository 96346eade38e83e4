"""Stage 0 of the recipe: python -m ps3_sdk.training.read POOL RUN. Continues where it was stopped."""
from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from . import machine, nano
from .optimiser import Optimiser, schedule
from .reading import DensePool, Reader, slot_accuracy, slot_loss
from .state import Run

LOG_EVERY, CHECK_EVERY, SAVE_EVERY = 50, 250, 250
LEAST = 0.4         # of the learning rates at the end: later stages go on reading


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path, help="folder made by python -m ps3_sdk.training.pool")
    parser.add_argument("run", type=Path, help="folder of this training; its checkpoint lies in RUN/model")
    parser.add_argument("--steps", type=int, default=3250)
    parser.add_argument("--batch", type=int, default=64, help="windows per step")
    machine.add_options(parser)
    options = parser.parse_args()
    nano.write_folder(options.run / "model")
    machine.launch(work, options)


def work(options: argparse.Namespace, rank: int) -> None:
    pool, held_out = DensePool(options.pool, "train"), DensePool(options.pool, "val")
    model = nano.new_model(options.run / "model", options.seed)
    patches, _, _ = pool.windows(np.random.default_rng(1), 400, augment=True)
    nano.first_patch_embedding(model, patches.flatten(0, 1))
    vision = model.vision.vision_model
    reader = Reader(vision)
    for name, parameter in vision.named_parameters():       # the rest has nothing to learn from windows
        parameter.requires_grad_(name.startswith(("trunk.patch_embed", "trunk.blocks", "pos_emb_residual_rows.2", "pos_emb_residual_columns.2")))
    reader.to(options.device)
    optimiser = Optimiser(reader)
    run = Run(options.run / "read", reader, optimiser)
    forward = machine.compiled(reader, options)
    rng = np.random.default_rng([options.seed, run.step, rank])
    val = held_out.windows(np.random.default_rng(2), 4 * options.batch, augment=False)

    def batch():
        return pool.windows(rng, options.batch, augment=True, easy=max(0.0, 1 - 4 * run.step / options.steps))

    loss_sum = 0.0
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(batch)
        while run.step < options.steps:
            patches, ids, labels = (t.to(options.device) for t in upcoming.result())
            upcoming = executor.submit(batch)
            with machine.half(options):
                logits = forward(patches, reader.positions(ids))
            loss = slot_loss(logits, labels)
            loss.backward()
            optimiser.step(schedule(run.step / options.steps, least=LEAST))
            run.stepped()
            loss_sum += float(loss.detach())
            if rank:
                continue
            if run.step % LOG_EVERY == 0:
                run.log(loss=loss_sum / LOG_EVERY, windows=run.step * options.batch * options.processes)
                loss_sum = 0.0
            if run.step % CHECK_EVERY == 0 or run.step == options.steps:
                with torch.no_grad(), machine.half(options):
                    logits = torch.cat([forward(v.to(options.device), reader.positions(i.to(options.device))).cpu() for v, i in
                                        zip(val[0].split(options.batch), val[1].split(options.batch))])
                run.log(val_slot=float(slot_accuracy(logits, val[2])), val_loss=float(slot_loss(logits, val[2])))
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save()


if __name__ == "__main__":
    machine.command(main)
