"""The losses of looking: a scene seen at low resolution, and for each question where what it asks for is.

What a frame costs once is paid once: its low-res rows are one prefix, behind which the language model reads every question; the last
state of a question is the prompt that places are compared with.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps3_sdk.export.reference.trunk import TrunkOutput

from .examples import LOW_GRID, Example
from .nano import NOT_SEEN
from .places import aim
from .reading import IGNORED, Reader

CONTRAST = 1.0  # weight of the contrast between places beside the probabilities' own loss
RIVALS = 1.0    # of the contrast between the texts of a frame: which of them is asked for, when all are found
SURE = 0.5      # of how sure probabilities are there; what is told to the language model is to be believed
AIM = 8.0       # of where a prompt says that its places are


class Found(NamedTuple):
    """seen: trunk output of the low-res tokens | kv: of their rows in the language model | questions: ids of each | prompts: (q, width) |
    prob: (q, places) | truth: (q, places), the places that are right."""
    losses: dict[str, Tensor]
    measures: dict[str, float]
    seen: TrunkOutput
    kv: list
    questions: list[list[int]]
    prompts: Tensor
    prob: Tensor
    truth: Tensor


class Looking(nn.Module):
    """A VilaHd and the reading head; forward gives an example's losses and measures."""

    def __init__(self, model, reader: Reader):
        super().__init__()
        self.model, self.reader = model, reader
        self.log_temperature = nn.Parameter(torch.tensor(2.5))      # of the contrast between places
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)

    def positions(self, index: int, ids: Tensor) -> Tensor:
        """Position rows (.., width) of patches of a scale."""
        grid = self.model.config.vision.grids[index]
        vision = self.model.vision.vision_model
        return vision.position(index, (grid, grid), ids.flatten()).unflatten(0, ids.shape)

    @property
    def device(self) -> torch.device:
        return self.model.vision.vision_model.trunk.pos_embed.device

    def forward(self, example: Example, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.search(example)

    def search(self, example: Example) -> tuple[Tensor, dict[str, float]]:
        """The losses of places alone."""
        losses, measures, *_ = self.find(example)
        return self.looked(losses), {**numbers(losses), **measures}

    def looked(self, losses: dict[str, Tensor]) -> Tensor:
        return losses["where"] + RIVALS * losses["rivals"] + SURE * losses["sure"] + AIM * losses["aim"] + 0.3 * losses["prior"]

    def find(self, example: Example) -> Found:
        """Where is what is asked, and where is anything to read?"""
        vision, config, chat = self.model.vision.vision_model, self.model.config, self.model.chat
        seen = vision.trunk(example.low.to(self.device), self.positions(0, torch.arange(LOW_GRID ** 2, device=self.device))[None])
        features = torch.cat([seen.hidden[i] for i in config.vision.select_based_on_layer], dim=-1)
        score = (vision.score_features(features), vision.view_features(example.view.to(self.device)))
        _, kv = self.model.llm(torch.cat([self.embed(self.head_ids), self.model.projector.low(seen.hidden[-1][0])])[None])
        questions = [chat._encode("\n" + prompt) for prompt, *_ in example.asked]
        truth = torch.stack([place for *_, place in example.asked]).float().flatten(1).to(self.device)
        prompts = self.model.projector.prompt(self.read_prompts(kv, questions))
        prob, signs = self.prob(score, prompts), example.signs.flatten().to(self.device)
        losses = {"aim": aim(prompts.float(), truth)}
        losses["where"], measures = self.where(prob, truth)
        losses["rivals"], losses["sure"] = self.among(prob[:, signs], truth[:, signs])
        losses["prior"], _ = self.where(self.prob(score, vision.prior_prompt[None]), example.signs.float().flatten()[None].to(self.device))
        return Found(losses, measures, seen, kv, questions, prompts, prob, truth)

    def embed(self, ids: list[int]) -> Tensor:
        return self.model.llm.embed(torch.tensor(ids, device=self.device))

    def read_prompts(self, kv, questions: list[list[int]]) -> Tensor:
        """Prompt pass: the last state of each question (q, width)."""
        rows = [self.embed(question) for question in questions]
        out = self.model.llm(nn.utils.rnn.pad_sequence(rows, batch_first=True), repeated(kv, len(questions)))[0]
        return torch.stack([out[i, len(r) - 1] for i, r in enumerate(rows)])

    def prob(self, score, prompts: Tensor) -> Tensor:
        """(q, 729) probabilities, for prompts (q, width)"""
        q, (low, view) = len(prompts), score
        with torch.autocast(prompts.device.type, enabled=False):        # those near 0 and 1 need more digits
            expand = lambda part: part.float().expand(q, -1, -1)
            return self.model.vision.vision_model.score(expand(low), expand(view), prompts.float()).flatten(1).clamp(1e-6, 1 - 1e-6)

    def where(self, prob: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss and recall of places, both (q, 729); a row of truth that is all zeros has nothing to find."""
        logit = torch.logit(prob)           # 5 z, z in -1..1
        there = truth.sum(dim=1) > 0
        loss = F.binary_cross_entropy_with_logits(logit, truth, pos_weight=torch.tensor(10.0, device=logit.device))
        measures = {}
        if there.any():
            share = truth[there] / truth[there].sum(dim=1, keepdim=True)
            loss = loss + CONTRAST * F.cross_entropy(logit[there] / 5 * self.log_temperature.exp(), share)
            with torch.no_grad():
                measures["hit"] = float(truth[there].gather(1, logit[there].argmax(dim=1, keepdim=True)).mean())
                for k in (4, 6):
                    best = logit[there].topk(k, dim=1).indices
                    measures[f"recall{k}"] = float((truth[there].gather(1, best).sum(dim=1) / truth[there].sum(dim=1)).mean())
        return loss, measures

    def among(self, prob: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of telling texts apart, both (q, places of texts): which is it, and how sure may one be? 0 where a frame has none."""
        if not prob.shape[1]:
            return prob.sum() * 0, prob.sum() * 0
        logit, there = torch.logit(prob), truth.sum(dim=1) > 0
        sure = F.binary_cross_entropy_with_logits(logit, truth)
        if not there.any():
            return sure * 0, sure
        return F.cross_entropy(2 * logit[there], truth[there] / truth[there].sum(dim=1, keepdim=True)), sure


def repeated(kv, count: int):
    """Keys and values of one sequence for `count` that go on from it."""
    return [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in kv]


def say(llm, rows: Tensor, wanted: Tensor, kv=None) -> tuple[Tensor, list[bool]]:
    """Rows (q, n, width) through the language model: mean loss of the tokens in wanted (q, n), IGNORED where any will do, and which answers are right whole."""
    out, counted = llm(rows, kv)[0], wanted != IGNORED
    logits = llm.logits(out[counted]).float()
    good = torch.ones_like(wanted, dtype=torch.bool)
    good[counted] = logits.detach().argmax(-1) == wanted[counted]
    return F.cross_entropy(logits, wanted[counted]), good.all(dim=1).tolist()


def shares(right: list[bool], answers: list[str]) -> dict[str, float]:
    """exact: share of the answers with a text that are right; refused: of the others."""
    right, text = np.array(right, bool), np.array([answer != NOT_SEEN for answer in answers])
    return {"exact": float(right[text].mean()) if text.any() else float("nan"), "refused": float(right[~text].mean()) if (~text).any() else float("nan")}


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


def template_ids(chat) -> tuple[list[int], list[int], list[int]]:
    """Ids before the frame, between question and answer, and behind the answer."""
    before, after = chat.template.before, chat.template.after
    return chat._encode(before), chat._encode(after), chat._encode(chat.template.answer_end)
