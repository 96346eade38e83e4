"""The small model's tokenizer: bytes, and merges of the lower-case words that questions are made of.

Answers are upper-case letters, digits and signs, which are never merged: the reader has one token per character.
"""
from __future__ import annotations

from ps3_sdk.export.reference.vila.chat import _KNOWN

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[PAD]", "<vila/sentinel>", "<image>", "<vila/video>")
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]|\s+(?!\S)|\s+"


def make_tokenizer(vocabulary: int = 448, questions: list[str] | None = None, system: str = "See"):
    """A byte-level BPE and its tokenizer_config.json. questions: lower-case texts to learn merges from, default some of the scenes' own."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if questions is None:
        questions = _questions()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(ADDED), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(questions + ["user", "assistant", "system", system] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ADDED])
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    settings = {
        "added_tokens_decoder": {str(tokenizer.token_to_id(word)): {"content": word, **flags} for word in ADDED},
        "bos_token": ADDED[0], "eos_token": "<|im_end|>", "pad_token": "[PAD]", "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _KNOWN["VILA's qwen2"].replace("SYSTEM", system)}
    return tokenizer, settings


def _questions() -> list[str]:
    """Every noun and template of the scenes once: what questions are made of, whatever is installed."""
    from .scenes.kinds import KINDS
    from .scenes.prompts import MOST, SAID, TEMPLATES
    nouns = [noun.format(c=colour) for kind in KINDS for noun in kind.nouns for colour in kind.colours]
    forms = [form.format(d="sign on the left", v=value) for form in TEMPLATES["train"] for value in ("number", "word", "code", "time", "price", "percentage")]
    places = [said.format(n="sign") for said in (*MOST.values(), *(text for texts in SAID.values() for text in texts))]
    asks = [ask.format(d="sign") for kind in KINDS for ask in kind.asks]
    return nouns + (forms + places + asks) * 8 + ["not visible"] * 20
