"""Stage 0: the trunk learns to read. Windows of 4 x 12 patches full of text; each patch says which characters its halves show.

A window's patches are cut from frames by the SDK's own gather at 3780 px, so what is learnt from is what is read later. Dense text
gives a label to more than half of all places, sixty times as many as a question about a sign.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps3_sdk import _core
from ps3_sdk.export.reference.layers import position_weights

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:%/-+"
CLASSES = len(CHARACTERS) + 1           # 0 is nothing
ORDERS = 9                              # 0 is nothing, 8 the eighth character of a word and all later ones
ORDER_SHARE = 0.5                       # of the loss of orders beside that of characters: with 0.3 they were right for 87 % of the halves whose characters 98.5 % were
IGNORED = -100
BASE_PX, PATCH_PX, GRID = 3780, 14, 270
WINDOW = (4, 12)
MEAN = STD = (0.5, 0.5, 0.5)
LARGE_PX = 32                           # capitals of 18 frame pixels
THIN, THIN_WEIGHT = ".:-I", 2.0         # characters that are most often left out, and the weight of their labels
OVERLAP_PX = 5                          # of a character and a patch, upright, from which the patch is labelled with it


def patches_of(frame: np.ndarray, ids: np.ndarray | None = None, px: int = BASE_PX, patch_px: int = PATCH_PX) -> np.ndarray:
    """(K, 3 * patch^2) uint8 patches of a frame as gather cuts them, before normalisation."""
    ids = np.arange((px // patch_px) ** 2, dtype=np.int32) if ids is None else ids
    wrapped = _core.Frame("RGB", [frame], frame.shape[0], frame.shape[1])
    values = _core.gather(wrapped, BASE_PX, px, patch_px, ids, MEAN, STD)
    return np.clip(np.rint(values * 127.5 + 127.5), 0, 255).astype(np.uint8)


def slot_labels(codes: np.ndarray, boxes_px: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which character each half of each patch shows: (270, 540) uint8.

    The one that covers most of it, in each row of patches; a character that has no half so, as many points and I, gets the one that shows most of
    it, if what had that half has another.

    Args:
        codes: (n,) classes of characters. boxes_px: (n, 4) f32, x0 y0 x1 y1 in frame pixels. size: (h, w) of the frame.
    """
    owner, best = np.full((GRID, 2 * GRID), -1, np.int32), np.zeros((GRID, 2 * GRID), np.float32)
    half = PATCH_PX / 2
    scaled = boxes_px * np.array([BASE_PX / size[1], BASE_PX / size[0]] * 2, np.float32)
    for n, (x0, y0, x1, y1) in enumerate(scaled):
        rows = np.arange(max(int(y0 // PATCH_PX), 0), min(int(y1 // PATCH_PX) + 1, GRID))
        slots = np.arange(max(int(x0 // half), 0), min(int(x1 // half) + 1, 2 * GRID))
        rows = rows[np.minimum((rows + 1) * PATCH_PX, y1) - np.maximum(rows * PATCH_PX, y0) >= min(OVERLAP_PX, y1 - y0)]
        share = np.minimum((slots + 1) * half, x1) - np.maximum(slots * half, x0)
        for row in rows:
            better = share > np.maximum(best[row, slots], 0.3 * half)
            best[row, slots[better]], owner[row, slots[better]] = share[better], n
    count = np.bincount(owner[owner >= 0], minlength=len(scaled))
    for n in np.flatnonzero(count == 0):
        x0, y0, x1, y1 = scaled[n]
        row = min(max(int((y0 + y1) / 2 // PATCH_PX), 0), GRID - 1)
        slots = np.arange(max(int(x0 // half), 0), min(int(x1 // half) + 1, 2 * GRID))
        for slot in slots[np.argsort(np.maximum(slots * half, x0) - np.minimum((slots + 1) * half, x1), kind="stable")]:
            before = owner[row, slot]
            if before < 0 or count[before] > 1:
                owner[row, slot] = n
                count[n] = 1
                if before >= 0:
                    count[before] -= 1
                break
    return np.concatenate([np.asarray(codes, np.uint8), np.zeros(1, np.uint8)])[owner]


def window_labels(codes: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Labels of windows, (n, rows * columns, 2, 2) int64: of each half of each patch, its character and which of its word's characters that is.

    Args:
        codes, orders: (n, rows, 2 * columns) uint8 cut out of slot_labels. Orders are IGNORED where the word begins outside of the window.
    """
    n, rows, slots = codes.shape
    known, last, wanted = np.zeros((n, rows), bool), np.zeros((n, rows), np.uint8), np.empty(codes.shape, np.int64)
    for slot in range(slots):
        order = orders[..., slot]
        shown = order > 0
        known = np.where(shown, (order == 1) | known & (order >= last), known)
        last = np.where(shown, order, last)
        wanted[..., slot] = np.where(shown & ~known, np.int64(IGNORED), order)
    return np.stack([codes.astype(np.int64), wanted], axis=-1).reshape(n, rows * slots // 2, 2, 2)


class DensePool:
    """Gathered frames of dense text on disk: `patches` (frames, 270, 270, 588), `labels` and `orders` (frames, 270, 540), all uint8."""

    def __init__(self, folder: str | Path, split: str):
        folder = Path(folder) / f"dense_{split}"
        names = sorted(folder.glob("*.labels.npy"))
        if not names:
            raise FileNotFoundError(f"[pool] {folder} holds no frames; make them first: python -m ps3_sdk.training.pool {folder.parent} --split {split}")
        old = [name for name in names if not Path(str(name).replace(".labels.", ".orders.")).exists()]
        if old:
            raise FileNotFoundError(f"[pool] {len(old)} of {len(names)} frames in {folder} were made by an older version, {old[0].name} for one, and lack orders. "
                                    f"Delete the folder and make it again: python -m ps3_sdk.training.pool {folder.parent} --split {split}")
        self.labels = [np.load(name) for name in names]
        self.patches = [np.load(str(name).replace(".labels.", ".patches."), mmap_mode="r") for name in names]
        self.orders = [np.load(str(name).replace(".labels.", ".orders.")) for name in names]
        self.words = [np.load(str(name).replace(".labels.", ".words.")) for name in names]
        self.heights = [np.load(str(name).replace(".labels.", ".heights.")) for name in names]

    def __len__(self) -> int:
        return len(self.labels)

    def windows(self, rng: np.random.Generator, count: int, augment: bool, easy: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Random windows: patches (count, 48, 588) f32 normalised, their ids (count, 48) int64, labels (count, 48, 2, 2) int64 as window_labels gives.

        easy: share of the windows that are grey and whose text is large.
        """
        rows, columns = WINDOW
        out, ids, labels = np.empty((count, rows * columns, 588), np.uint8), np.empty((count, rows * columns), np.int64), np.empty((2, count, rows, 2 * columns), np.uint8)
        for n in range(count):
            for _ in range(12):             # rather where there is text
                frame, r, c = rng.integers(len(self)), rng.integers(GRID - rows), rng.integers(GRID - columns)
                label = self.labels[frame][r:r + rows, 2 * c:2 * (c + columns)]
                heights = self.heights[frame][r:r + rows, c:c + columns]
                large = n >= easy * count or np.median(heights[heights > 0] if heights.any() else 0) >= LARGE_PX
                if (label > 0).mean() > 0.25 and large:
                    break
            out[n] = self.patches[frame][r:r + rows, c:c + columns].reshape(-1, 588)
            labels[:, n] = label, self.orders[frame][r:r + rows, 2 * c:2 * (c + columns)]
            ids[n] = ((r + np.arange(rows))[:, None] * GRID + c + np.arange(columns)).ravel()
        patches = normalised(torch.from_numpy(out))
        if easy:
            grey = patches[:round(easy * count)].view(-1, rows * columns, 3, 196)
            grey[:] = grey.mean(dim=2, keepdim=True)
        return augmented(patches, rng) if augment else patches, torch.from_numpy(ids), torch.from_numpy(window_labels(*labels))


def normalised(patches: Tensor) -> Tensor:
    """uint8 -> f32 in -1..1"""
    return patches.float().div_(127.5).sub_(1.0)


def augmented(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Colours swapped, turned to their opposite, stronger or weaker, window by window: (count, tokens, 588) in -1..1."""
    count = len(patches)
    gain = np.where(rng.random(count) < 0.3, -1.0, 1.0) * rng.uniform(0.6, 1.1, count)
    order, shift = rng.permuted(np.tile(np.arange(3), (count, 1)), axis=1), rng.uniform(-0.2, 0.2, (count, 1, 3, 1))
    order, gain, shift = (torch.from_numpy(each).to(patches.device) for each in (order, gain.astype(np.float32), shift.astype(np.float32)))
    colours = patches.unflatten(2, (3, 196))
    return colours.gather(2, order[:, None, :, None].expand_as(colours)).mul_(gain[:, None, None, None]).add_(shift).clamp_(-1, 1).flatten(2)


class Reader(nn.Module):
    """The trunk with a head that is thrown away later. Logits of a half of a patch: CLASSES of characters, then ORDERS of places in a word."""

    def __init__(self, vision: nn.Module):
        super().__init__()
        self.vision, width = vision, vision.config.width
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 2 * (CLASSES + ORDERS))
        self.smooth = None          # the resampled position table, which stage 0 leaves as it is

    def positions(self, ids: Tensor) -> Tensor:
        """Position rows of 3780 px patches, ids of any shape: (.., width)."""
        vision = self.vision
        if self.smooth is None:
            with torch.no_grad(), torch.autocast(ids.device.type, enabled=False):
                weights = position_weights(27, GRID, ids.device)
                table = vision.trunk.pos_embed[0].unflatten(0, (27, 27))
                self.smooth = torch.einsum("cj,rjw->rcw", weights, torch.einsum("ri,ijw->rjw", weights, table)).flatten(0, 1)     # one side after the other: 20 times faster
        rows, columns = ids // GRID, ids % GRID
        return self.smooth[ids] + vision.pos_emb_residual_rows[-1][0][rows] + vision.pos_emb_residual_columns[-1][0][columns]

    def slots(self, hidden: Tensor) -> Tensor:
        """(.., width) of the last block -> logits (.., 2, CLASSES + ORDERS) f32"""
        return self.head(self.norm(hidden)).unflatten(-1, (2, -1)).float()

    @property
    def own(self) -> nn.ModuleDict:
        """What the model itself does not need, for save_heads() and load_heads()."""
        return nn.ModuleDict({"norm": self.norm, "head": self.head})

    def forward(self, patches: Tensor, position: Tensor) -> Tensor:
        return self.slots(self.vision.trunk(patches, position).hidden[-1])


class Rows(nn.Module):
    """What the language model gets of each block of 2 x 2 patches: which characters do their halves show? A row of small print holds up to five of them, which
    nothing but whole words tells to keep apart."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8 * CLASSES)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        """rows: (.., width) as the projector gives them | labels: (.., 8) int64 classes of the halves of their patches, patch by patch -> loss"""
        return F.cross_entropy(self.head(self.norm(rows.float())).unflatten(-1, (8, CLASSES)).flatten(0, -2).float(), labels.flatten(), class_weights(CLASSES, labels.device))


def class_weights(count: int, device, blank: float = 0.1) -> Tensor:
    """Of the classes of characters or, as many as they are, of orders: blank is that of halves that show nothing."""
    weight = torch.ones(count, device=device)
    weight[0] = blank
    if count == CLASSES:
        weight[[CHARACTERS.index(character) + 1 for character in THIN]] = THIN_WEIGHT
    return weight


def slot_loss(logits: Tensor, labels: Tensor, blank: float = 0.1) -> Tensor:
    """logits as Reader.slots gives, labels as window_labels; blank: weight of halves that show nothing."""
    loss = 0.0
    for part, wanted, share in zip(logits.split((CLASSES, ORDERS), dim=-1), labels.unbind(-1), (1.0, ORDER_SHARE)):
        loss = loss + share * F.cross_entropy(part.flatten(0, -2), wanted.flatten(), class_weights(part.shape[-1], part.device, blank), ignore_index=IGNORED)
    return loss


@torch.no_grad()
def slot_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the halves with a character whose most probable class is right."""
    shown = labels[..., 0] > 0
    return (logits[..., :CLASSES].argmax(-1) == labels[..., 0])[shown].float().mean()
