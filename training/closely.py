"""The losses of questions answered as the SDK answers them: places picked by the model's own score, all their patches of every scale,
rows told how probable their place is, words said. They teach to find what was asked among all that was picked.
"""
from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ps3_sdk.probability import around, nearby

from .examples import LOW_GRID, SCALES, Cutter, Example
from .looking import Looking, detached, padded, say, shares, taken
from .nano import NOT_SEEN
from .reading import GRID, IGNORED, PATCH_PX, slot_loss
from .things import Things, labels_of

LOOKS, QUESTIONS = 4, 8         # close looks at a scene, and questions of it, that are answered
WIDE = 0.15     # share of the looks that take the most probable places wherever they are, so that texts beside each other are told apart, too
ELSEWHERE = 0.2 # of the others that look at the second best place, where mostly nothing of what is asked is: that is to be said
UNSEEN = 1      # questions about things that are not shown, per look, at most: they are answered by NOT_SEEN
TOLD = 0.2      # share of the questions whose places are told, so that reading is learnt while looking is not yet certain
ANSWER, SLOT, HIGH_THINGS = 3.0, 2.0, 0.1       # weights of what is answered, of what the patches show, and of the things they are of, beside looking


class Look(NamedTuple):
    """Some places of a scene seen closely. cells: (places,) int64, ascending | asked: which of all questions are answered there | answers: how."""
    scene: int
    cells: np.ndarray
    asked: list[int]
    answers: list[str]


