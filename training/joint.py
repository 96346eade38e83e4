"""The losses of one scene, the whole way of an answer: low-res pass, where to look, windows read, words said.

What a frame costs once is paid once: the low-res rows are one prefix for every question's two passes through the language model
(the prompt pass, whose last state says where to look, and the answer pass, which reads high-res rows as well). Of a frame's windows
each question reads its own and a few that look like it; rows are told how probable the question holds their place.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .examples import LOW_GRID, WINDOW, Example
from .nano import NOT_SEEN
from .reading import GRID, Reader, slot_loss

IGNORED = -100
CONTRAST = 1.0  # weight of the contrast between places beside the probabilities' own loss
UNSEEN = 1      # questions about things that are not shown, per look, at most: they are answered by NOT_SEEN
MOST_SHOWN = 4  # windows that one question may read
TOLD = 0.3      # share of the questions whose places are told, so that reading is learnt while looking is not yet certain


class Joint(nn.Module):
    """A VilaHd and the reading head; forward gives an example's losses and measures."""

    def __init__(self, model, reader: Reader):
        super().__init__()
        self.model, self.reader = model, reader
        self.log_temperature = nn.Parameter(torch.tensor(2.5))      # of the contrast between places
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)
        self.see = lambda patches, position, past=None: model.vision.vision_model.trunk(patches, position, past)

    def positions(self, index: int, ids: Tensor) -> Tensor:
        """Position rows (.., width) of patches of a scale."""
        grid = self.model.config.vision.grids[index]
        vision = self.model.vision.vision_model
        return vision.position(index, (grid, grid), ids.flatten()).unflatten(0, ids.shape)

    @property
    def device(self) -> torch.device:
        return self.model.vision.vision_model.trunk.pos_embed.device

    def see_low(self, example: Example):
        """The low-res pass: trunk output, what prompts are compared with, rows of the language model."""
        vision, config = self.model.vision.vision_model, self.model.config
        seen = self.see(example.low.to(self.device), self.positions(0, torch.arange(LOW_GRID ** 2, device=self.device))[None])
        features = torch.cat([seen.hidden[i] for i in config.vision.select_based_on_layer], dim=-1)
        score = (vision.score_features(features), vision.view_features(example.view.to(self.device)))
        return seen, score, self.model.projector.low(seen.hidden[-1][0])

    def forward(self, example: Example, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Without windows there is nothing to read: the losses are those of looking alone, at a third of the time."""
        model, vision = self.model, self.model.vision.vision_model
        put = lambda t: t.to(self.device)
        seen, score, low_rows = self.see_low(example)
        _, kv = self.read_prefix(low_rows)
        chat = model.chat
        questions = [chat._encode("\n" + prompt) for prompt, *_ in example.asked]
        truth = put(torch.stack([place for *_, place in example.asked]).float())
        prompts = model.projector.prompt(self.read_prompts(kv, questions))
        where, measures = self.where(score, prompts, truth)
        losses = {"where": where, "prior": self.where(score, vision.prior_prompt[None], put(example.signs.float())[None])[0]}
        if not len(example.windows):
            return losses["where"] + 0.3 * losses["prior"], {**{k: float(v.detach()) for k, v in losses.items()}, **measures}
        windows, ids, w = put(example.windows), put(example.window_ids), len(example.windows)
        past = [(k.expand(w, -1, -1, -1), v.expand(w, -1, -1, -1)) for k, v in seen.kv]
        high = self.see(windows, self.positions(3, ids), past).hidden[-1]
        labels = put(example.labels)
        slots = self.reader.head(self.reader.norm(high)).unflatten(-1, (2, -1)).float()
        losses["slot"] = slot_loss(slots, labels)

        high_rows, blocks = self.rows(high, ids)
        prob = self.told_places(score, prompts, truth)
        kept, shown = self.choose(example, blocks, prob[:, put(torch.from_numpy(places_of(blocks)))].mean(dim=2).cpu().numpy(), rng)
        order = np.argsort(blocks[shown].reshape(len(kept), -1), axis=1)
        read = lambda values: np.take_along_axis(values[shown].reshape(len(kept), -1), order, axis=1)
        flat, at = read(blocks), read(np.arange(blocks.size).reshape(blocks.shape))
        rows = model.projector.told(high_rows.flatten(0, 1)[put(torch.from_numpy(at))], prob[kept].gather(1, put(torch.from_numpy(places_of(flat)))))
        high_kv = model.llm(rows, [(k.expand(len(kept), -1, -1, -1), v.expand(len(kept), -1, -1, -1)) for k, v in kv])[1]
        answers = [example.asked[i][1] for i in kept]
        losses["answer"], right = self.read_answers(high_kv, [questions[i] for i in kept], [chat._encode(answer) for answer in answers])
        total = losses["slot"] + losses["answer"] + losses["where"] + 0.3 * losses["prior"]
        with torch.no_grad():
            written = labels > 0
            hits = float((slots.argmax(-1) == labels)[written].float().mean()) if written.any() else float("nan")
        return total, {**{k: float(v.detach()) for k, v in losses.items()}, **measures, "slot_right": hits, **shares(right, answers)}

    def choose(self, example: Example, blocks: np.ndarray, liked: np.ndarray, rng) -> tuple[list[int], np.ndarray]:
        """Which questions are answered, and the windows (k, n) that each may read: its own and those that it likes most besides, as a look would pick.

        blocks: (w, 27) block ids of the windows. liked: (q, w), how probable each question holds each window.
        """
        apart = np.array([[not set(a) & set(b) for b in blocks] for a in blocks])
        for count in (int(rng.integers(1, MOST_SHOWN + 1)), 1):
            kept, shown = [], []
            for i, (_, answer, window, _) in enumerate(example.asked):
                mine = [] if window is None else [window]
                for other in np.argsort(-liked[i] - rng.uniform(0, 0.3, len(blocks))):
                    if len(mine) < count and all(apart[other, m] for m in mine):
                        mine.append(int(other))
                if len(mine) == count and (window is not None or answer == NOT_SEEN):
                    kept.append(i)
                    shown.append(mine)
            if kept:
                return kept, np.array(shown)

    def rows(self, high: Tensor, ids: Tensor) -> tuple[Tensor, np.ndarray]:
        """Windows' tokens (w, 108, width) -> rows of whole blocks (w, 27, language width), and the block ids (w, 27)."""
        w, (down, across) = len(high), WINDOW
        tiles = high.view(w, down // 2, 2, across // 2, 2, -1).transpose(2, 3).reshape(w, (down // 2) * (across // 2), -1)
        first = ids.view(w, down // 2, 2, across // 2, 2)[:, :, 0, :, 0].reshape(w, -1)
        blocks = (first // GRID // 2) * (GRID // 2) + first % GRID // 2
        rows = self.model.projector(tiles.flatten(0, 1), 3, blocks.flatten(), GRID // 2).unflatten(0, (w, -1))
        return rows, blocks.cpu().numpy()

    def embed(self, ids: list[int]) -> Tensor:
        return self.model.llm.embed(torch.tensor(ids, device=self.device))

    def read_prefix(self, low_rows: Tensor):
        """The text before the frame and its low-res rows: hidden states, keys and values."""
        return self.model.llm(torch.cat([self.embed(self.head_ids), low_rows])[None])

    def read_prompts(self, kv, questions: list[list[int]]) -> Tensor:
        """Prompt pass: the last state of each question (q, width)."""
        shared = [(k.expand(len(questions), -1, -1, -1), v.expand(len(questions), -1, -1, -1)) for k, v in kv]
        rows = [self.embed(question) for question in questions]
        out = self.model.llm(nn.utils.rnn.pad_sequence(rows, batch_first=True), shared)[0]
        return torch.stack([out[i, len(r) - 1] for i, r in enumerate(rows)])

    def read_answers(self, kv, questions: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, list[bool]]:
        """Answer pass behind low-res and high-res rows: mean loss of the answers' tokens, and which answers are right whole."""
        q, rows, targets = len(questions), [], []
        shared = [(k.expand(q, -1, -1, -1), v.expand(q, -1, -1, -1)) for k, v in kv]
        for question, answer in zip(questions, answers):
            said = question + self.tail_ids + answer + self.end_ids
            rows.append(self.embed(said[:-1]))
            wanted = [IGNORED] * (len(question) + len(self.tail_ids) - 1) + answer + self.end_ids
            targets.append(torch.tensor(wanted, device=self.device))
        out = self.model.llm(nn.utils.rnn.pad_sequence(rows, batch_first=True), shared)[0]
        wanted = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        counted = wanted != IGNORED
        logits = self.model.llm.logits(out[counted]).float()
        good = torch.ones_like(wanted, dtype=torch.bool)
        good[counted] = logits.detach().argmax(-1) == wanted[counted]
        return F.cross_entropy(logits, wanted[counted]), good.all(dim=1).tolist()

    def prob(self, score, prompts: Tensor) -> Tensor:
        """(q, 729) probabilities, for prompts (q, width)"""
        q, (low, view) = len(prompts), score
        with torch.autocast(prompts.device.type, enabled=False):        # those near 0 and 1 need more digits
            expand = lambda part: part.float().expand(q, -1, -1)
            return self.model.vision.vision_model.score(expand(low), expand(view), prompts.float()).flatten(1).clamp(1e-6, 1 - 1e-6)

    @torch.no_grad()
    def told_places(self, score, prompts: Tensor, truth: Tensor) -> Tensor:
        """What rows are told of their places: probabilities (q, 729), while learning for some questions the truth."""
        prob, told = self.prob(score, prompts), torch.rand(len(prompts), 1, device=prompts.device) < TOLD
        return torch.where(told & self.training, truth.flatten(1).clamp(0.01, 0.99), prob)

    def where(self, score, prompts: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss and recall of places. prompts (q, width), truth (q, 27, 27) f32; a row of zeros has nothing to find."""
        prob = self.prob(score, prompts)
        logit = torch.logit(prob)           # 5 z, z in -1..1
        truth = truth.flatten(1)
        there = truth.sum(dim=1) > 0
        loss = F.binary_cross_entropy_with_logits(logit, truth, pos_weight=torch.tensor(10.0, device=logit.device))
        measures = {}
        if there.any():
            share = truth[there] / truth[there].sum(dim=1, keepdim=True)
            loss = loss + CONTRAST * F.cross_entropy(logit[there] / 5 * self.log_temperature.exp(), share)
            with torch.no_grad():
                for k in (4, 9):
                    best = logit[there].topk(k, dim=1).indices
                    measures[f"recall{k}"] = float((truth[there].gather(1, best).sum(dim=1) / truth[there].sum(dim=1)).mean())
        return loss, measures


def places_of(blocks, side: int = GRID // 2):
    """Blocks of a scale with side x side of them -> the low-res places they lie in; arrays or tensors."""
    return blocks // side * LOW_GRID // side * LOW_GRID + blocks % side * LOW_GRID // side


def shares(right: list[bool], answers: list[str]) -> dict[str, float]:
    """exact: share of the answers with a text that are right; refused: of the others."""
    right, text = np.array(right, bool), np.array([answer != NOT_SEEN for answer in answers])
    return {"exact": float(right[text].mean()) if text.any() else float("nan"), "refused": float(right[~text].mean()) if (~text).any() else float("nan")}


def template_ids(chat) -> tuple[list[int], list[int], list[int]]:
    """Ids before the frame, between question and answer, and behind the answer."""
    before, after = chat.template.before, chat.template.after
    return chat._encode(before), chat._encode(after), chat._encode(chat.template.answer_end)
