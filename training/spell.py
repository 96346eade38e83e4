"""Stage 1 of the recipe: python -m training.spell POOL RUN --steps 4000. The language model learns to say a word that is looked at.

Windows of dense text as before, a little larger; from each, the whole blocks that one word touches are its rows, and the answer is
the word; several words are asked of one window. With next to no frame and no question around it, a word is twenty times cheaper than in a scene. Continues where it was stopped.
"""
from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import machine, nano
from .examples import WINDOW, window_around
from .joint import IGNORED, template_ids
from .optimiser import Optimiser, schedule
from .reading import BASE_PX, GRID, PATCH_PX, DensePool, Reader, augmented, slot_accuracy, slot_loss
from .state import Run

ASKED = ("what does it say?", "what is written on it?", "read the text", "what is the number?", "which word is it?")
LOG_EVERY, CHECK_EVERY, SAVE_EVERY = 20, 200, 100


def words_batch(pool: DensePool, rng: np.random.Generator, count: int, words: int, augment: bool):
    """count windows around a word each, and up to `words` words inside each: patches (count, 108, 588) f32, ids and labels of the windows,
    and per word the window it is in, its block numbers there, its text."""
    down, across = WINDOW
    out = np.empty((count, down * across, 588), np.uint8)
    ids, labels, found = np.empty((count, down * across), np.int64), np.empty((count, down * across, 2), np.int64), []
    grid, n = np.arange(down * across // 4).reshape(down // 2, across // 2), 0
    while n < count:
        frame = int(rng.integers(len(pool)))
        all_words = pool.words[frame]
        x0, y0, x1, y1 = all_words[rng.integers(len(all_words))]["box"]
        if x1 - x0 > (across - 2) * PATCH_PX:
            continue
        ids[n] = window_around((x0, y0, x1, y1), (BASE_PX, BASE_PX), rng)
        r, c = ids[n, 0] // GRID, ids[n, 0] % GRID
        box = all_words["box"]
        inside = (box[:, 0] >= c * PATCH_PX) & (box[:, 1] >= r * PATCH_PX) & (box[:, 2] <= (c + across) * PATCH_PX) & (box[:, 3] <= (r + down) * PATCH_PX)
        inside = np.flatnonzero(inside & (all_words["text"] != b""))
        if not len(inside):
            continue
        for word in all_words[rng.permutation(inside)[:words]]:
            x0, y0, x1, y1 = word["box"]
            top, left, bottom, right = int(y0) // 28 - r // 2, int(x0) // 28 - c // 2, int(y1 - 0.01) // 28 - r // 2, int(x1 - 0.01) // 28 - c // 2
            found.append((n, grid[top:bottom + 1, left:right + 1].ravel(), word["text"].decode()))
        out[n] = pool.patches[frame][r:r + down, c:c + across].reshape(-1, 588)
        labels[n] = pool.labels[frame][r:r + down, 2 * c:2 * (c + across)].reshape(-1, 2)
        n += 1
    patches = torch.from_numpy(out).float().div_(127.5).sub_(1.0)
    return augmented(patches, rng) if augment else patches, torch.from_numpy(ids), torch.from_numpy(labels), found


class Speller(nn.Module):
    """forward(batch) -> slot loss, answer loss, logits of slots, which words are right whole."""

    def __init__(self, model, reader: Reader):
        super().__init__()
        self.model, self.reader = model, reader
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)
        self.asked = [model.chat._encode("\n" + text) for text in ASKED]

    def forward(self, patches: Tensor, ids: Tensor, labels: Tensor, words, rng, see=None) -> tuple[Tensor, Tensor, Tensor, list[bool]]:
        model, device, (down, across) = self.model, patches.device, WINDOW
        llm, vision = model.llm, self.reader.vision
        high = (see or self.see)(patches, self.reader.positions(ids))
        slots = self.reader.head(self.reader.norm(high)).unflatten(-1, (2, -1))
        tiles = high.view(len(high), down // 2, 2, across // 2, 2, -1).transpose(2, 3).flatten(4).flatten(3).reshape(len(high), down * across // 4, -1)
        blocks = (ids.view(-1, down // 2, 2, across // 2, 2)[:, :, 0, :, 0] // GRID // 2 * (GRID // 2) + ids.view(-1, down // 2, 2, across // 2, 2)[:, :, 0, :, 0] % GRID // 2).flatten(1)
        window, place = np.concatenate([np.full(len(p), n) for n, p, _ in words]), np.concatenate([p for _, p, _ in words])
        parts = model.projector(tiles[window, place], 3, blocks[window, place], GRID // 2)
        parts = model.projector.told(parts, torch.ones(len(parts), device=device)).split([len(p) for _, p, _ in words])
        head, rows, wanted = llm.embed(torch.tensor(self.head_ids, device=device)), [], []
        for part, (_, _, text) in zip(parts, words):
            answer = model.chat._encode(text) + self.end_ids
            said = self.asked[int(rng.integers(len(self.asked)))] + self.tail_ids + answer
            rows.append(torch.cat([head, part, llm.embed(torch.tensor(said[:-1], device=device))]))
            wanted.append(torch.tensor([IGNORED] * (len(rows[-1]) - len(answer)) + answer, device=device))
        out = llm(nn.utils.rnn.pad_sequence(rows, batch_first=True))[0]
        wanted = nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=IGNORED)
        counted = wanted != IGNORED
        logits = llm.logits(out[counted]).float()
        good = torch.ones_like(wanted, dtype=torch.bool)
        good[counted] = logits.detach().argmax(-1) == wanted[counted]
        slots = slots.float()
        return slot_loss(slots, labels), F.cross_entropy(logits, wanted[counted]), slots.detach(), good.all(dim=1).tolist()

    def see(self, patches: Tensor, position: Tensor) -> Tensor:
        return self.reader.vision.trunk(patches, position).hidden[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64, help="windows per step")
    parser.add_argument("--words", type=int, default=4, help="asked in each window")
    parser.add_argument("--begin", default="read", help="stage of RUN to begin with")
    machine.add_options(parser)
    options = parser.parse_args()
    nano.write_folder(options.run / "model")
    machine.launch(work, options)


def work(options: argparse.Namespace, rank: int) -> None:
    pool, held_out = DensePool(options.pool, "train"), DensePool(options.pool, "val")
    model = nano.new_model(options.run / "model", options.seed)
    reader = Reader(model.vision.vision_model)
    for name, parameter in model.named_parameters():
        unused = name.startswith("vision.vision_model.") and not name.startswith(("vision.vision_model.trunk.patch_embed", "vision.vision_model.trunk.blocks"))
        parameter.requires_grad_(not unused or name.endswith(("rows.2", "columns.2")))
    speller = Speller(model, reader)
    begin(speller, options.run, options.begin)
    optimiser = Optimiser(speller, muon_lr=0.01)
    run = Run(options.run / "spell", speller, optimiser)
    speller.to(options.device)
    see = machine.compiled(speller.see, options)
    rng, rng_data = np.random.default_rng([options.seed, 1, run.step, rank]), np.random.default_rng([options.seed, 2, run.step, rank])
    val = words_batch(held_out, np.random.default_rng(3), 3 * options.batch, 4, augment=False)
    sums = {"slot": 0.0, "answer": 0.0, "exact": 0.0}

    def batch():
        return words_batch(pool, rng_data, options.batch, options.words, augment=True)

    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(batch)
        while run.step < options.steps:
            patches, ids, labels, words = upcoming.result()
            upcoming = executor.submit(batch)
            with machine.half(options):
                slot, answer, _, right = speller(patches.to(options.device), ids.to(options.device), labels.to(options.device), words, rng, see)
            (slot + answer).backward()
            optimiser.step(schedule(run.step / options.steps))
            run.step += 1
            for key, value in (("slot", float(slot.detach())), ("answer", float(answer.detach())), ("exact", float(np.mean(right)))):
                sums[key] += value / LOG_EVERY
            if rank:
                continue
            if run.step % LOG_EVERY == 0:
                run.log(**sums, windows=run.step * options.batch * options.processes)
                sums = dict.fromkeys(sums, 0.0)
            if run.step % CHECK_EVERY == 0 or run.step == options.steps:
                run.log(**{f"val_{key}": value for key, value in check(speller, val, options, see).items()})
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save()
                nano.save(model, options.run / "model")


def begin(module: nn.Module, run: Path, stage: str) -> None:
    """Weights of an earlier stage, as far as they have the same names."""
    state = torch.load(run / stage / "state.pt", map_location="cpu", weights_only=True)["model"]
    if stage == "read":
        module.reader.load_state_dict(state)
    else:
        module.load_state_dict(state, strict=False)     # the contrast's temperature is the joint stage's alone


@torch.no_grad()
def check(speller: Speller, val, options, see) -> dict[str, float]:
    rng, right, slots, losses = np.random.default_rng(0), [], [], []
    patches, ids, labels, words = val
    for start in range(0, len(patches), options.batch):
        part = slice(start, start + options.batch)
        mine = [(n - start, place, text) for n, place, text in words if start <= n < start + options.batch]
        with machine.half(options):
            _, answer, slot, good = speller(patches[part].to(options.device), ids[part].to(options.device), labels[part].to(options.device), mine, rng, see)
        right += good
        slots.append(slot.cpu())
        losses.append(float(answer))
    return {"slot": slot_accuracy(torch.cat(slots), labels), "answer": float(np.mean(losses)), "exact": float(np.mean(right))}


if __name__ == "__main__":
    main()
