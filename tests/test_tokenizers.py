"""Texts become the ids that the public model's own tokenizer class gives them: SigLIP's 32000 pieces, SigLIP2's 256000."""
import json
import subprocess
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs ps3_sdk[export]")
import siglip_tokenizers
import tiny_models
from conftest import lacking

from ps3_sdk.errors import ExportError
from ps3_sdk.export.make_bundle import make_bundle
from ps3_sdk.export.tokenizer_files import read_prompt_tokenizer
from ps3_sdk.prompt import PromptTokenizer, clean
from ps3_sdk.session import Session

HERE, LENGTH = Path(__file__).parent, 64
CLEANS = ("canonicalize", "lower", "whitespace")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, siglip, siglip2 = tmp_path_factory.mktemp("tokenizers"), siglip_tokenizers.write_siglip, siglip_tokenizers.write_siglip2
    return {"siglip": siglip(root / "siglip"), "siglip, own cleaning": siglip(root / "own", style="own"), "siglip2": siglip2(root / "siglip2"),
            "siglip2, the class decides": siglip2(root / "class", padding_side=None, add_bos_token=None, add_eos_token=None),
            "siglip, cut on the left": siglip(root / "left", truncation_side="left")}


def settings(folder, clean="canonicalize", **more):
    """A checkpoint folder that holds nothing but PS3's own tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_name": "somebody/tokenizer", "context_length": LENGTH, "clean": clean} | more))
    return folder


def tokenizer(tmp_path, files, clean="canonicalize", **more):
    data = read_prompt_tokenizer(settings(tmp_path / "ps3", clean, **more), LENGTH, files / "tokenizer.json")
    spec = {"context_length": LENGTH, "clean": clean, "pad_id": json.loads(data)["padding"]["pad_id"], "tokenizer": "tokenizer.json"}
    return PromptTokenizer(types.SimpleNamespace(manifest={"text": spec}, member=lambda name: data, path="engine.plan"))


def test_ids_are_the_public_models(tmp_path, request, folders):
    given, default = request.config.getoption("--peer"), HERE.parent / ".peer" / "bin" / "python"
    if given is None and not default.exists():
        pytest.skip("the public reference is not installed; `make peer` installs it into .peer, or pass --peer PYTHON")
    texts = siglip_tokenizers.texts()
    cases = {f"{name}: {how}": {"tokenizer_name": str(folder), "context_length": LENGTH, "clean": how} for name, folder in folders.items()
             for how in (CLEANS if "," not in name else CLEANS[-1:])}
    (tmp_path / "request.json").write_text(json.dumps({"texts": texts, "cases": cases}), "utf-8")
    done = subprocess.run([given or default, HERE / "conformance" / "run_peer_tokenizer.py", tmp_path / "request.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, theirs in json.loads(done.stdout.splitlines()[-1]).items():
        ours = tokenizer(tmp_path, folders[name.split(":")[0]], cases[name]["clean"])
        for text, ids in zip(texts, theirs, strict=True):
            assert ours(text)[0].tolist() == [ids], (name, text)


@pytest.mark.parametrize("name, end, pad", [("siglip", 1, 1), ("siglip2", 1, 0)])
def test_ends_padding_and_cutting(tmp_path, folders, name, end, pad):
    ids = tokenizer(tmp_path, folders[name])
    short, notes = ids("the exit sign")
    text = [id for id in short[0].tolist() if id != pad]
    assert short.shape == (1, LENGTH) and notes == [] and short[0, -1] == pad and 3 <= len(text) < 20
    assert ids("")[0].tolist() == ids("?!")[0].tolist() == [[end] + [pad] * (LENGTH - 1)]
    long, notes = ids("exit " * 500)
    assert long[0, -1] == end and pad not in long[0, :-1].tolist() and "the model reads the first 64" in notes[0]
    assert ids("exit " * 100_000)[0].tolist() == long.tolist()


def test_gemma_without_a_word_about_ends_starts_with_bos_and_pads_left(tmp_path, folders):
    ids = tokenizer(tmp_path, folders["siglip2, the class decides"])("the exit sign")[0][0].tolist()
    assert ids[0] == 0 and ids[-1] > 3 and ids[ids.index(2) - 1] == 0


def test_how_texts_are_cleaned():
    assert clean("  The_EXIT&amp;sign!\n ", "canonicalize") == "the exitsign"
    assert clean("  The_EXIT&amp;sign!\n ", "lower") == "the_exit&sign!"
    assert clean("  The_EXIT&amp;sign!\n ", "whitespace") == "The_EXIT&sign!"
    for text in siglip_tokenizers.texts():
        for how in CLEANS:
            clean(text, how).encode()       # no half surrogates are left that a tokenizer would refuse


@pytest.mark.parametrize("write, vocabulary", [(siglip_tokenizers.write_siglip, 32000), (siglip_tokenizers.write_siglip2, 256000)])
def test_a_bundle_with_the_whole_vocabulary_reads_any_text(tmp_path, write, vocabulary):
    values = tiny_models.config("siglip2")
    values["text_config"] |= {"vocab_size": vocabulary, "context_length": LENGTH}
    folder = tiny_models.write(tmp_path / "checkpoint", values)
    files = write(tmp_path / "tokenizer")
    make_bundle(str(folder), tmp_path / "engine.plan", tokenizer=files / "tokenizer.json")
    with Session(tmp_path / "engine.plan") as session:
        features = session.encode_text(["the exit sign", "日本語の標識 🚦", "word " * 300])
        assert features.shape[0] == 3 and session.bundle.manifest["text"]["pad_id"] == (1 if vocabulary == 32000 else 0)
        assert any("the model reads the first 64" in note for note in session.encode_prompt("word " * 300).notes)


def refusal(tmp_path, given=None, length=LENGTH, vocabulary=None, **more) -> str:
    with pytest.raises(ExportError) as caught:
        read_prompt_tokenizer(settings(tmp_path / "ps3", **more), length, given, vocabulary)
    return str(caught.value)


def test_what_cannot_be_exported_says_what_to_do(tmp_path, folders):
    only_spiece = tmp_path / "google"
    only_spiece.mkdir()
    (only_spiece / "spiece.model").write_bytes(b"\n\x05")
    for given in (only_spiece, only_spiece / "tokenizer.json", only_spiece / "spiece.model"):
        assert not lacking(refusal(tmp_path, given=given), "no tokenizer.json", "T5TokenizerFast.from_pretrained", f"--tokenizer {only_spiece / 'tokenizer.json'}")
    files = folders["siglip"] / "tokenizer.json"
    assert not lacking(refusal(tmp_path, given=files, length=32), "context_length 64, the text tower reads 32")
    assert not lacking(refusal(tmp_path, given=files, vocabulary=31999), "ids up to 31999; the text tower reads 0 to 31998", "--tokenizer FILE")
    assert read_prompt_tokenizer(settings(tmp_path / "ps3"), LENGTH, files, 32000)
    assert not lacking(refusal(tmp_path, given=files, language="eng_Latn"), "language")
    assert not lacking(refusal(tmp_path, given=tmp_path / "nowhere" / "tokenizer.json"), "cannot be read", "--tokenizer FILE")
    assert not lacking(refusal(tmp_path, clean="lower", given=siglip_tokenizers.write_siglip(tmp_path / "slow", tokenizer_class="SiglipTokenizer") / "tokenizer.json"), "SiglipTokenizer", "Set clean to 'canonicalize'")
    assert not lacking(refusal(tmp_path, strip_sep_token=True, given=siglip_tokenizers.write_siglip(tmp_path / "sep", sep_token="</s>") / "tokenizer.json"), "strip_sep_token")
    assert not lacking(refusal(tmp_path, given=siglip_tokenizers.write_siglip2(tmp_path / "ends", add_bos_token=True, bos_token="<begin>") / "tokenizer.json"), "has no <begin>")
