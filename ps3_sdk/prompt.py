"""A prompt's text, cleaned and cut into token ids exactly as the checkpoint's own tokenizer does it."""
from __future__ import annotations

import html
import string
from dataclasses import dataclass

import numpy as np

from .errors import BundleError, InputError, RuntimeMissingError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Prompt:
    """What the model makes of one text.

    text: as given | vector: (width,) f32, what score() compares places with | pooled: (pooled_width,) f32, what `choices`
    are compared by, None for prompts given as a vector or as the prior | notes: what the user should know, e.g. a cut text |
    anywhere: patches are picked wherever it is answered to, even by models that look around the best place first: the prior asks for no one thing.
    """
    text: str
    vector: np.ndarray
    pooled: np.ndarray | None
    notes: tuple[str, ...] = ()
    anywhere: bool = False


def clean(text: str, how: str) -> str:
    """The text as the tokenizer wants it. how: "whitespace", "lower" or "canonicalize".

    All repair broken Unicode, unescape HTML twice and collapse white space; lower also lowers the case; canonicalize turns
    "_" into a space, drops ASCII punctuation and lowers the case. Source: PS3's tokenizer, after big_vision and OpenCLIP.
    """
    try:
        import ftfy     # here, because most programs ask with a handful of prompts and none at import time
    except ImportError as error:
        raise RuntimeMissingError("[encode_prompt] ftfy is not installed; prompts are cleaned by it. pip install ftfy") from error

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    if how == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    if how in ("lower", "canonicalize"):
        text = text.lower()
    return " ".join(text.split())


def tokenizers():
    """The package. Raises RuntimeMissingError: it is not installed, which pip does with this one."""
    try:
        import tokenizers
    except ImportError as error:
        raise RuntimeMissingError("[prompt] tokenizers is not installed; prompts are read by it. pip install tokenizers") from error
    return tokenizers


class PromptTokenizer:
    """Text -> (1, context_length) int64 ids, padded with pad_id; longer texts are cut, which is noted.

    tokenizer.json says on which side a text is padded and cut; its own start and end tokens stay, also around a cut text.
    """

    def __init__(self, bundle):
        self.spec, library = bundle.manifest["text"], tokenizers()
        length = self.spec["context_length"]
        try:
            tokenizer = library.Tokenizer.from_str(bytes(bundle.member(self.spec["tokenizer"])).decode())
            padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
            tokenizer.enable_truncation(length, direction=truncation.get("direction", "right"))
            tokenizer.enable_padding(direction=padding.get("direction", "right"), pad_id=self.spec["pad_id"], pad_token=padding.get("pad_token", "<pad>"),
                                     length=length)
        except Exception as error:      # the library raises plain Exception
            raise BundleError(f"[prompt] {bundle.path} holds a tokenizer that cannot be read: {error}. Export the bundle again.") from error
        self._tokenizer, self._keeps = tokenizer, "last" if truncation.get("direction", "right").lower() == "left" else "first"

    def __call__(self, text: str) -> tuple[np.ndarray, list[str]]:
        """Returns ids and notes. Raises InputError when `text` is no str."""
        if not isinstance(text, str):
            raise InputError(f"[encode_prompt] the prompt is {type(text).__name__}; it must be a str. Pass vectors as prompt_embedding=.")
        found = self._tokenizer.encode(clean(text, self.spec["clean"]))
        notes = []
        if found.overflowing:
            parts = [found, *found.overflowing]
            ends = sum(found.special_tokens_mask)
            total = ends + sum(sum(part.attention_mask) - ends for part in parts)
            notes.append(f"the prompt has {total} tokens; the model reads the {self._keeps} {len(found.ids)}")
        return np.array([found.ids], np.int64), notes
