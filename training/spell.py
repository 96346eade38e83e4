"""Spelling: the language model learns to say a word that is looked at, in windows of dense text.

The rows of the whole blocks that a word touches are said to be probable, those of some other blocks beside them less so, and the answer is
the word; several words are asked of one window. With no frame and hardly a question around it, a word is twenty times cheaper than in a scene.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .looking import Looking, padded, say, template_ids
from .reading import BASE_PX, GRID, IGNORED, PATCH_PX, THIN, DensePool, Reader, normalised, slot_accuracy, slot_loss, window_labels

ASKED = ("what does it say?", "what is written on it?", "read the text", "what is the number?", "which word is it?")
ALONE, MOST_OTHERS = 0.3, 20     # share of the words whose blocks are shown alone; others beside at most
WINDOW = (6, 18)                # patches
PLAIN = 0.5             # share of the words without any of reading.THIN that windows are taken around
TALL, TALLEST_PX = 1.0, 49      # of 3780 px. A frame holds far fewer tall words than small ones; power of the height that makes up for some of it


def words_batch(pool: DensePool, rng: np.random.Generator, count: int, words: int, tall: float = 0.0, plain: float = 1.0):
    """count windows around a word each, and up to `words` words inside each: patches (count, 108, 588) uint8, ids and labels of the windows,
    and per word the window it is in, its block numbers there, its text. tall: windows are taken around a word in proportion to this power of its height. plain: see PLAIN."""
    down, across = WINDOW
    out = np.empty((count, down * across, 588), np.uint8)
    ids, labels, found = np.empty((count, down * across), np.int64), np.empty((2, count, down, 2 * across), np.uint8), []
    grid, n = np.arange(down * across // 4).reshape(down // 2, across // 2), 0
    while n < count:
        frame = int(rng.integers(len(pool)))
        all_words = pool.words[frame]
        word = all_words[rng.integers(len(all_words))]
        x0, y0, x1, y1 = word["box"]
        share = ((y1 - y0) / TALLEST_PX) ** tall * (1 if any(character in word["text"].decode() for character in THIN) else plain)
        if x1 - x0 > (across - 2) * PATCH_PX or rng.random() > share:
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
        labels[:, n] = [part[frame][r:r + down, 2 * c:2 * (c + across)] for part in (pool.labels, pool.orders)]
        n += 1
    return torch.from_numpy(out), torch.from_numpy(ids), torch.from_numpy(window_labels(*labels)), found


class Words(IterableDataset):
    """Batches of words_batch without end, `spelt` words of each. A worker opens the pool itself, and now and then again: it may be growing."""

    def __init__(self, pool: Path, seed: list[int], windows: int, spelt: int):
        self.pool, self.seed, self.windows, self.spelt = pool, seed, windows, spelt

    def __iter__(self):
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, worker.id if worker else 0])
        while True:
            pool = DensePool(self.pool, "train")
            for _ in range(100):
                patches, ids, labels, words = words_batch(pool, rng, self.windows, 4, TALL, PLAIN)
                yield patches, ids, labels, among_others([words[i] for i in sorted(rng.permutation(len(words))[:self.spelt])], rng)

    def batches(self, workers: int):
        return iter(DataLoader(self, batch_size=None, num_workers=workers, multiprocessing_context="spawn"))


def window_around(box_px, size: tuple[int, int], rng: np.random.Generator | None) -> np.ndarray:
    """(108,) ids of a window of 3780 px patches that holds the box, made of whole 2 x 2 blocks, somewhere around it."""
    h, w = size
    x0, y0, x1, y1 = np.asarray(box_px, float) * [GRID / w, GRID / h, GRID / w, GRID / h]
    start = []
    for low, high, length in ((y0, y1, WINDOW[0]), (x0, x1, WINDOW[1])):
        first, last = int(np.ceil((np.ceil(high) - length) / 2)), int(np.floor(low / 2))       # of blocks; any start between them holds the box
        at = round((low + high - length) / 4) if rng is None or last < first else int(rng.integers(first, last + 1))
        start.append(int(np.clip(2 * at, 0, GRID - length)))
    return ((start[0] + np.arange(WINDOW[0]))[:, None] * GRID + start[1] + np.arange(WINDOW[1])).ravel()


def among(own: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A word's own blocks among others of its window, ascending, and how probable each is said to be, f32: the own ones more than all others."""
    others = rng.permutation(np.setdiff1d(np.arange(count), own))
    others = others[:0 if rng.random() < ALONE else int(rng.integers(1, MOST_OTHERS + 1))]
    likely = rng.uniform(0.4, 0.99)
    told = np.concatenate([np.full(len(own), likely), rng.uniform(0.01, likely - 0.15, len(others))]).astype(np.float32)
    order = np.argsort(np.concatenate([own, others]))
    return np.concatenate([own, others])[order], told[order]


