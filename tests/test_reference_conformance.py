"""The reference model answers as ps3-torch does: every stage, three families, both scale sets, every option.

Live: conformance/run_peer.py builds random tiny models with the public reference, saves them its own way and records its
answers; here the same folders go through our loader. Errors are the largest difference over the largest value, in f32.
"""
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'ps3-sdk[export]'")
from safetensors.torch import load_file

from ps3_sdk.export.reference.model import Ps3Model
from ps3_sdk.export.reference.scoring import spread
from ps3_sdk.export.weights import Checkpoint, expected_shapes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "conformance"))
import cases

BOUND = 1e-5
EVERY_CASE = [(model, case) for model, table in cases.CASES.items() for case in table]
WITH_TEXT = [name for name, spec in cases.MODELS.items() if spec["text"] is not None]


@pytest.fixture(scope="session")
def peer(request, tmp_path_factory):
    """Folder of what the reference made; see run_peer.py."""
    given, default = request.config.getoption("--peer"), HERE.parent / ".peer" / "bin" / "python"
    if given is None and not default.exists():
        pytest.skip("the public reference is not installed; `make peer` installs it into .peer, or pass --peer PYTHON")
    out = tmp_path_factory.mktemp("peer")
    done = subprocess.run([given or default, HERE / "conformance" / "run_peer.py", out], capture_output=True, text=True)
    assert done.returncode == 0, f"the reference failed:\n{done.stderr[-3000:]}"
    return out


@pytest.fixture(scope="session")
def models(peer):
    """name -> our model, from the reference's checkpoint; loaded when first asked for."""
    class Models(dict):
        def __missing__(self, name):
            self[name] = Ps3Model.from_checkpoint(peer / name / "checkpoint")
            return self[name]
    return Models()


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def off(record_property):
    """off(what, ours, theirs): relative error, infinite where shapes differ; the largest of each goes into the test report."""
    worst = {}

    def measure(what, ours, theirs) -> float:
        error = float("inf") if ours.shape != theirs.shape else 0.0 if ours.numel() == 0 else ((ours - theirs).abs().max() / theirs.abs().max()).item()
        worst[what] = max(error, worst.get(what, 0.0))
        return error

    yield measure
    for what, error in worst.items():
        record_property(what, error)


def _call(name, case):
    """Our model's arguments for one case of the table: pixels, keywords."""
    options, vision = cases.CASES[name][case], cases.MODELS[name]["vision"]
    tensor = lambda array: None if array is None else torch.from_numpy(array)
    base = vision["ps3_scales"][-1]
    return tensor(cases.pixels(name, case, options, base)), dict(
        prompt=tensor(cases.prompt(name, case, options, vision["hidden_size"])), given=tensor(cases.given(options, base)), smooth=options.get("smooth_selection_prob", False)), options


def _budget(options):
    first = options.get("only_select_first_n_scale")
    return dict(num_looks=options.get("num_look_close"), num_tokens=options.get("num_token_look_close"), first_scales=first)


def _maps(found):
    """The reference's maps: per look, per scale (batch, rows, cols)."""
    num_looks, num_scales = (len({key.split(".")[i] for key in found if key.startswith("look")}) for i in (0, 1))
    return [[found[f"look{t}.map{i}"] for i in range(num_scales)] for t in range(num_looks)]


ENCODED = [(m, c) for m, c in EVERY_CASE if not cases.CASES[m][c].get("pooled")]


@pytest.mark.parametrize("name,case", ENCODED, ids=map("-".join, ENCODED))
def test_encoding_equals_the_reference(peer, models, off, name, case):
    model, found = models[name], load_file(peer / name / f"{case}.safetensors")
    pixels, asked, options = _call(name, case)
    ours = model(pixels, **asked, **_budget(options))
    for i, prob in enumerate(ours.probs):
        assert off("probabilities", prob, found[f"prob{i}"]) <= BOUND
    theirs = _maps(found)
    assert len(ours.looks) == len(theirs)
    for look, maps in zip(ours.looks, theirs):
        for i, (ids, m) in enumerate(zip(look, maps)):
            assert [len(image) for image in ids] == m.sum(dim=(1, 2)).tolist(), f"picked of high-res scale {i}"
            for image, picked in enumerate(ids):
                # which of equally probable patches is picked is free, their probabilities are not
                assert off("picked probabilities", ours.probs[i][image].flatten()[picked].sort().values, found[f"prob{i}"][image][m[image].bool()].sort().values) <= BOUND
    assert ours.tokens.shape == found["tokens"].shape

    fed = model(pixels, **asked, looks=theirs, keep_hidden=True, low=ours.low)
    assert off("tokens", fed.tokens, found["tokens"]) <= BOUND
    for i, union in enumerate(fed.maps):
        assert union.equal(sum((maps[i] for maps in theirs), torch.zeros_like(union, dtype=torch.uint8)).bool())
    for key in found:
        if key.startswith("hidden"):
            assert off("hidden", fed.hidden[int(key[6:])], found[key]) <= BOUND
        elif key.startswith("feature_map"):
            assert off("feature maps", model.feature_maps(fed.tokens, fed.maps)[int(key[11:])], found[key]) <= BOUND


