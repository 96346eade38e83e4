"""VILA-HD in PyTorch: a frame is looked at, a question says where to look closely, the language model answers.

    model = VilaHd.from_checkpoint(folder)
    seen = model.look(frame)                            # once a frame: the low-res pass and its rows
    model.generate([seen, "Where does the exit lead to?"]).text

The steps of an answer, each of which can be called alone:
    ids -> ask (the question's vector) -> select (where) -> encode (high-res rows) -> embed (all rows) -> decode (new ids)
"""
from __future__ import annotations

from pathlib import Path
from typing import Iterator, Sequence

import torch
from torch import Tensor, nn

from ps3_sdk.blocks import plan_blocks
from ps3_sdk.errors import InputError

from ..config import Ps3Config
from ..geometry import grid_size
from ..model import Ps3Model
from ..scoring import around, spread
from ..selection import Look, pick_looks, plan_looks
from .blocks import complete_blocks, select_blocks
from .chat import Chat
from .config import UNSEEN, LookOptions, VilaConfig
from .llm import Decoder
from .outputs import Asked, Generated, High, Picked, Seen
from .pixels import squash
from .projector import Projector
from .sequence import Prefilled, Rows, assemble, prefill


class VilaHd(nn.Module):
    """vision, projector and llm under the checkpoints' names; f32, eval mode, no gradients through the methods below."""

    def __init__(self, config: VilaConfig, chat: Chat):
        super().__init__()
        self.config, self.chat = config, chat
        self.vision = Ps3Model(Ps3Config("ps3_vision_model", config.vision, None))
        self.projector = Projector(config)
        self.llm = Decoder(config.llm)

    @classmethod
    def from_checkpoint(cls, path: str | Path, revision: str | None = None) -> "VilaHd":
        """The model of a checkpoint folder or Hugging Face id.

        Raises ExportError: a folder or file is missing or broken, or its keys are not the model's; the message names every one.
        """
        from ...weights import load_into, locate
        model, parts = cls.outline(locate(path, revision)[0])
        for part, checkpoint, besides in parts.values():
            load_into(part, checkpoint, besides)
        model.llm.cut_vocabulary(model.chat.size)
        return model

    @classmethod
    def outline(cls, folder: Path) -> tuple["VilaHd", dict[str, tuple]]:
        """The model of a checkpoint folder without weights (on torch's meta device), and per sub-folder's name its module, its Checkpoint
        and the keys that may be there besides the module's. For models that are to be streamed."""
        from ...weights import Checkpoint
        config = VilaConfig.read(folder)
        chat = Chat(config.folders["llm"], config.chat_template, config.lower_case)
        with torch.device("meta"):
            model = cls(config, chat)
        opened = {name: Checkpoint.open(part) for name, part in config.folders.items()}
        modules = {"vision_tower": model.vision, "mm_projector": model.projector, "llm": model.llm}
        return model.eval(), {name: (module, opened[name], _not_needed(name, config, opened[name])) for name, module in modules.items()}

    # -- the frame ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, frame, original_size: tuple[int, int] | None = None) -> Seen:
        """See a frame whole.

        Args:
            frame: a PIL picture, or (height, width, 3) uint8 RGB; it is squashed to the model's square.
            original_size: (rows, cols) of the camera's picture; with ps3_dynamic_aspect_ratio in the checkpoint, small ones are
                not looked at in the finest scale. Default: all scales, as on the public command line.
        """
        pixels = squash(frame, self.config.vision.scales_px[-1], self.config.mean, self.config.std)
        if original_size is not None and (len(original_size) != 2 or min(original_size) < 1):
            raise InputError(f"[encode_low] original_size is {original_size}; (rows, cols) in pixels is needed.")
        low = self.vision.encode_low(pixels)
        return Seen(pixels, low, self.projector.low(low.hidden[self.config.token_layer][0]), original_size)

    # -- the question ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def ask(self, ids: Sequence[int], seen: Sequence[Seen], mode: str | None = None, known: Prefilled | None = None) -> Asked:
        """What the question looks for, one vector for all its frames: the language model reads the low-res rows and the question.

        mode: after_prompt or after_image (no pass, the tower's prior), default the checkpoint's.
        Raises InputError: after_prompt with a checkpoint that was trained without its head.
        """
        if (mode or self.config.looks.mode) == "after_image" or not seen:
            return Asked(None)
        if self.config.prompt_head is None:
            raise InputError("[encode_prompt] this checkpoint has no top-down prompt head, it was trained with after_image. Pass mode=\"after_image\".")
        rows = assemble(self.llm, ids, self.chat.image_id, self.chat.newline_ids, [[(s, s.rows)] for s in seen])
        position = self.chat.prompt_end(ids)
        row = (*rows.starts, len(rows.names))[position + 1] - 1
        known = prefill(self.llm, rows.upto(row + 1), known)
        return Asked(self.projector.prompt(known.hidden[None]), known.hidden, position, row, known)

    @torch.no_grad()
    def select(self, seen: Seen, vector: Tensor | None = None, options: LookOptions | None = None, given: Tensor | None = None) -> Picked:
        """Where to look closely. vector: (1, vision width), None for the prior; given: (1, height, width), see scoring.spread.

        Budgets that are too small for one patch, and no looks at all, give no look.
        """
        options = options or self.config.looks
        sizes = self.vision.sizes(seen.pixels)
        per_look = options.per_look or self.config.vision.per_look
        if len(per_look) != len(sizes):
            raise InputError(f"[select] per_look is {per_look}; this model has {len(sizes)} high-res scales, a count for each is needed.")
        prob = self.vision.score(seen.low, vector)
        maps = spread(prob, sizes, given, options.smooth)
        wanted = maps if options.around is None or vector is None or given is not None or options.smooth else spread(around(prob, options.around), sizes)
        budget = dict(num_looks=options.num_looks) if options.num_tokens is None or options.num_looks == 0 else dict(num_tokens=options.num_tokens)
        capacity = [rows * cols for rows, cols in sizes]
        plan = plan_looks(capacity, per_look, first_scales=self._first_scales(seen), **budget)
        if options.rule == "patches":
            return Picked([m[0] for m in maps], pick_looks(wanted, [plan]))
        r, taken = self.config.downsample, [torch.zeros(n, dtype=torch.bool, device=seen.pixels.device) for n in capacity]
        plan = plan_blocks(plan, capacity, r * r)
        return Picked([m[0] for m in maps], [[[select_blocks(m[0], n, t, r)] for m, n, t in zip(wanted, counts, taken)] for counts in plan])

    def _first_scales(self, seen: Seen) -> int | None:
        if not self.config.dynamic_sizes or seen.original_size is None:
            return None
        scales, num_high = self.config.vision.scales_px, len(self.config.vision.scales_px) - 1
        small = max(seen.original_size) <= (scales[-2] + scales[-1]) / 2 and scales[-1] > 2000
        return max(num_high - 1, 1) if small else num_high

    @torch.no_grad()
    def encode(self, seen: Seen, looks: list[Look], probs: list[Tensor] | None = None) -> High:
        """See the picked patches closely, look by look, and make rows of the complete blocks. probs: of Picked, for models whose rows are told them."""
        vision, layer = self.config.vision, self.config.token_layer % self.config.vision.trunk.depth
        kv = seen.low.kv
        parts = [self.vision.vision_model.trunk(*self.vision.gather(seen.pixels, look), kv, layer + 1).hidden[layer][0] for look in looks]
        width, device = vision.width, seen.pixels.device
        tokens, ids, blocks, rows = [], [], [], []
        starts = [[sum(len(scale[0]) for scale in look[:k]) for k in range(len(look))] for look in looks]
        for k in range(len(vision.scales_px) - 1):
            grid = grid_size(vision, k + 1, *seen.pixels.shape[-2:])[0]
            empty = [torch.zeros(0, dtype=torch.int64, device=device)]
            picked = torch.cat(empty + [look[k][0] for look in looks])
            found = torch.cat([seen.pixels.new_zeros(0, width)] + [part[at[k]:at[k] + len(look[k][0])] for part, at, look in zip(parts, starts, looks)])
            order = picked.argsort()
            ids.append(picked[order])
            tokens.append(found[order])
            complete, cells = complete_blocks(ids[-1], grid, self.config.downsample)
            blocks.append(complete)
            rows.append(self.projector(tokens[-1][cells].flatten(1), k + 1, complete, grid // self.config.downsample))
            if probs is not None:
                rows[-1] = self.projector.told(rows[-1], probs[k].flatten()[ids[-1][cells]].mean(dim=1))
        joined = torch.cat(rows)
        return High(torch.cat(tokens), ids, blocks, joined if len(joined) else seen.rows[:1])

    # -- the answer -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, ids: Sequence[int], seen: Sequence[Seen], high: Sequence[High]) -> Rows:
        """All rows of the prompt: in the place of each frame its low-res rows, its high-res rows, a line break."""
        if len(seen) != len(high):
            raise InputError(f"[encode_prompt] {len(seen)} frames are seen and {len(high)} looked at closely; the numbers must be equal.")
        return assemble(self.llm, ids, self.chat.image_id, self.chat.newline_ids, [[(s, s.rows), (h, h.rows)] for s, h in zip(seen, high)])

    @torch.no_grad()
    def decode(self, known: Prefilled, unseen: float = 0.0) -> Iterator[tuple[int, Tensor]]:
        """New ids, the most probable one each time (ties: the lower id), with their logits (vocabulary,); without end. unseen: see generate()."""
        hidden, kv, seldom = known.hidden, known.kv, self.unseen_id if unseen else None
        while True:
            logits = self.llm.logits(hidden)
            new = int(logits.argmax())
            if new == seldom and float(logits.softmax(dim=0)[new]) < unseen:
                new = int(logits.index_fill(0, logits.argmax(), -torch.inf).argmax())
            seldom = None       # it is how an answer begins
            yield new, logits
            out, kv = self.llm(self.llm.embed(torch.tensor([new], device=hidden.device))[None], kv)
            hidden = out[0, -1]

    @property
    def unseen_id(self) -> int | None:
        """The token that the answer not_seen begins with, None where there is no such answer."""
        return self.chat._encode(self.config.not_seen)[0] if self.config.not_seen else None

    @torch.no_grad()
    def generate(self, parts: Sequence[object], options: LookOptions | None = None, *, max_new_tokens: int | None = None,
                 known: Prefilled | None = None, unseen: float | None = None) -> Generated:
        """Answer one user turn greedily.

        Args:
            parts: texts and frames in order; a frame is a Seen, or whatever look() takes. No frame at all is fine.
            options: default config.looks. max_new_tokens: default as many as the context holds.
            known: of an earlier answer.
            unseen: the answer not_seen is said from this probability on alone, else what is most probable besides; default the checkpoint's own, 0 where it has none.
        Raises InputError: a prompt without room for an answer in the model's context.
        """
        options = options or self.config.looks
        message = self.chat.message(parts)
        if max_new_tokens is not None and (isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0):
            raise InputError(f"[decode] max_new_tokens is {max_new_tokens!r}; a whole number of at least 0 is needed.")
        ids, seen = self.chat.ids(message), [part if isinstance(part, Seen) else self.look(part) for part in parts if not isinstance(part, str)]
        asked = Asked(None) if options.num_looks == 0 else self.ask(ids, seen, options.mode, known)
        picked = [self.select(s, asked.vector, options) for s in seen]
        high = [self.encode(s, p.looks, p.probs) for s, p in zip(seen, picked)]
        rows = self.embed(ids, seen, high)
        limit = self.config.max_rows_of(options)
        room = limit - len(rows.names)
        if room < 1:
            raise InputError(f"[decode] the prompt has {len(rows.names)} rows; the model's context holds {limit} and an answer needs room. "
                             "Look less closely, pass fewer frames or shorten the text.")
        read = prefill(self.llm, rows, asked.known or known)
        new, stopped, logprob, tokens = [], False, 0.0, self.decode(read, (self.config.confidence or {}).get(UNSEEN, 0.0) if unseen is None else unseen)
        for token, logits in (next(tokens) for _ in range(room if max_new_tokens is None else min(room, max_new_tokens))):
            logprob += float(logits.log_softmax(dim=0)[token])
            if token in self.chat.stop_ids:
                stopped = True
                break
            new.append(token)
        return Generated(self.chat.answer(new), new, stopped, logprob, len(rows.names), picked, high, read)


def _not_needed(name: str, config: VilaConfig, checkpoint) -> dict[str, tuple[int, ...]]:
    """Keys that a part's folder may hold beyond the model's: of a full PS3 model the text side, of tied heads their copy."""
    from ...weights import OPTIONAL
    if name == "llm":
        return {"lm_head.weight": (config.llm.vocab_size, config.llm.width)} if config.llm.tied else {}
    text_side = lambda key: name == "vision_tower" and (key.startswith("text_model.") or key in OPTIONAL)
    return {key: checkpoint.shape(key) for key in checkpoint.keys() if text_side(key)}