def among_others(words, rng: np.random.Generator) -> list[tuple[int, np.ndarray, np.ndarray, int, str]]:
    """Words as words_batch gives them -> per word its window, the blocks that are shown, how probable each is said to be, which of ASKED is asked, its text."""
    return [(n, *among(own, WINDOW[0] * WINDOW[1] // 4, rng), int(rng.integers(len(ASKED))), text) for n, own, text in words]


class Speller(nn.Module):
    """forward(batch), words as among_others gives them -> slot loss, loss of answers and of the rows they are read from, logits of slots, which words are right whole. through: the trunk learns from what is spelt, too, and
    not from the slots alone; what a language model that cannot spell yet asks of it undoes its reading."""

    def __init__(self, looking: Looking, through: bool = False):
        super().__init__()
        model = looking.model
        self.looking, self.model, self.reader, self.through = looking, model, looking.reader, through
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)
        self.asked = [model.chat._encode("\n" + text) for text in ASKED]

    def forward(self, patches: Tensor, ids: Tensor, labels: Tensor, words) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        model, device, (down, across) = self.model, patches.device, WINDOW
        llm, vision = model.llm, self.reader.vision
        high = vision.trunk(patches, self.reader.positions(ids)).hidden[-1]
        slots = self.reader.slots(high)
        tiles = (high if self.through else high.detach()).view(len(high), down // 2, 2, across // 2, 2, -1).transpose(2, 3).reshape(len(high), down * across // 4, -1)
        first = ids.view(-1, down // 2, 2, across // 2, 2)[:, :, 0, :, 0].flatten(1)        # patch of each block
        blocks = first // GRID // 2 * (GRID // 2) + first % GRID // 2
        windows, places, told, asked, texts = zip(*words)
        sizes, spoken, wanted, first = [len(place) for place in places], [], [], len(self.head_ids)
        window, place = (torch.from_numpy(array).to(device) for array in (np.repeat(windows, sizes), np.concatenate(places)))
        parts = model.projector(tiles[window, place], 3, blocks[window, place], GRID // 2)
        shown = labels[..., 0].view(len(high), down // 2, 2, across // 2, 2, 2).transpose(2, 3).reshape(len(high), -1, 8)[window, place]
        rows_loss = self.looking.rows(self.looking.shown("rows", parts), shown)
        parts = model.projector.told(parts, torch.from_numpy(np.concatenate(told)).to(device))
        for size, number, ids_of_text in zip(sizes, asked, model.chat.encode_many(texts)):
            answer, question = ids_of_text + self.end_ids, self.asked[number] + self.tail_ids
            spoken.append(self.head_ids + [0] * size + question + answer[:-1])
            wanted.append([IGNORED] * (len(spoken[-1]) - len(answer)) + answer)
        word = torch.from_numpy(np.repeat(np.arange(len(words)), sizes)).to(device)
        at = torch.from_numpy(np.concatenate([first + np.arange(size) for size in sizes])).to(device)
        rows = llm.embed(padded(spoken, 0, device)).index_put((word, at), parts.float())
        answer, right = say(llm, rows, padded(wanted, IGNORED, device))
        return slot_loss(slots, labels), answer + rows_loss, slots.detach(), right

    @torch.no_grad()
    def check(self, patches: Tensor, ids: Tensor, labels: Tensor, words, batch: int = 32) -> dict[str, float]:
        """Share of the slots and of the words that are right; arguments as words_batch gives them."""
        rng, right, slots, device, patches = np.random.default_rng(0), [], [], self.reader.head.weight.device, normalised(patches)
        self.reader.smooth = None       # of the weights that it had before
        for start in range(0, len(patches), batch):
            part, mine = slice(start, start + batch), [(n - start, place, text) for n, place, text in words if start <= n < start + batch]
            _, _, logits, good = self(*(t[part].to(device) for t in (patches, ids, labels)), among_others(mine, rng))
            right += good.tolist()
            slots.append(logits.cpu())
        return {"dense_slot": float(slot_accuracy(torch.cat(slots), labels)), "spelt": float(np.mean(right))}
