"""The tokenizer of a checkpoint's llm/ folder, through the tokenizers library alone."""
from __future__ import annotations

import json
from pathlib import Path

from ps3_sdk.errors import ExportError

from ..fields import Fields

SENTINEL, IMAGE, VIDEO = "<vila/sentinel>", "<image>", "<vila/video>"
_QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def read_tokenizer(folder: Path):
    """tokenizer.json, or vocab.json with merges.txt of a Qwen2 tokenizer; with the added tokens that tokenizer_config.json lists
    and, behind them in this order where missing, <vila/sentinel>, <image>, <vila/video>.

    Returns a tokenizers.Tokenizer and the Fields of tokenizer_config.json.
    Raises ExportError: no such files, broken files, an added token whose id does not fit.
    """
    from tokenizers import AddedToken, Tokenizer

    settings = Fields.read(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text("utf-8")) if path.exists() else _qwen2(folder, settings)
    except ExportError:
        raise
    except Exception as error:      # the library raises plain Exception
        raise ExportError(f"[prompt] the tokenizer in {folder} cannot be read: {error}. Download it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for number, token in sorted(_added(settings).items()):
        if tokenizer.token_to_id(token["content"]) is None:
            flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
        if tokenizer.token_to_id(token["content"]) != number:
            raise ExportError(f"[prompt] {token['content']} of {folder} is id {tokenizer.token_to_id(token['content'])} and tokenizer_config.json says {number}; "
                              "they must agree. Download the tokenizer's files again.")
    for name in (SENTINEL, IMAGE, VIDEO):
        if tokenizer.token_to_id(name) is None:
            tokenizer.add_special_tokens([name])
    return tokenizer, settings


def token_text(settings: Fields, key: str) -> str | None:
    """bos_token, eos_token..: a string or an object with its content."""
    value = settings.values.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(value, str):
        raise settings.refuse(key, "a token is needed", "Use the file published with the model.")
    return value


def _added(settings: Fields) -> dict[int, dict]:
    added = settings.values.get("added_tokens_decoder") or {}
    try:
        return {int(number): {**token, "content": str(token["content"])} for number, token in added.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise settings.refuse("added_tokens_decoder", "an object of ids and tokens is needed", "Use the file published with the model.") from None


def _qwen2(folder: Path, settings: Fields):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()) or not str(settings.values.get("tokenizer_class")).startswith("Qwen2Tokenizer"):
        raise ExportError(f"[prompt] {folder} has no tokenizer.json; that file, or vocab.json and merges.txt of a Qwen2Tokenizer, is needed. "
                          "Save the tokenizer as tokenizer.json with the transformers library's save_pretrained.")
    lines = merges.read_text("utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=json.loads(vocab.read_text("utf-8")), merges=pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
