"""Tokenizer files in the layout of SigLIP's (32000 pieces, unigram) and SigLIP2's (256000, Gemma's BPE), with seeded vocabularies.

Normalisers, pre- and post-processors, special tokens, ids of those and side files are as published; pieces and scores are made up.
"""
from __future__ import annotations

import itertools
import json
import random
import re
import string
from pathlib import Path

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
TEXTS = [
    "the exit sign", "A photo of a cat.", "UPPER lower MiXeD", "under_scored_words and-hyphens", "  spaces   in \t odd\n places  ", "", " ", ".", "?!...",
    "éèêë ñ ü ß æ ø", "ﬁne ligatures ﬀ ½ ² ℃ Å", "日本語の標識", "Знак выхода", "علامة الخروج", "출구 표지판", "🚦 red light 🚗💨", "👩‍👩‍👧‍👦 family 🇩🇪", "&amp; &lt;b&gt; &amp;lt;",
    "â€œbrokenâ€\x9d quotes", "nul\x00 bell\x07 esc\x1b", "zero\u200bwidth\u200d joiners\ufeff", "soft\u00adhyphen nbsp\u00a0here \u3000wide", "e\u0301 combining a\u030a",
    "</s> <eos> <pad> <bos> <unk> <extra_id_0> <mask>", "<s>bold</s>", "▁already▁marked", "ＦＵＬＬ ｗｉｄｔｈ", "12345 67,890.12 3-4", "İstanbul ıI ẞ Σς", "x" * 300, "word " * 200,
    "é" * 100, "🚦" * 40, "a\u0300" * 80, "\ud83d lone half", "it's o'clock", "<table><tr>", "tab\ttab\n\nlines", "mañana—naïve…", "http://a.b/c?d=e&f=g", "{}", "@#$%^&*()",
]


def texts() -> list[str]:
    """The cases above and random ones, some longer than 64 tokens; the same on every machine."""
    rng, made = random.Random(5), []
    for i in range(300):
        pool = LETTERS * 3 + " " * 20 + string.ascii_uppercase + string.digits + string.punctuation + "éü日ж🚗\u00a0\t"
        made.append("".join(rng.choice(pool) for _ in range(rng.choice((3, 20, 60, 200)))))
    return TEXTS + made


def write_siglip(folder: Path, *, style: str = "t5", **side) -> Path:
    """style t5: SigLIP as timm publishes it | own: with SigLIP's own cleaning in the normaliser. side: changes tokenizer_config.json."""
    rng = random.Random(1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    seen = {piece for piece, _ in pieces}
    for letter in LETTERS + string.digits + "éüß":
        pieces.append((letter, -6.0 - rng.random()))
        seen.add(letter)
    while len(pieces) < 32000:
        piece = rng.choice(("▁", "")) + "".join(rng.choices(LETTERS, range(26, 0, -1), k=rng.choice((1, 2, 2, 3, 3, 4))))
        if piece not in seen:
            seen.add(piece)
            pieces.append((piece, -7.0 - 2.0 * len(piece) * rng.random()))
    steps = [{"type": "NFKC"}]        # published: a table of the same folding
    if style == "own":
        steps += [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "[" + re.escape(string.punctuation) + "]"}, "content": ""},
                  {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Strip", "strip_left": True, "strip_right": True}]
    else:
        steps += [{"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    values = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [_added(i, pieces[i][0]) for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": space, "post_processor": _template([("</s>", 1)], last=True), "decoder": space,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [list(piece) for piece in pieces], "byte_fallback": False}}
    return _write(folder, values, {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>",
                                   "model_max_length": 64, "clean_up_tokenization_spaces": True} | side)


def write_siglip2(folder: Path, **side) -> Path:
    """side: changes tokenizer_config.json; None leaves a key out."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99)), "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>", "<tr>", "</tr>", "<h1>", "</h1>"]
    vocabulary = {token: i for i, token in enumerate([*special, *runs, *(f"<0x{i:02X}>" for i in range(256))])}
    single = [*LETTERS, *LETTERS.upper(), *string.digits, *string.punctuation, "▁", "\n", "\t", *"éüßжл日本語"]
    for letter in single:
        vocabulary.setdefault(letter, len(vocabulary))
    pairs = [a + b for a, b in itertools.product(LETTERS, LETTERS)] + [f"▁{a}" for a in LETTERS]
    merges = [(pair[0], pair[1]) for pair in pairs]
    rng = random.Random(2)
    longer = [(a, b) for a, b in itertools.product(pairs, pairs[:26 * 26])]
    for pair in pairs:
        vocabulary.setdefault(pair, len(vocabulary))
    for a, b in rng.sample(longer, len(longer)):
        if len(vocabulary) == 256000:
            break
        if a + b not in vocabulary:
            vocabulary[a + b] = len(vocabulary)
            merges.append((a, b))
    values = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_added(i, token, special=not 7 <= i < 106) for i, token in enumerate(special)]
                        + [_added(vocabulary[token], token, special=False) for token in runs],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": _template([("<eos>", 1)], last=True),
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary, "merges": [list(merge) for merge in merges]}}
    return _write(folder, values, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True, "bos_token": "<bos>", "eos_token": "<eos>",
                                   "unk_token": "<unk>", "pad_token": "<pad>", "padding_side": "right", "model_max_length": 64} | side)


def _added(id: int, content: str, special: bool = True) -> dict:
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}


def _template(tokens: list[tuple[str, int]], last: bool) -> dict:
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in tokens]
    return {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, *ends],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, *ends, {"Sequence": {"id": "B", "type_id": 0}}, *ends],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]} for token, id in tokens}}


def _write(folder: Path, tokenizer: dict, side: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    side = {key: value for key, value in side.items() if value is not None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(side))
    map = {key: side[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if key in side}
    (folder / "special_tokens_map.json").write_text(json.dumps(map))
    return folder
