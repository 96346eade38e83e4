"""TextStream: token ids in, text out as soon as it is certain."""
from __future__ import annotations

from .errors import InputError

_BROKEN = "\ufffd"      # what a tokenizer makes of bytes that are no character yet


class TextStream:
    """Turns ids into text piece by piece; the pieces joined are the text of all ids.

    A token may be part of a character, of an emoji's four bytes for example: its text is held back until the character is whole.
    tokenizer: a tokenizers.Tokenizer | skip_special: leave out tokens such as <|im_end|>.
    """

    def __init__(self, tokenizer, skip_special: bool = True):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._emitted: list[int] = []       # the ids of the piece before: many tokenizers spell a token by what precedes it
        self._held: list[int] = []
        self.text = ""

    def push(self, token_id: int) -> str:
        """Text that this token completes, often empty in the middle of a character."""
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise InputError(f"[decode] a token id is {token_id!r}; a whole number of at least 0 is needed.")
        self._held.append(token_id)
        return self._emit(final=False)

    def finish(self) -> str:
        """What is still held back, as far as it can be read; call it once, after the last token."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        before, all_text = self._decode(self._emitted), self._decode(self._emitted + self._held)
        if not final and all_text.endswith(_BROKEN):
            return ""
        piece = all_text[len(before):]
        if piece:
            self._emitted, self._held = self._held, []
            self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special) if ids else ""
