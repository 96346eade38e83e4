"""The losses of looking: a scene seen at low resolution, and for each question where what it asks for is.

What a frame costs once is paid once: its low-res rows are one prefix, behind which the language model reads every question; the last
state of a question is the prompt that places are compared with.
"""
from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ps3_sdk.export.reference.trunk import TrunkOutput

from .captions import Captions
from .examples import LOW_GRID, Example
from .nano import NOT_SEEN
from .places import aim
from .prefix import behind, together
from .reading import IGNORED, Reader, Rows
from .things import Things, labels_of

CONTRAST = 1.0  # weight of the contrast between places beside the probabilities' own loss
RIVALS = 1.0    # of the contrast between the texts of a frame: which of them is asked for, when all are found
SURE = 0.5      # of how sure probabilities are there; what is told to the language model is to be believed
AIM = 2.0       # of where a prompt says that its places are; with 8 it was the largest part of what the trunk learnt from, twelve times what answers were
CAPTIONS = 0.1  # of things told by their captions
THINGS = 0.3    # of the kind and colour of the thing that each place is of, in the view
LOW_THINGS = 0.15       # in the low-res pass
EASY = 0.25     # weight of a question whose places are found for certain; of one that finds none it is 1 more


class Found(NamedTuple):
    """Of some scenes. seen: trunk output of their low-res tokens | kv: of their rows in the language model | questions: ids of each of all questions |
    of: (q,) int64, which scene each is of | prompts: (q, width) | prob: (q, places) | truth: (q, places), the places that are right."""
    losses: dict[str, Tensor]
    measures: dict[str, Tensor]
    seen: TrunkOutput
    kv: list
    questions: list[list[int]]
    of: Tensor
    prompts: Tensor
    prob: Tensor
    truth: Tensor


