"""A prompt's text, cleaned and cut into token ids exactly as the checkpoint's own tokenizer does it."""
from __future__ import annotations

import html
import string
from dataclasses import dataclass

import numpy as np

from .errors import BundleError, InputError

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Prompt:
    """What the model makes of one text.

    text: as given | vector: (width,) f32, what score() compares places with | pooled: (pooled_width,) f32, what `choices`
    are compared by, None for prompts given as a vector or as the prior | notes: what the user should know, e.g. a cut text.
    """
    text: str
    vector: np.ndarray
    pooled: np.ndarray | None
    notes: tuple[str, ...] = ()


def clean(text: str, how: str) -> str:
    """The text as the tokenizer wants it. how: "whitespace", "lower" or "canonicalize".

    All repair broken Unicode, unescape HTML twice and collapse white space; lower also lowers the case; canonicalize turns
    "_" into a space, drops ASCII punctuation and lowers the case. Source: PS3's tokenizer, after big_vision and OpenCLIP.
    """
    import ftfy     # here, because most programs ask with a handful of prompts and none at import time

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    if how == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    if how in ("lower", "canonicalize"):
        text = text.lower()
    return " ".join(text.split())


class PromptTokenizer:
    """Text -> (1, context_length) int64 ids, padded with pad_id; longer texts are cut, which is noted."""

    def __init__(self, bundle):
        from tokenizers import Tokenizer

        self.spec = bundle.manifest["text"]
        try:
            self._tokenizer = Tokenizer.from_str(bytes(bundle.member(self.spec["tokenizer"])).decode())
        except Exception as error:      # the library raises plain Exception
            raise BundleError(f"[prompt] {bundle.path} holds a tokenizer that cannot be read: {error}. Export the bundle again.") from error
        length = self.spec["context_length"]
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._end = self._ending()
        self._length = length

    def _ending(self) -> list[int]:
        """The ids that the tokenizer's own template appends to any text (T5-like tokenizers end with </s>)."""
        bare, full = self._tokenizer.encode("a", add_special_tokens=False).ids, self._tokenizer.encode("a").ids
        return full[len(bare):] if full[:len(bare)] == bare else []

    def __call__(self, text: str) -> tuple[np.ndarray, list[str]]:
        """Returns ids and notes. Raises InputError when `text` is no str."""
        if not isinstance(text, str):
            raise InputError(f"[encode_prompt] the prompt is {type(text).__name__}; it must be a str. Pass vectors as prompt_embedding=.")
        ids, notes, length = self._tokenizer.encode(clean(text, self.spec["clean"])).ids, [], self._length
        if len(ids) > length:
            notes.append(f"the prompt has {len(ids)} tokens; the model reads the first {length}")
            ids = ids[:length - len(self._end)] + self._end
        return np.array([ids + [self.spec["pad_id"]] * (length - len(ids))], np.int64), notes
