"""The losses of one scene, the whole way of an answer: low-res pass, where to look, windows read, words said.

What a frame costs once is paid once: the low-res rows are one prefix for every question's two passes through the language model
(the prompt pass, whose last state says where to look, and the answer pass, which reads high-res rows as well).
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .examples import LOW_GRID, WINDOW, Example
from .reading import GRID, Reader, slot_loss

IGNORED = -100


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

    def forward(self, example: Example, rng: np.random.Generator, distractors: int = 2) -> tuple[Tensor, dict[str, float]]:
        model, vision = self.model, self.model.vision.vision_model
        put = lambda t: t.to(self.device)
        seen, score, low_rows = self.see_low(example)
        windows, ids, w = put(example.windows), put(example.window_ids), len(example.windows)
        past = [(k.expand(w, -1, -1, -1), v.expand(w, -1, -1, -1)) for k, v in seen.kv]
        high = self.see(windows, self.positions(3, ids), past).hidden[-1]
        labels = put(example.labels)
        slots = self.reader.head(self.reader.norm(high)).unflatten(-1, (2, -1)).float()
        losses = {"slot": slot_loss(slots, labels)}

        high_rows, blocks = self.rows(high, ids)
        sequences = [self.sequence(prompt, answer, window, blocks, rng, distractors) for prompt, answer, window, _ in example.asked]
        asked, answer_loss, right = self.read(low_rows, high_rows, sequences, [model.chat._encode("\n" + prompt) for prompt, _ in example.sought])
        truth = put(torch.stack([p for *_, p in example.asked] + [p for _, p in example.sought]).float())
        losses["answer"] = answer_loss
        losses["where"], measures = self.where(score, model.projector.prompt(asked), truth)
        prior = vision.prior_prompt[None]
        losses["prior"], _ = self.where(score, prior, put(example.signs.float())[None])
        total = losses["slot"] + losses["answer"] + losses["where"] + 0.3 * losses["prior"]
        shown = labels > 0
        with torch.no_grad():
            hits = float((slots.argmax(-1) == labels)[shown].float().mean()) if shown.any() else float("nan")
        answerable = np.array([window is not None for _, _, window, _ in example.asked])
        right = np.array(right)
        return total, {**{k: float(v.detach()) for k, v in losses.items()}, **measures, "slot_right": hits,
                       "exact": float(right[answerable].mean()) if answerable.any() else float("nan"),
                       "refused": float(right[~answerable].mean()) if (~answerable).any() else float("nan")}

    def rows(self, high: Tensor, ids: Tensor) -> tuple[Tensor, np.ndarray]:
        """Windows' tokens (w, 108, width) -> rows of whole blocks (w, 27, language width), and the block ids (w, 27)."""
        w, (down, across) = len(high), WINDOW
        tiles = high.view(w, down // 2, 2, across // 2, 2, -1).transpose(2, 3).reshape(w, (down // 2) * (across // 2), -1)
        first = ids.view(w, down // 2, 2, across // 2, 2)[:, :, 0, :, 0].reshape(w, -1)
        blocks = (first // GRID // 2) * (GRID // 2) + first % GRID // 2
        rows = self.model.projector(tiles.flatten(0, 1), 3, blocks.flatten(), GRID // 2).unflatten(0, (w, -1))
        return rows, blocks.cpu().numpy()

    def sequence(self, prompt: str, answer: str, window: int | None, blocks: np.ndarray, rng, distractors: int):
        """Token ids of question and answer, and which high-res rows (flat indices, in the order of their blocks) the answer pass reads."""
        chat = self.model.chat
        others = [i for i in rng.permutation(len(blocks)) if i != window][:int(rng.integers(0, distractors + 1)) if window is not None else distractors]
        picked, used = [], set()
        for i in ([window] if window is not None else []) + others:
            if used.isdisjoint(blocks[i]):
                used.update(blocks[i])
                picked += [(b, i * blocks.shape[1] + n) for n, b in enumerate(blocks[i])]
        picked = [row for _, row in sorted(picked)]
        question = chat._encode("\n" + prompt)
        return question, chat._encode(answer), picked

    def read(self, low_rows: Tensor, high_rows: Tensor, sequences, sought: list[list[int]] = ()) -> tuple[Tensor, Tensor, list[bool]]:
        """Prompt pass of all questions and those only sought, answer pass of the questions: last states (q, width), the answers' loss, which are right whole."""
        _, kv = self.read_prefix(low_rows)
        asked = self.read_prompts(kv, [question for question, _, _ in sequences] + list(sought))
        flat = high_rows.flatten(0, -2)
        loss, right = self.read_answers(kv, [flat[picked] for _, _, picked in sequences], [question for question, _, _ in sequences], [answer for _, answer, _ in sequences])
        return asked, loss, right

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

    def read_answers(self, kv, high_rows: list[Tensor], questions: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, list[bool]]:
        """Answer pass: mean loss of the answers' tokens, and which answers are right whole."""
        q, rows, targets = len(questions), [], []
        shared = [(k.expand(q, -1, -1, -1), v.expand(q, -1, -1, -1)) for k, v in kv]
        for high, question, answer in zip(high_rows, questions, answers):
            said = question + self.tail_ids + answer + self.end_ids
            rows.append(torch.cat([high, self.embed(said[:-1])]))
            wanted = [IGNORED] * (len(high) + len(question) + len(self.tail_ids) - 1) + answer + self.end_ids
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
            loss = loss + 0.3 * F.cross_entropy(logit[there] / 5 * self.log_temperature.exp(), share)
            with torch.no_grad():
                for k in (4, 9):
                    best = logit[there].topk(k, dim=1).indices
                    measures[f"recall{k}"] = float((truth[there].gather(1, best).sum(dim=1) / truth[there].sum(dim=1)).mean())
        return loss, measures


def template_ids(chat) -> tuple[list[int], list[int], list[int]]:
    """Ids before the frame, between question and answer, and behind the answer."""
    before, after = chat.template.before, chat.template.after
    return chat._encode(before), chat._encode(after), chat._encode(chat.template.answer_end)