class Looking(nn.Module):
    """A VilaHd and the reading head; forward gives losses and measures of some examples, which go through the networks together."""

    def __init__(self, model, reader: Reader):
        super().__init__()
        self.model, self.reader = model, reader
        self.log_temperature = nn.Parameter(torch.tensor(2.5))      # of the contrast between places
        self.captions = Captions(model.config.vision.trunk.width, model.config.llm.width)
        self.things, self.low_things = Things(model.config.vision.view_width), Things(model.config.vision.trunk.width)
        self.rows = Rows(model.config.llm.width)
        self.fresh: set[str] = set()        # heads that know nothing yet: what they look at does not learn from them
        self.head_ids, self.tail_ids, self.end_ids = template_ids(model.chat)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What only training knows, for save_heads() and load_heads()."""
        return {"reading": self.reader.own, "captions": self.captions, "things": self.things, "low_things": self.low_things, "rows": self.rows}

    def positions(self, index: int, ids: Tensor) -> Tensor:
        """Position rows (.., width) of patches of a scale."""
        grid = self.model.config.vision.grids[index]
        vision = self.model.vision.vision_model
        return vision.position(index, (grid, grid), ids.flatten()).unflatten(0, ids.shape)

    @property
    def device(self) -> torch.device:
        return self.model.vision.vision_model.trunk.pos_embed.device

    def forward(self, examples: Sequence[Example], rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.search(examples)

    def search(self, examples: Sequence[Example]) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of places alone."""
        losses, measures, *_ = self.find(examples)
        return self.looked(losses), {**detached(losses), **measures}

    def looked(self, losses: dict[str, Tensor]) -> Tensor:
        return (losses["where"] + RIVALS * losses["rivals"] + SURE * losses["sure"] + AIM * losses["aim"] + 0.3 * losses["prior"] + CAPTIONS * losses["captions"]
                + THINGS * losses["things"] + LOW_THINGS * losses["low_things"])

    def find(self, examples: Sequence[Example]) -> Found:
        """Where is what is asked, and where is anything to read?"""
        vision, config, chat, count = self.model.vision.vision_model, self.model.config, self.model.chat, len(examples)
        places = self.positions(0, torch.arange(LOW_GRID ** 2, device=self.device))
        seen = vision.trunk(torch.stack([example.low for example in examples]), places.expand(count, -1, -1))
        features = torch.cat([seen.hidden[i] for i in config.vision.select_based_on_layer], dim=-1)
        score = (vision.score_features(features), vision.view_features(torch.stack([example.view for example in examples])))
        head = self.embed(self.head_ids).expand(count, -1, -1)
        _, kv = self.model.llm(torch.cat([head, self.model.projector.low(seen.hidden[-1])], dim=1))
        questions = chat.encode_many(["\n" + prompt for example in examples for prompt, _ in example.asked])
        of = torch.repeat_interleave(torch.tensor([len(example.asked) for example in examples])).to(self.device)
        truth = torch.cat([example.where for example in examples]).to(self.device).float()
        signs = torch.stack([example.signs for example in examples]).to(self.device)
        prompts = self.model.projector.prompt(self.read_prompts(kv, of, questions))
        prob = self.prob(score, prompts, of)
        losses = {"aim": aim(prompts.float(), truth)}
        losses["where"], measures = self.where(prob, truth)
        losses["rivals"], losses["sure"] = self.among(prob, truth, signs[of])
        losses["prior"], _ = self.where(self.prob(score, vision.prior_prompt.expand(count, -1), torch.arange(count, device=self.device)), signs.float())
        losses["captions"], measures["told"] = self.tell(seen.hidden[-1], examples)
        losses["things"], measures["kind"] = self.things(self.shown("things", score[1]), labels_of(examples, round(score[1].shape[1] ** 0.5), self.device))
        losses["low_things"], measures["low_kind"] = self.low_things(self.shown("low_things", seen.hidden[-1]), labels_of(examples, LOW_GRID, self.device))
        return Found(losses, measures, seen, kv, questions, of, prompts, prob, truth)

    def tell(self, features: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Loss of the captions of things, and the share of them that are told from others; 0 and NaN where there is none."""
        captions = [caption for example in examples for caption in example.captions]
        if not captions:
            return features.new_zeros(()), features.new_full((), float("nan"))
        ids = self.model.chat.encode_many([words for words, _ in captions])
        last = torch.tensor([len(each) - 1 for each in ids], device=self.device)
        words = self.model.llm(self.embed_padded(ids))[0][torch.arange(len(ids), device=self.device), last]
        loss, right = self.captions(self.shown("captions", features), [example.boxes.to(self.device) for example in examples], words, [name for _, name in captions])
        return loss, right.float().mean()

    def shown(self, head: str, features: Tensor) -> Tensor:
        """Features for a head; those that a fresh one sees do not learn from it."""
        return features.detach() if head in self.fresh else features

    def embed(self, ids: list[int]) -> Tensor:
        return self.model.llm.embed(torch.tensor(ids, device=self.device))

    def embed_padded(self, lists: list[list[int]]) -> Tensor:
        return self.model.llm.embed(padded(lists, 0, self.device))

    def read_prompts(self, kv, of: Tensor, questions: list[list[int]]) -> Tensor:
        """Prompt pass: the last state of each question (q, width), behind the rows of its frame, of: (q,) of kv's."""
        out = behind(self.model.llm, kv, of, self.embed_padded(questions))
        last = torch.tensor([len(question) - 1 for question in questions], device=self.device)
        return out[torch.arange(len(questions), device=self.device), last]

    def prob(self, score, prompts: Tensor, of: Tensor) -> Tensor:
        """(q, 729) probabilities, for prompts (q, width) and what score compares them with, (scenes, places, width) each. of: (q,) int64 ascending, which
        scene each is of: the prompts of a scene are scored together, so that its features are normalised once."""
        with torch.autocast(prompts.device.type, enabled=False):        # those near 0 and 1 need more digits
            prompts, low, view = prompts.float(), *(part.float() for part in score)
            prompts, place = together(prompts, of, len(low))
            return self.model.vision.vision_model.score(low, view, prompts)[of, place].flatten(1).clamp(1e-6, 1 - 1e-6)

    def where(self, prob: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and recall of places, both (q, 729); a row of truth that is all zeros has nothing to find."""
        logit = torch.logit(prob)           # 5 z, z in -1..1
        there, share = shares_of(truth)
        contrast = missed(-(share * F.log_softmax(logit / 5 * self.log_temperature.exp(), dim=1)).sum(dim=1), there)
        loss = F.binary_cross_entropy_with_logits(logit, truth, pos_weight=torch.tensor(10.0, device=logit.device)) + CONTRAST * contrast
        with torch.no_grad():
            best = logit.topk(6, dim=1).indices
            found = {"hit": truth.gather(1, best[:, :1])[:, 0], **{f"recall{k}": share.gather(1, best[:, :k]).sum(dim=1) for k in (4, 6)}}
            return loss, {name: each.sum() / there.sum() for name, each in found.items()}       # none where nothing is there: 0 / 0

    def among(self, prob: Tensor, truth: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of telling a frame's texts apart, all (q, places): which is it, and how sure may one be? signs: bool, where texts are; 0 where there are none."""
        logit, (there, share) = torch.logit(prob), shares_of(truth)
        sure = (F.binary_cross_entropy_with_logits(logit, truth, reduction="none") * signs).sum() / signs.sum().clamp(min=1)
        chosen = F.log_softmax((2 * logit).masked_fill(~signs, -1e4), dim=1)
        return missed(-(share * chosen).sum(dim=1), there), sure


def shares_of(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Of (q, places): which rows have a place, and each row divided by how many it has."""
    count = truth.sum(dim=1, keepdim=True)
    return count[:, 0] > 0, truth / count.clamp(min=1)


def missed(loss: Tensor, there: Tensor) -> Tensor:
    """Mean of (q,) losses -log p over those that are there, in which those that are solved count less. Source: Lin et al., "Focal loss", arXiv 1708.02002."""
    return (loss * (EASY + 1 - torch.exp(-loss.detach()))).sum() / there.sum().clamp(min=1)


def taken(kv, of: Tensor):
    """Keys and values of some sequences for others that go on from them: of (n,) int64 says which from which."""
    return [(k.index_select(0, of), v.index_select(0, of)) for k, v in kv]


def padded(lists: Sequence[list[int]], value: int, device: torch.device) -> Tensor:
    """Lists of ids as one (n, longest) int64, `value` behind the shorter ones."""
    out = np.full((len(lists), max(map(len, lists))), value, np.int64)
    for row, ids in zip(out, lists):
        row[:len(ids)] = ids
    return torch.from_numpy(out).to(device)


def say(llm, rows: Tensor, wanted: Tensor, kv=None) -> tuple[Tensor, Tensor]:
    """Rows (q, n, width) through the language model: mean loss of the tokens in wanted (q, n), IGNORED where any will do, and which answers are right whole, (q,) bool."""
    out, counted = llm(rows, kv)[0], wanted != IGNORED
    logits = llm.logits(out[counted]).float()
    good = torch.ones_like(wanted, dtype=torch.bool)
    good[counted] = logits.detach().argmax(-1) == wanted[counted]
    return F.cross_entropy(logits, wanted[counted]), good.all(dim=1)


def shares(right: list[bool], answers: list[str]) -> dict[str, float]:
    """exact: share of the answers with a text that are right; refused: of the others."""
    right, text = np.array(right, bool), np.array([answer != NOT_SEEN for answer in answers])
    return {"exact": float(right[text].mean()) if text.any() else float("nan"), "refused": float(right[~text].mean()) if (~text).any() else float("nan")}


def detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: loss.detach() for name, loss in losses.items()}


def template_ids(chat) -> tuple[list[int], list[int], list[int]]:
    """Ids before the frame, between question and answer, and behind the answer."""
    before, after = chat.template.before, chat.template.after
    return chat._encode(before), chat._encode(after), chat._encode(chat.template.answer_end)
