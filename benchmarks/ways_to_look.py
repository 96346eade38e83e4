"""Ways to look at a frame before answering, all with one bundle's networks: PS3's selection, AnyRes tiles, S2. Used by resolution.py.

Each way gives rows for the language model, which reads them behind the frame's low-res rows; then question and answer are the same.

PS3      patches picked by a (27, 27) map: of the prompt (top-down), of the prior (bottom-up), or of random numbers; whole blocks, as an ask does.
         A model that is told how probable each row's place is reads that of the prompt's map, whatever picked the patches: picking alone differs.
AnyRes   the frame is cut into rows x cols tiles; each is encoded as if it were a frame, at 378 px, by itself; each tile's 27 x 27 tokens go
         through the projector as a frame's low-res tokens do. The whole frame at 378 px is the thumbnail and comes first.
         After LLaVA-NeXT's AnyRes; no separators between tiles, for which this model has no token.
S2       each scale is cut into 378 px tiles (756: 2 x 2, 1512: 4 x 4, 3780: 10 x 10), each encoded by itself with the position rows of the
         378 px grid; tokens are put together and averaged down to 27 x 27. Scales are stacked as further rows; the paper stacks them as
         channels, for which this projector has no weights. After "When Do We Not Need Larger Vision Models?", arXiv 2403.13043.

The model was trained for PS3's selection and never with tiles or averaged scales: AnyRes and S2 are what they give without training.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ps3_sdk import Frame
from ps3_sdk.ask import look_for
from ps3_sdk.encoding import block_side
from ps3_sdk.evaluate.recall import choose
from ps3_sdk.timing import Timing


@dataclass
class Seen:
    """blocks: [(name, rows (n, language width) f32)] that follow the low-res rows | patches: encoded beside the low-res pass |
    picked: of PS3's selection {scale px: ids}, None for tiles | read: what the language model has read already."""
    blocks: list
    patches: int
    picked: dict | None = None
    read: object = None


def top_down(session, look, prompt):
    """The map that an ask picks patches by and the prompt's own, (g, g) f32 both, and what the language model has read to make it."""
    _, query, read = look_for([look], prompt, None, Timing())
    prob = session.score(look, query)
    return session.aimed(prob, query.anywhere), prob, read


def bottom_up(session, look):
    return session.score(look, session.prior())


def at_random(session, look, seed: int):
    g = round(len(look.tokens) ** 0.5)
    return np.random.default_rng(seed).random((g, g), dtype=np.float32)


def closely(session, look, prob, budget, read=None, room: int | None = None, told=None) -> Seen:
    """Encode what a map picks, look by look; of more rows than `room`, those of the most probable patches are read. told: the map that rows are told of, default prob."""
    rounds = choose(session, prob, budget)
    keep = None if room is None else lambda rows: _first(session, prob, rounds, room if rows > room else None)
    return encoded(session, look, rounds, prob if told is None else told, read, keep)


