"""The two small files beside config.json: how a frame and how a prompt are prepared. Imports no torch."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .fields import Fields

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PreprocessorConfig:
    """preprocessor_config.json: a frame is squashed to image_px x image_px (bicubic), divided by 255, then (x - mean) / std per RGB channel."""
    image_px: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, folder: str | Path, base_px: int | None = None) -> "PreprocessorConfig":
        """mean and std that are absent or null are CLIP's, as in the reference; one number serves all channels.

        base_px: the model's largest scale, checked against the file. Raises ExportError: no file, another resize, another size.
        """
        f = Fields.read(Path(folder) / "preprocessor_config.json")
        f.choice("resize_mode", "squash", ("squash",))
        if f.values.get("interpolation") not in (None, "bicubic", "random"):     # random: training's word, bicubic when asked
            raise f.refuse("interpolation", "bicubic is needed", "Use the file published with the model.")
        size = f.values.get("image_size")
        sizes = set(size) if isinstance(size, list) else {size}
        if len(sizes) != 1 or (base_px is not None and sizes - {None, base_px}):
            raise f.refuse("image_size", f"the model's largest scale, {base_px or 'a square size'}, is needed", "Use the file published with the model.")
        return cls(sizes.pop(), _three(f, "mean", CLIP_MEAN), _three(f, "std", CLIP_STD))


@dataclass(frozen=True)
class TokenizerConfig:
    """tokenizer_config.json: a Hugging Face tokenizer by name, ids padded and cut to context_length, text cleaned first.

    clean: whitespace, lower or canonicalize | strip_sep_token: the separator's id becomes 0 | language: source language, if any.
    """
    tokenizer_name: str
    context_length: int
    clean: str
    strip_sep_token: bool
    language: str | None

    @classmethod
    def read(cls, folder: str | Path) -> "TokenizerConfig":
        f = Fields.read(Path(folder) / "tokenizer_config.json")
        name = f.text("tokenizer_name", None)
        if not name:
            raise f.refuse("tokenizer_name", "the name of a Hugging Face tokenizer is needed", "Use the file published with the model.")
        return cls(name, f.count("context_length", 77), f.choice("clean", "whitespace", ("whitespace", "lower", "canonicalize")),
                   f.flag("strip_sep_token", False), f.text("language", None))


def _three(f: Fields, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    value = f.values.get(key) or default
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    usable = len(values) == 3 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not usable or (key == "std" and min(values) <= 0):
        raise f.refuse(key, "three numbers are needed, above 0 for std", "Use the file published with the model.")
    return tuple(map(float, values))
