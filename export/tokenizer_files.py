"""A checkpoint's text tokenizer as one tokenizer.json that says everything: how it ends a text, pads it and cuts it.

The public model loads tokenizers through transformers, where the files beside tokenizer.json and the class they name have the last
word. What they say is written into tokenizer.json, so that the bundle needs neither. Source: transformers 4.49, the version that
ps3-torch 0.1.3 pins: PreTrainedTokenizerFast, GemmaTokenizerFast, LlamaTokenizerFast, T5TokenizerFast.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Callable

from tokenizers import Tokenizer, processors

from ps3_sdk.errors import ExportError

from .reference.side_files import TokenizerConfig

PADS_LEFT = ("GemmaTokenizer", "LlamaTokenizer")     # classes that pad on the left unless a file says otherwise ...
TEMPLATES = {"GemmaTokenizer": ("<bos>", "<eos>"), "LlamaTokenizer": ("<s>", "</s>")}     # ... and write the ends of a text anew
CONVERT = ("pip install transformers==4.49.0 sentencepiece protobuf, in an environment of its own, then python -c \"from transformers import T5TokenizerFast; "
           "T5TokenizerFast.from_pretrained('{0}', extra_ids=0).save_pretrained('{0}')\"")


def read_prompt_tokenizer(folder: Path, context_length: int, given: str | Path | None = None, vocabulary: int | None = None) -> bytes:
    """tokenizer.json: the one given, the checkpoint's own, or that of the tokenizer which its tokenizer_config.json names.

    context_length, vocabulary: of the text tower. Raises ExportError: no or unreadable files, a larger vocabulary, or settings that exported text towers lack.
    """
    settings = TokenizerConfig.read(folder)
    if settings.context_length != context_length:
        raise ExportError(f"[export] tokenizer_config.json says context_length {settings.context_length}, the text tower reads {context_length}; "
                          "they must be equal. Correct the file that is wrong.")
    if given is None and (folder / "tokenizer.json").is_file():
        given = folder / "tokenizer.json"
    beside = _beside_file(Path(given)) if given is not None else _on_hub(settings.tokenizer_name)
    where = given or f"the tokenizer {settings.tokenizer_name!r} on the hub"
    try:
        tokenizer = Tokenizer.from_str(beside("tokenizer.json").read_text("utf-8"))
    except ExportError:
        raise
    except Exception as error:      # tokenizers and the hub raise a dozen classes
        raise ExportError(f"[export] {where} cannot be read: {error}. Download tokenizer.json of {settings.tokenizer_name!r} and the files "
                          "beside it, and pass --tokenizer FILE.") from error
    if vocabulary is not None and (last := max(tokenizer.get_vocab(False).values(), default=0)) >= vocabulary:
        # tokens that were added, as T5's extra ones, may lie beyond: cleaned prompts do not make them
        raise ExportError(f"[export] {where} has ids up to {last}; the text tower reads 0 to {vocabulary - 1}. Pass the tokenizer that the model was trained with: --tokenizer FILE.")
    side = {**_json(beside, "special_tokens_map.json"), **_json(beside, "tokenizer_config.json")}
    _refuse_what_is_missing(settings, side)
    kind = str(side.get("tokenizer_class", "")).removesuffix("Fast")
    if kind in TEMPLATES:
        _write_ends(tokenizer, side, *TEMPLATES[kind])
    _pad(tokenizer, side, kind)
    direction = side.get("truncation_side") or (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.enable_truncation(context_length, direction=direction)
    return tokenizer.to_str().encode()


def _beside_file(given: Path) -> Callable[[str], Path]:
    """Files of the folder in which the given tokenizer.json (or a folder) lies."""
    if given.is_dir():
        given = given / "tokenizer.json"
    spiece = given.parent / "spiece.model"
    if not given.is_file() and spiece.is_file() or given.suffix == ".model":
        raise ExportError(f"[export] {given.parent} has {spiece.name if spiece.is_file() else given.name} and no tokenizer.json, which is needed. "
                          f"Make it: {CONVERT.format(given.parent)}. Then pass --tokenizer {given.parent / 'tokenizer.json'}.")
    return lambda file: given if file == "tokenizer.json" else given.parent / file


def _on_hub(name: str) -> Callable[[str], Path]:
    from huggingface_hub import hf_hub_download
    return lambda file: Path(hf_hub_download(name, file))


def _json(beside: Callable[[str], Path], file: str) -> dict:
    try:
        found = json.loads(beside(file).read_text("utf-8"))
    except Exception:           # not there, not JSON, or not to be had
        return {}
    return {key: value for key, value in found.items() if value is not None} if isinstance(found, dict) else {}


def _refuse_what_is_missing(settings: TokenizerConfig, side: dict) -> None:
    if str(side.get("tokenizer_class", "")).startswith("SiglipTokenizer") and settings.clean != "canonicalize":
        raise ExportError(f"[export] tokenizer_config.json says clean {settings.clean!r}, and the tokenizer is of the class SiglipTokenizer, which canonicalizes "
                          "texts whatever that says. Set clean to 'canonicalize', which is the same.")
    wrong = "strip_sep_token" if settings.strip_sep_token and side.get("sep_token") else "language" if settings.language is not None else None
    if wrong:
        raise ExportError(f"[export] tokenizer_config.json sets {wrong}; no published PS3 model does, and bundles have no place for it. "
                          "Pass prompts as embeddings, made with export.reference.")


def _token(value, default: str | None = None) -> str | None:
    """A special token as side files write it: its text, or an object with its text."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else default


def _write_ends(tokenizer: Tokenizer, side: dict, first: str, last: str) -> None:
    ends = [(_token(side.get("bos_token"), first), side.get("add_bos_token", True)), (_token(side.get("eos_token"), last), side.get("add_eos_token", False))]
    used = [(token, tokenizer.token_to_id(token)) for token, wanted in ends if wanted]
    if any(id is None for _, id in used):
        raise ExportError(f"[export] tokenizer.json has no {' and no '.join(token for token, id in used if id is None)}, which the files beside it put "
                          "around a text. Download all of them again, from one place.")
    (start, add_start), (end, add_end) = ends
    tokenizer.post_processor = processors.TemplateProcessing(single=[*([start] if add_start else []), "$A", *([end] if add_end else [])], special_tokens=used)


def _pad(tokenizer: Tokenizer, side: dict, kind: str) -> None:
    """PS3's text tower has no mask, so what pads a text, and where, matters. Left open when nothing says it: the manifest has the id."""
    known = tokenizer.padding or {}
    token = _token(side.get("pad_token")) or known.get("pad_token") or "<pad>"
    if (id := tokenizer.token_to_id(token)) is not None:
        direction = side.get("padding_side") or known.get("direction") or ("left" if kind in PADS_LEFT else "right")
        tokenizer.enable_padding(direction=direction, pad_id=id, pad_token=token)