def encoded(session, look, rounds, told, read=None, keep=None) -> Seen:
    """Encode rounds of picks {scale px: ids}; told: (g, g) f32, how probable each place is; keep(number of rows) -> {scale px: ids} to read, None for all."""
    scales_px = session.geometry["scales_px"][1:]
    parts = {px: [] for px in scales_px}
    for picks in rounds:
        high = session.encode_high(*session.gather(look.frame, picks), look.kv)
        for px, tokens in zip(scales_px, np.split(high, np.cumsum([len(picks[px]) for px in scales_px])[:-1])):
            parts[px].append(tokens)
    picked, tokens = {}, {}
    for px in scales_px:
        ids = np.concatenate([np.empty(0, np.int32), *(picks[px] for picks in rounds)])
        order = np.argsort(ids, kind="stable")
        picked[px] = ids[order]
        tokens[px] = np.concatenate([np.empty((0, session.geometry["width"]), np.float32), *parts[px]])[order]
    patches = sum(map(len, picked.values()))
    kept = keep(patches // block_side(session, "blocks") ** 2) if keep else None
    if kept is not None:
        tokens = {px: tokens[px][np.isin(picked[px], kept[px])] for px in scales_px}
    rows = session.language.high_rows(np.concatenate(list(tokens.values())), kept or picked, told)
    return Seen([(object(), rows)] if len(rows) else [], patches, picked, read)


def _first(session, prob, rounds, room):
    """Ids of the first `room` rows' worth of patches that an ask of that budget would pick out of what the rounds hold."""
    if room is None:
        return None
    scales = sum(bool(len(ids)) for ids in rounds[0].values())
    wanted = choose(session, prob, session.budget(tokens=room * block_side(session, "blocks") ** 2, scales=scales or None))
    return {px: np.sort(np.concatenate([picks[px] for picks in wanted])) for px in rounds[0]}


def window(session, look, box_px, up_to_px: int) -> tuple[list[dict[int, np.ndarray]], np.ndarray]:
    """All patches, of every high-res scale up to `up_to_px`, of the places of the (g, g) map that a box (x0, y0, x1, y1) in frame pixels touches; and a map that
    is certain of these places."""
    g, frame = round(len(look.tokens) ** 0.5), look.frame
    x0, y0, x1, y1 = np.array(box_px) * g / np.array([frame.width, frame.height] * 2)
    places = np.zeros((g, g), bool)
    places[int(max(y0, 0)):int(np.ceil(y1)), int(max(x0, 0)):int(np.ceil(x1))] = True
    picks = {}
    for px in session.geometry["scales_px"][1:]:
        n = px // session.patch_px
        index = np.arange(n) * g // n
        picks[px] = np.flatnonzero(places[np.ix_(index, index)]).astype(np.int32) if px <= up_to_px else np.empty(0, np.int32)
    return [picks], np.where(places, np.float32(0.99), np.float32(0.01))


def any_res(session, look, pixels: np.ndarray, rows: int, cols: int) -> Seen:
    """pixels (h, w, 3) uint8 as rows x cols tiles, each encoded as a frame."""
    h, w = pixels.shape[:2]
    edges_y, edges_x = np.linspace(0, h, rows + 1).round().astype(int), np.linspace(0, w, cols + 1).round().astype(int)
    blocks = []
    for y in range(rows):
        for x in range(cols):
            tokens = session.encode_low(Frame.of(pixels[edges_y[y]:edges_y[y + 1], edges_x[x]:edges_x[x + 1]]))[0]
            blocks.append((object(), session.language.low_rows(tokens)))
    return Seen(blocks, rows * cols * len(look.tokens))


def s2(session, look, scales: int) -> Seen:
    """The first `scales` high-res scales, tile by tile, each averaged down to the low-res grid."""
    g, geometry, blocks, patches = round(len(look.tokens) ** 0.5), session.geometry, [], 0
    low_px = geometry["scales_px"][0]
    position = session.gather(look.frame, {low_px: np.arange(g * g, dtype=np.int32)})[1]
    head_width = geometry["width"] // geometry["heads"]
    nothing = {f"past_{kind}_{i}": np.empty((1, geometry["heads"], 0, head_width), np.float32) for kind in ("key", "value") for i in range(geometry["depth"])}
    for px in geometry["scales_px"][1:scales + 1]:
        n = px // low_px                                        # tiles per side
        ids = np.arange((n * g) ** 2, dtype=np.int32).reshape(n, g, n, g).transpose(0, 2, 1, 3).reshape(n * n, g * g)
        tiles = np.stack([session.encode_high(session.gather(look.frame, {px: np.ascontiguousarray(tile)})[0], position, nothing) for tile in ids])
        whole = tiles.reshape(n, n, g, g, -1).transpose(0, 2, 1, 3, 4)                      # row of tiles, row inside, column of tiles, column inside
        pooled = whole.reshape(g, n, g, n, -1).mean(axis=(1, 3)).reshape(g * g, -1)
        blocks.append((object(), session.language.low_rows(pooled)))
        patches += len(ids) * g * g
    return Seen(blocks, patches)


def asked(look, prompt: str, **budget) -> tuple[str, int, Seen]:
    """As an ask does it: the answer, the rows that were read in all glances, and what was looked at. budget: of Session.ask."""
    answer, language = look.ask(prompt, **budget), look.session.language
    patches = sum(map(len, answer.picked.values()))
    rows = len(language.ids([look, prompt])) - 1 + len(look.rows) + patches // language.r ** 2 + len(language.spec["newline_ids"])
    return answer.text, rows, Seen([], patches, answer.picked)


def say(session, look, prompt: str, seen: Seen, max_tokens: int) -> tuple[str, int]:
    """The answer to a prompt after low-res rows and those of `seen`, greedy; and the number of rows that were read for it."""
    language = session.language
    low = (look.name, look.rows)
    rows = language.assemble(language.ids([look, prompt]), [[low, *(seen.blocks or [(object(), look.rows[:1])])]])
    stream = language.stream()
    text = "".join(stream.push(token.id) for token in language.answer(language.read(rows, seen.read), max_tokens=max_tokens)) + stream.finish()
    return text.strip(), len(rows.names)


def room_for(session, look, prompt: str, max_tokens: int) -> int:
    """High-res rows that the language model's context holds beside everything else."""
    language = session.language
    return language.spec["context_length"] - len(look.rows) - len(language.ids([look, prompt])) - len(language.spec["newline_ids"]) - max_tokens
