"""How much regions of a frame are what texts say: PS3 as an embedding model of places.

PS3 was trained on captions of boxes: the box is certain to be picked, the picked patches that touch it are pooled by the trunk's
attention pool, and the pooled feature is compared with the caption's. The same is done here.
Source: PS3, arXiv 2503.19903, localised language-image pre-training; PS3 @ f7e3fd4, forward_high_res with pool_gt_token_only.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from .answer import Region, Timing, regions_from_map
from .encoding import Aim, Encoding, look_closely
from .errors import InputError
from .probability import enlarged, touched


@dataclass(frozen=True, eq=False)
class Similarity:
    """Regions beside texts.

    regions: in the order of the boxes given, else best first | texts: as given | cosine: (regions, texts) f32 in [-1, 1] |
    prob: (regions, texts) f32 in (0, 1), what the bundle's contrast makes of a cosine, None where it has none |
    features: (regions, pooled_width) f32, length 1 | timing: ms per stage | notes: what the user should know.
    """
    regions: list[Region]
    texts: list[str]
    cosine: np.ndarray
    prob: np.ndarray | None
    features: np.ndarray
    timing: Timing
    notes: tuple[str, ...] = ()

    def best(self) -> list[str]:
        """The most similar text of each region; of equal ones the first given."""
        return [self.texts[i] for i in self.cosine.argmax(axis=1)]


def compare_regions(look, texts, prompt: str = "", *, boxes=None, tokens=None, looks=None, scales=None, batch: int = 1) -> Similarity:
    """See Look.similarity."""
    session = look.session
    session._open()
    texts = [texts] if isinstance(texts, str) else texts
    wanted = session.encode_text(texts)
    size, timing = (look.frame.height, look.frame.width), Timing()
    budget, query = session.budget(tokens, looks, scales), session.encode_prompt(prompt, None, timing)
    if boxes is None:
        encodings = look_closely([Aim(look, query)], budget, [timing], batch=batch)
        regions = regions_from_map(encodings[0].prob, encodings[0].picked, size, patch_px=session.patch_px)
        encodings = encodings * len(regions)
    else:
        boxes, timings = _checked(boxes, size), []
        timings = [Timing() for _ in boxes]
        encodings = look_closely([Aim(look, query, box) for box in boxes], budget, timings, batch=batch)
        plain = session.score(look, query)
        regions = [_region(box, encoding, plain, size) for box, encoding in zip(boxes, encodings)]
        for each in timings:
            timing += each
    with timing.stage("decode"):
        features = np.stack([session.pool(_inside(encoding, region.box_px, size)) for encoding, region in zip(encodings, regions)]) \
            if regions else np.empty((0, wanted.shape[1]), np.float32)
        cosine = features @ wanted.T
        contrast = session.bundle.manifest["contrast"]
        prob = None if contrast is None else 1 / (1 + np.exp(-(np.float32(contrast["scale"]) * cosine + np.float32(contrast["bias"]))))
    notes = (encodings[0].notes if encodings else budget.notes + query.notes) + session.notes
    return Similarity(regions, list(texts), cosine, prob, features, look.timing + timing, notes)


def _checked(boxes, size: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    height, width = size
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != 4 or not len(array):
        raise InputError(f"[select] boxes is {str(boxes)[:80]}; a list of (x0, y0, x1, y1) in frame pixels is needed, at least one.")
    for i, (x0, y0, x1, y1) in enumerate(array):
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(f"[select] boxes[{i}] is ({x0:g}, {y0:g}, {x1:g}, {y1:g}); x0 < x1 and y0 < y1 inside the frame of {width} x {height} pixels are needed.")
    return [tuple(box) for box in array.tolist()]


def _inside(encoding: Encoding, box_px: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """(n, width): tokens of the picked patches that touch the box; as in training all picked ones where none does, the low-res ones where none was picked."""
    mask = np.concatenate([touched(box_px, size, px // encoding.patch_px).reshape(-1)[ids] for px, ids in encoding.picked.items()])
    high = encoding.high_tokens if len(encoding.high_tokens) else encoding.tokens
    return high[mask] if mask.any() else high


def _region(box, encoding: Encoding, prob: np.ndarray, size: tuple[int, int]) -> Region:
    """A box that was given, as a region: the best probability inside before it was made certain, what was picked inside."""
    inside = {px: int(touched(box, size, px // encoding.patch_px).reshape(-1)[ids].sum()) for px, ids in encoding.picked.items()}
    n = max(encoding.picked) // encoding.patch_px
    return Region(tuple(box), float(enlarged(prob, n)[touched(box, size, n)].max()), max([px for px, num in inside.items() if num], default=0), sum(inside.values()))