LOW = [(m, c) for m, c in EVERY_CASE if c in ("none", "one")]


@pytest.mark.parametrize("name,case", LOW, ids=map("-".join, LOW))
def test_low_res_pass_equals_the_reference(peer, models, off, name, case):
    model = models[name]
    found = {key[4:]: value for key, value in load_file(peer / name / f"{case}.safetensors").items() if key.startswith("low.")}
    low = model.encode_low(_call(name, case)[0])
    assert off("low tokens", low.tokens, found[f"hidden{len(low.hidden) - 1}"]) <= BOUND
    for i, hidden in enumerate(low.hidden):
        assert off("low hidden", hidden, found[f"hidden{i}"]) <= BOUND
    for i, pair in enumerate(low.kv):
        assert off("kv", torch.stack(pair), found["kv"][i]) <= BOUND
    assert off("selection features", low.features, found["features"]) <= BOUND
    assert off("score features", low.score_features, found["score_features"]) <= BOUND
    if low.view_features is not None:
        assert off("view features", low.view_features, found["view_features"]) <= BOUND
    assert off("low pooled", model.pool(low.tokens), found["pooled"]) <= BOUND


POOLED = [(m, c) for m, c in EVERY_CASE if cases.CASES[m][c].get("pooled")]


@pytest.mark.parametrize("name,case", POOLED, ids=map("-".join, POOLED))
def test_pooled_output_equals_the_reference(peer, models, off, name, case):
    model, found = models[name], load_file(peer / name / f"{case}.safetensors")
    pixels, asked, options = _call(name, case)
    is_global = torch.tensor(options["is_global_text"])[:, None] if "is_global_text" in options else None
    ours = model.forward_pooled(pixels, **asked, maps=_maps(found)[0], is_global_text=is_global, pool_given_only=options.get("pool_gt_token_only", False))
    assert off("pooled", ours.pooled, found["pooled"]) <= BOUND
    for i in range(len(ours.probs)):
        assert off("probabilities", ours.probs[i], found[f"prob{i}"]) <= BOUND
        assert off("prior probabilities", ours.prior_probs[i], found[f"prior{i}"]) <= BOUND
        if ours.prompt_probs is not None:
            assert off("prompt probabilities", ours.prompt_probs[i], found[f"asked{i}"]) <= BOUND
    chosen = model.select(spread(model.score(model.encode_low(pixels), asked["prompt"]), model.sizes(pixels), asked["given"], asked["smooth"]))[0]
    assert [[len(ids) for ids in scale] for scale in chosen] == [m.sum(dim=(1, 2)).tolist() for m in _maps(found)[0]]


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_equals_the_reference(peer, models, off, name):
    found, ours = load_file(peer / name / "text.safetensors"), models[name].encode_prompt(torch.from_numpy(cases.text_ids(name)))
    assert off("text pooled", ours.pooled, found["pooled"]) <= BOUND
    assert off("text prompt", ours.prompt, found["prompt"]) <= BOUND


@pytest.mark.parametrize("name,saved", [(name, spec["saved"]) for name, spec in cases.MODELS.items() if name in cases.CASES])
def test_every_way_of_saving_was_read(peer, models, name, saved):
    checkpoint = Checkpoint.open(peer / name / "checkpoint")
    assert set(checkpoint.keys()) == set(expected_shapes(models[name].config))
    assert {checkpoint.dtype(key) for key in checkpoint.keys()} == {{"f16": "F16", "bf16": "BF16"}.get(saved, "F32")}
    assert (len(list(checkpoint.folder.glob("*.safetensors"))) > 1) == (saved == "shards")
    assert ('"s3_scales"' in (checkpoint.folder / "config.json").read_text()) == (saved == "old_name")
