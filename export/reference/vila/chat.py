"""encode_prompt of VILA-HD: text and frames -> the ids of one user turn, and what follows from the chat template.

A frame is one id, <image>, wherever it stands among the text. Imports no torch.
Source: NVlabs/VILA @ b760c34, extract_media, tokenize_conversation, get_user_prompt_end_id_pos.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from ps3_sdk.errors import ExportError, InputError

from .tokenizer import IMAGE, SENTINEL, VIDEO, read_tokenizer, token_text

SYSTEM = "You are a helpful assistant"


@dataclass(frozen=True)
class Template:
    """A chat template for one user turn: before + message + after, and what ends an answer. trim: the message is stripped."""
    before: str
    after: str
    answer_end: str
    trim: bool = False

    @property
    def prompt_end(self) -> str:
        """What marks the end of the user's text."""
        return self.after.strip()


def qwen2(system: str = SYSTEM) -> Template:
    return Template(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")


def mistral(begin: str, end: str) -> Template:
    return Template(f"{begin}[INST] ", " [/INST]", end, trim=True)


_ASK = r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_TURN = "'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'"
_KNOWN = {      # to the letter; SYSTEM stands for the default system text
    "VILA's qwen2": r"{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}"
                    "{% for message in messages if message['content'] is not none %}{{ " + _TURN + " }}{% endfor %}" + _ASK,
    "Qwen2's own": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                   r"{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}{{" + _TURN + "}}{% endfor %}" + _ASK,
}
SUPPORTED = ', '.join(_KNOWN) + ", and chat_template qwen2 or mistral in the top-level config.json"


class Chat:
    """Token ids of questions about frames, and text of answers.

    image_id: the id that stands for a frame | newline_ids: what follows every frame's rows | stop_ids: what ends an answer |
    prompt_end_ids: what the template puts behind the user's text | size: ids that exist.
    """

    def __init__(self, folder: str | Path, template: str | None = None, lower_case: bool = False):
        """folder: a checkpoint's llm/. template: qwen2 or mistral; default the tokenizer's own, if it is known. lower_case: the user's text is read so.

        Raises ExportError: no tokenizer, an unknown chat template, a template of tokens that the tokenizer does not have.
        """
        self._tokenizer, settings = read_tokenizer(Path(folder))
        self._lower_case = lower_case
        begin, end = token_text(settings, "bos_token"), token_text(settings, "eos_token")
        if end is None:
            raise settings.refuse("eos_token", "the token that ends an answer is needed", "Use the file published with the model.")
        self.template = _template(settings, template, begin or "", end)
        self.size = self._tokenizer.get_vocab_size()
        self.image_id = self._tokenizer.token_to_id(IMAGE)
        self.newline_ids = self._encode("\n")
        self.prompt_end_ids = self._encode(self.template.prompt_end)
        self.stop_ids = frozenset([self._id(end), self._end_of_answer()])

    def message(self, parts: Sequence[object]) -> str:
        """Strings and frames (anything else), joined by nothing, stripped at both ends. Raises InputError: nothing to ask.

        A literal <image> or <vila/video> inside a string is deleted, and such a string stripped, before it is joined.
        """
        if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence) or not parts:
            raise InputError(f"[encode_prompt] the prompt is {type(parts).__name__}; a list of texts and frames is needed. Pass [frame, \"question\"].")
        text, num_frames = "", 0
        for part in parts:
            num_frames += not isinstance(part, str)
            text += _clean(part.lower() if self._lower_case else part) if isinstance(part, str) else IMAGE
        if text.count(IMAGE) != num_frames or VIDEO in text:
            raise InputError(f"[encode_prompt] two texts together read {IMAGE} or {VIDEO}; only frames may. Pass the text as one part.")
        return text.strip()

    def text(self, message: str) -> str:
        """The message in its template, as the model reads it."""
        return self.template.before + (message.strip() if self.template.trim else message) + self.template.after

    def ids(self, message: str) -> list[int]:
        return self._encode(self.text(message))

    def prompt_end(self, ids: Sequence[int]) -> int:
        """Index of the user turn's last token: the one before the first end of a turn; the last of all where there is none."""
        end = self.prompt_end_ids
        starts = (i for i in range(len(ids) - len(end) + 1) if list(ids[i:i + len(end)]) == end)
        return next(starts, len(ids)) - 1

    def answer(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._tokenizer.encode_batch(list(texts))]

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ExportError(f"[prompt] the chat template needs {token}, which this tokenizer does not have. Use the tokenizer that came with the model.")
        return found

    def _end_of_answer(self) -> int:
        """The token after an answer: with some tokenizers it depends on what it follows."""
        ids = self._encode(SENTINEL + self.template.answer_end)
        return ids[ids.index(self._id(SENTINEL)) + 1]


def _clean(text: str) -> str:
    for token in (IMAGE, VIDEO):
        while token in text:        # once is not enough: <ima<image>ge>
            text = text.replace(token, "").strip()
    return _clean(text) if IMAGE in text else text


def _template(settings, name: str | None, begin: str, end: str) -> Template:
    if name == "qwen2":
        return qwen2()
    if name == "mistral":
        return mistral(begin, end)
    if name is not None:
        raise ExportError(f"[config] chat_template of config.json is {name!r}; qwen2 or mistral is needed. Correct the file.")
    given = str(settings.values.get("chat_template"))
    for known in _KNOWN.values():
        before, after = known.split("SYSTEM")
        system = given[len(before):len(given) - len(after)]
        if given == before + system + after and not re.search(r"['{}\\]", system):
            return qwen2(system)
    raise settings.refuse("chat_template", f"a known chat template is needed: {SUPPORTED}", "Set chat_template in the top-level config.json.")
