"""Stage 1 of the recipe: python -m training.spell POOL RUN --steps 4000. The language model learns to say a word that is looked at.

Windows of dense text as before, a little larger; from each, the whole blocks that one word touches are its rows, and the answer is
the word. It has next to no frame and no question around it, so it is twenty times cheaper than a scene. Continues where it was stopped.
"""
from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import nano
from .examples import WINDOW, window_around
from .joint import IGNORED, template_ids
from .optimiser import Optimiser, schedule
from .reading import BASE_PX, GRID, PATCH_PX, DensePool, Reader, augmented, slot_accuracy, slot_loss
from .state import Run

ASKED = ("what does it say?", "what is written on it?", "read the text", "what is the number?", "which word is it?")
LOG_EVERY, CHECK_EVERY, SAVE_EVERY = 20, 200, 100


def words_batch(pool: DensePool, rng: np.random.Generator, count: int, augment: bool):
    """count words: patches (count, 108, 588) f32, ids and labels of their windows, per word its block numbers inside the window and text."""
    down, across = WINDOW
    out = np.empty((count, down * across, 588), np.uint8)
    ids, labels, picked, texts = np.empty((count, down * across), np.int64), np.empty((count, down * across, 2), np.int64), [], []
    while len(texts) < count:
        frame = int(rng.integers(len(pool)))
        words = pool.words[frame]
        word = words[rng.integers(len(words))]
        x0, y0, x1, y1 = word["box"]
        if x1 - x0 > (across - 2) * PATCH_PX or not word["text"]:
            continue
        n = len(texts)
        ids[n] = window_around(word["box"], (BASE_PX, BASE_PX), rng)
        rows, columns = ids[n] // GRID, ids[n] % GRID
        r, c = rows[0], columns[0]
        out[n] = pool.patches[frame][r:r + down, c:c + across].reshape(-1, 588)
        labels[n] = pool.labels[frame][r:r + down, 2 * c:2 * (c + across)].reshape(-1, 2)
        first, last = (int(y0) // 28 - r // 2, int(x0) // 28 - c // 2), (int(y1 - 0.01) // 28 - r // 2, int(x1 - 0.01) // 28 - c // 2)
        grid = np.arange(down * across // 4).reshape(down // 2, across // 2)
        picked.append(grid[max(first[0], 0):last[0] + 1, max(first[1], 0):last[1] + 1].ravel())
        texts.append(word["text"].decode())
    patches = torch.from_numpy(out).float().div_(127.5).sub_(1.0)
    return augmented(patches, rng) if augment else patches, torch.from_numpy(ids), torch.from_numpy(labels), picked, texts


class Speller(nn.Module):
    """forward(batch) -> slot loss, answer loss, logits of slots, which words are right whole."""

    def __init__(self, model, reader: Reader):
        super().__init__()
        self.model, self.reader = model, reader
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)
        self.asked = [model.chat._encode("\n" + text) for text in ASKED]

    def forward(self, patches: Tensor, ids: Tensor, labels: Tensor, picked, texts, rng, see=None) -> tuple[Tensor, Tensor, Tensor, list[bool]]:
        model, device, (down, across) = self.model, patches.device, WINDOW
        llm, vision = model.llm, self.reader.vision
        high = (see or self.see)(patches, self.reader.positions(ids))
        slots = self.reader.head(self.reader.norm(high)).unflatten(-1, (2, -1))
        tiles = high.view(len(high), down // 2, 2, across // 2, 2, -1).transpose(2, 3).flatten(4).flatten(3).reshape(len(high), down * across // 4, -1)
        blocks = (ids.view(-1, down // 2, 2, across // 2, 2)[:, :, 0, :, 0] // GRID // 2 * (GRID // 2) + ids.view(-1, down // 2, 2, across // 2, 2)[:, :, 0, :, 0] % GRID // 2).flatten(1)
        chosen, numbers = torch.cat([tiles[i, p] for i, p in enumerate(picked)]), torch.cat([blocks[i, p] for i, p in enumerate(picked)])
        parts = model.projector(chosen, 3, numbers, GRID // 2).split([len(p) for p in picked])
        head, rows, wanted = llm.embed(torch.tensor(self.head_ids, device=device)), [], []
        for part, text in zip(parts, texts):
            answer = model.chat._encode(text) + self.end_ids
            said = self.asked[int(rng.integers(len(self.asked)))] + self.tail_ids + answer
            rows.append(torch.cat([head, part, llm.embed(torch.tensor(said[:-1], device=device))]))
            wanted.append(torch.tensor([IGNORED] * (len(rows[-1]) - len(answer)) + answer, device=device))
        out = llm(nn.utils.rnn.pad_sequence(rows, batch_first=True))[0]
        wanted = nn.utils.rnn.pad_sequence(wanted, batch_first=True, padding_value=IGNORED)
        counted = wanted != IGNORED
        logits = llm.logits(out[counted])
        good = torch.ones_like(wanted, dtype=torch.bool)
        good[counted] = logits.detach().argmax(-1) == wanted[counted]
        return slot_loss(slots, labels), F.cross_entropy(logits, wanted[counted]), slots.detach(), good.all(dim=1).tolist()

    def see(self, patches: Tensor, position: Tensor) -> Tensor:
        return self.reader.vision.trunk(patches, position).hidden[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64, help="words per step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pool, held_out = DensePool(options.pool, "train"), DensePool(options.pool, "val")
    model = nano.new_model(options.run / "model", options.seed)
    reader = Reader(model.vision.vision_model)
    reader.load_state_dict(torch.load(options.run / "read" / "state.pt", map_location="cpu", weights_only=True)["model"])
    for name, parameter in model.named_parameters():
        unused = name.startswith("vision.vision_model.") and not name.startswith(("vision.vision_model.trunk.patch_embed", "vision.vision_model.trunk.blocks"))
        parameter.requires_grad_(not unused or name.endswith(("rows.2", "columns.2")))
    speller = Speller(model, reader)
    optimiser = Optimiser(speller, muon_lr=0.01)
    run = Run(options.run / "spell", speller, optimiser)
    speller.to(options.device)
    see = torch.compile(speller.see, dynamic=False) if options.compile else speller.see
    rng = np.random.default_rng([options.seed, 1, run.step])
    val = words_batch(held_out, np.random.default_rng(3), 256, augment=False)
    sums = {"slot": 0.0, "answer": 0.0, "exact": 0.0}

    def batch():
        return words_batch(pool, rng_data, options.batch, augment=True)

    rng_data = np.random.default_rng([options.seed, 2, run.step])
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(batch)
        while run.step < options.steps:
            patches, ids, labels, picked, texts = upcoming.result()
            upcoming = executor.submit(batch)
            slot, answer, _, right = speller(patches.to(options.device), ids.to(options.device), labels.to(options.device), picked, texts, rng, see)
            (slot + answer).backward()
            optimiser.step(schedule(run.step / options.steps))
            run.step += 1
            for key, value in (("slot", float(slot.detach())), ("answer", float(answer.detach())), ("exact", float(np.mean(right)))):
                sums[key] += value / LOG_EVERY
            if run.step % LOG_EVERY == 0:
                run.log(**sums, words=run.step * options.batch)
                sums = dict.fromkeys(sums, 0.0)
            if run.step % CHECK_EVERY == 0 or run.step == options.steps:
                run.log(**{f"val_{key}": value for key, value in check(speller, val, options, see).items()})
            if run.step % SAVE_EVERY == 0 or run.step == options.steps:
                run.save()
                nano.save(model, options.run / "model")


@torch.no_grad()
def check(speller: Speller, val, options, see) -> dict[str, float]:
    rng, right, slots, losses = np.random.default_rng(0), [], [], []
    patches, ids, labels, picked, texts = val
    for start in range(0, len(texts), options.batch):
        part = slice(start, start + options.batch)
        _, answer, slot, good = speller(patches[part].to(options.device), ids[part].to(options.device), labels[part].to(options.device), picked[part], texts[part], rng, see)
        right += good
        slots.append(slot.cpu())
        losses.append(float(answer))
    return {"slot": slot_accuracy(torch.cat(slots), labels), "answer": float(np.mean(losses)), "exact": float(np.mean(right))}


if __name__ == "__main__":
    main()