class Closely(Looking):
    """places: how many low-res places are looked at closely, 4 for a budget of 482 patches | true_share: of looks at places that are right
    for several questions, so that reading is learnt while looking is not yet certain | cutter: what cuts their patches."""

    def __init__(self, model, reader, places: int = 4, true_share: float = 0.5, cutter: Cutter | None = None):
        super().__init__(model, reader)
        self.high_things = Things(model.config.vision.trunk.width)
        self.places, self.true_share, self.cutter, self.around = places, true_share, cutter or Cutter(), model.config.looks.around

    def forward(self, examples: Sequence[Example], rng: np.random.Generator, closely: int | None = None) -> tuple[Tensor, dict]:
        """closely: how many of the examples, the first ones, are answered; in the others is only looked for places. Where gradients are kept,
        each close look answers every question that it shows; else the one that it was made for, as the SDK does."""
        found = self.find(examples)
        losses, told = found.losses, found.prob.detach()
        made = self.looks_at(examples[:closely], found, rng, learning=torch.is_grad_enabled())
        if torch.is_grad_enabled():
            told = torch.where(torch.rand(len(told), 1, device=told.device) < TOLD, found.truth.clamp(0.01, 0.99), told)
        rows, place, more, found.measures["high_kind"] = self.look(examples, found, made)
        losses.update(more)
        of_look, asked = [n for n, look in enumerate(made) for _ in look.asked], [i for look in made for i in look.asked]
        answers, right = [answer for look in made for answer in look.answers], torch.zeros(0, dtype=torch.bool)
        losses["answer"] = losses["where"] * 0
        if asked:
            of_look, which = (torch.tensor(each, device=self.device) for each in (of_look, asked))
            rows = self.model.projector.told(rows.index_select(0, of_look), told[which].gather(1, place[of_look]))
            losses["answer"], right = self.answer(rows, taken(found.kv, found.of[which]), [found.questions[i] for i in asked], answers)
        return ANSWER * losses["answer"] + SLOT * (losses["slot"] + losses["rows"]) + HIGH_THINGS * losses["high_things"] + self.looked(losses), {**detached(losses), **found.measures, **shares(right.tolist(), answers)}

    def looks_at(self, examples: Sequence[Example], found, rng: np.random.Generator, learning: bool) -> list[Look]:
        """Where to look closely, for the first LOOKS questions of each scene, and what is asked there, of its first QUESTIONS."""
        prob, truth, first, made = found.prob.detach().cpu().numpy(), found.truth.cpu().numpy(), 0, []
        for scene, example in enumerate(examples):
            own = slice(first, first + min(QUESTIONS, len(example.asked)))
            for lead in range(min(LOOKS, len(example.asked))):
                wanted, wide = prob[first + lead], self.around is None or learning and rng.random() < WIDE
                if learning and rng.random() < self.true_share:
                    wanted = wanted + (self.right_places(truth[own], lead, rng) if wide else truth[first + lead])
                if not wide:
                    wanted = self.near(wanted, learning and rng.random() < ELSEWHERE)
                cells = self.cells(wanted)
                kept, answers = self.told_there(example, truth[own], cells, lead, rng) if learning else ([lead], [example.asked[lead][1]])
                made.append(Look(scene, cells, [first + i for i in kept], answers))
            first += len(example.asked)
        return made

    @property
    def heads(self) -> dict[str, nn.Module]:
        return {**super().heads, "high_things": self.high_things}

    def cells(self, wanted: np.ndarray) -> np.ndarray:
        """The places to look at, ascending, by how much each of all (729,) is wanted."""
        return np.sort(np.argpartition(-wanted, self.places)[:self.places])

    def near(self, wanted: np.ndarray, elsewhere: bool) -> np.ndarray:
        """(729,) such that the best place's neighbours come first; or those of the best one that is not among these. As it is in models that look anywhere."""
        if self.around is None:
            return wanted
        wanted = wanted.reshape(LOW_GRID, LOW_GRID)
        if elsewhere:
            wanted = np.where(nearby(wanted, self.around), np.float32(0), wanted)
        return around(wanted, self.around).ravel()

    def right_places(self, truth: np.ndarray, lead: int, rng) -> np.ndarray:
        """Places of the text that question `lead` is about, and of others' texts as long as all fit: (729,) 0 or 1."""
        chosen = truth[lead]
        for i in rng.permutation(len(truth)):
            more = np.maximum(chosen, truth[i])
            if more.sum() <= self.places:
                chosen = more
        return chosen

    def told_there(self, example: Example, truth: np.ndarray, cells: np.ndarray, lead: int, rng) -> tuple[list[int], list[str]]:
        """Which of a scene's questions are answered where the places in `cells` can be read, and how; those whose text is there in part are left out.

        Of those that are not there the one that the look was made for comes first: what it found instead is most like what it was asked for.
        """
        share = truth[:, cells].sum(axis=1) / truth.sum(axis=1).clip(min=1)
        seen = [i for i, part in enumerate(share) if part == 1]
        unseen = sorted((int(i) for i in rng.permutation(len(share)) if share[i] == 0), key=lambda i: i != lead)[:UNSEEN]
        return seen + unseen, [example.asked[i][1] for i in seen] + [NOT_SEEN] * len(unseen)

    def answer(self, rows: Tensor, kv, questions: list[list[int]], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Answer pass: high-res rows (q, k, width) behind the low-res ones, then question and answer."""
        said = [ids + self.end_ids for ids in self.model.chat.encode_many(answers)]
        before = [[IGNORED] * (rows.shape[1] + len(question) + len(self.tail_ids) - 1) for question in questions]
        spoken = padded([question + self.tail_ids + ids[:-1] for question, ids in zip(questions, said)], 0, self.device)
        targets = padded([none + ids for none, ids in zip(before, said)], IGNORED, self.device)
        return say(self.model.llm, torch.cat([rows, self.model.llm.embed(spoken)], dim=1), targets, kv)

    def look(self, examples: Sequence[Example], found, looks: Sequence[Look]) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """All patches of each look's places, seen together -> rows of the language model (looks, k, width), scale by scale, each row's place (looks, k) int64,
        losses of what the halves of the 3780 px patches and their rows show and of what things the 1512 px ones are of, and the share of these that is told."""
        cells, to_device = np.stack([look.cells for look in looks]), lambda array: torch.from_numpy(array).to(self.device)
        ids = [parts_of(cells, px // PATCH_PX) for px in SCALES]
        patches = [torch.cat(self.cutter.patches(examples[look.scene].frame, [(px, PATCH_PX, each[n]) for px, each in zip(SCALES, ids)])) for n, look in enumerate(looks)]
        positions = torch.cat([self.positions(index, to_device(each)) for index, each in enumerate(ids, 1)], dim=1)
        of = torch.tensor([look.scene for look in looks], device=self.device)
        high = self.model.vision.vision_model.trunk(torch.stack(patches), positions, taken(found.seen.kv, of)).hidden[-1]
        rows, place = [], []
        for index, (px, own, tokens) in enumerate(zip(SCALES, ids, high.split([each.shape[1] for each in ids], dim=1)), 1):
            grid = px // PATCH_PX
            blocks = parts_of(cells, grid // 2)
            inside = np.stack([(blocks // (grid // 2) * 2 + down) * grid + blocks % (grid // 2) * 2 + across for down in (0, 1) for across in (0, 1)], axis=-1)
            where = to_device(np.stack([np.searchsorted(every, some) for every, some in zip(own, inside)]))     # of each block's patches among the look's
            tiles = tokens.gather(1, where.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1])).unflatten(1, where.shape[1:]).flatten(2)
            rows.append(self.model.projector(tiles.flatten(0, 1), index, to_device(blocks.ravel()), grid // 2).unflatten(0, blocks.shape))
            place.append(to_device(places_of(blocks, grid // 2)))
        labels = np.stack([examples[look.scene].slots.reshape(2, GRID * GRID, 2)[:, own] for look, own in zip(looks, ids[-1])]).astype(np.int64)
        *_, middle, fine = high.split([each.shape[1] for each in ids], dim=1)
        labels = to_device(labels).permute(0, 2, 3, 1)
        of_rows = labels[..., 0].gather(1, where.flatten(1)[..., None].expand(-1, -1, 2)).unflatten(1, where.shape[1:]).flatten(2)     # where: the finest scale's
        things = labels_of(examples, SCALES[-2] // PATCH_PX, self.device)[of].gather(2, to_device(ids[-2])[:, None].expand(-1, 2, -1))
        losses = {"slot": slot_loss(self.reader.slots(fine), labels), "rows": self.rows(self.shown("rows", rows[-1]), of_rows)}
        losses["high_things"], told = self.high_things(self.shown("high_things", middle), things)
        return torch.cat(rows, dim=1), torch.cat(place, dim=1), losses, told


def parts_of(cells: np.ndarray, grid: int) -> np.ndarray:
    """Low-res places (n, k) -> the ids of all parts of a grid x grid that lie in them, (n, k * side^2) int64, ascending."""
    side = grid // LOW_GRID
    rows, columns = (each[..., None] * side + np.arange(side) for each in (cells // LOW_GRID, cells % LOW_GRID))
    return np.sort((rows[..., :, None] * grid + columns[..., None, :]).reshape(len(cells), -1), axis=1)


def places_of(blocks, side: int):
    """Blocks of a scale with side x side of them -> the low-res places they lie in."""
    return blocks // side * LOW_GRID // side * LOW_GRID + blocks % side * LOW_GRID // side
