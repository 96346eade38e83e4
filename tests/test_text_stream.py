"""Ids become text piece by piece: characters come whole, and the joined pieces are the text."""
import numpy as np
import pytest

from ps3_sdk.decode import TextStream
from ps3_sdk.errors import InputError


def byte_tokenizer(metaspace=False):
    """One id per byte; metaspace: words as SentencePiece spells them, unknown letters as bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    if metaspace:
        words = ["\u2581the", "\u2581exit", "\u2581", "s", "\u2581a"]
        vocabulary = {word: i for i, word in enumerate(["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *words])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return tokenizer


@pytest.mark.parametrize("text", ["plain", "Bäume, 出口 →", "👩‍🚀🇨🇭", "e\u0301", "a\ufffdb", "\ufffd", ""])
def test_characters_come_whole_and_joined_pieces_are_the_text(text):
    tokenizer, pieces = byte_tokenizer(), []
    stream = TextStream(tokenizer)
    for token_id in tokenizer.encode(text).ids:
        pieces.append(stream.push(token_id))
    last = stream.finish()
    assert "".join(pieces) + last == text == stream.text
    assert all(piece == "" or piece in text for piece in pieces)
    assert stream.finish() == ""
    if text == "Bäume, 出口 →":
        assert pieces == ["B", "", "ä", *"ume, ", "", "", "出", "", "", "口", " ", "", "", "→"]


def test_a_cut_character_comes_at_the_end_as_what_can_be_read():
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("a出").ids[:-1]
    assert [stream.push(i) for i in ids] == ["a", "", ""] and stream.finish() == "\ufffd"


def test_special_tokens_are_left_out_or_kept():
    tokenizer = byte_tokenizer()
    ids = [*tokenizer.encode("yes").ids, tokenizer.token_to_id("<|im_end|>")]
    for skip, wanted in ((True, "yes"), (False, "yes<|im_end|>")):
        stream = TextStream(tokenizer, skip)
        for token_id in ids:
            stream.push(token_id)
        stream.finish()
        assert stream.text == wanted


@pytest.mark.parametrize("metaspace", [False, True])
def test_streamed_text_is_the_text_decoded_at_once(metaspace):
    tokenizer = byte_tokenizer(metaspace=metaspace)
    rng = np.random.Generator(np.random.PCG64(5))
    valid = [tokenizer.encode(text).ids for text in ("the", " exits", "ß", "→", "😀", "a ")]
    if metaspace:
        valid = [[257], [258], [260], [261], [1 + byte for byte in "→".encode()], [1 + byte for byte in "😀".encode()]]
    for _ in range(50):
        ids = [i for k in rng.integers(0, len(valid), 12) for i in valid[k]]
        stream = TextStream(tokenizer)
        joined = "".join(map(stream.push, ids))
        assert joined + stream.finish() == tokenizer.decode(ids)


def test_only_ids_are_taken():
    for wrong in ("a", -1, 1.0, True):
        with pytest.raises(InputError, match="token id"):
            TextStream(byte_tokenizer()).push(wrong)
