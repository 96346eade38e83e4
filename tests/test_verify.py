"""ps3 verify: a bundle held to the reference values inside, on the machine at hand."""
import gc
import json
import re
import weakref

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

from ps3_sdk import cli
from ps3_sdk.bundle import Bundle
from ps3_sdk.decode import TokenEmbedding
from ps3_sdk.errors import BundleError, RuntimeFailedError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import EngineOptions
from ps3_sdk.session import Session
from ps3_sdk.verify import LIMITS, REFERENCE, VIEWS, Report, check_reference, compare, frame_of, observe, outputs_of, precision_of, sample, verify


@pytest.fixture(scope="module")
def plan(seeded, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "half.plan"
    build_engine(seeded, path, EngineOptions("onnx", precision="fp16"))
    return path


def test_a_bundle_passes_where_it_was_made(plan):
    report = verify(plan)
    assert set(report.errors) == {"encode_low", "encode_prompt", "score", "gather", "encode_high", "decode"}
    assert report.errors["gather"] == 0 and report.ran_on.startswith("onnxruntime on cpu; score and gather on cpu; ")
    assert 0 < max(report.errors.values()) <= LIMITS["fp16"][0] and report.overlap == 1.0 and report.cosine > 0.9999


def test_the_command_prints_and_writes(plan, tmp_path, capsys):
    assert cli.main(["verify", str(plan), "-o", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert "ran on" in out and "onnxruntime on cpu" in written["ran_on"] and "encode_high" in out and "within its limits" in out and written["passed"] and written["why"] is None
    assert cli.main(["verify", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_relative_error"] == pytest.approx(written["max_relative_error"])
    assert cli.main(["verify", str(plan), "-o", str(tmp_path / "no" / "r.json")]) == 1


def test_a_machine_that_computes_otherwise_is_refused_by_stage(plan, monkeypatch, tmp_path, capsys):
    original = Session.encode_high
    monkeypatch.setattr(Session, "encode_high", lambda self, *arguments: original(self, *arguments) * 1.02)
    with pytest.raises(RuntimeFailedError, match=r"\[verify\] encode_high is off by .*allowed 5e-03.*ps3 build"):
        verify(plan)
    assert cli.main(["verify", str(plan), "-o", str(tmp_path / "r.json")]) == 1
    assert "encode_high is off" in capsys.readouterr().err and not json.loads((tmp_path / "r.json").read_text())["passed"]


def test_a_machine_that_cuts_other_patches_is_refused_at_gather(plan, monkeypatch):
    original = Session.gather
    monkeypatch.setattr(Session, "gather", lambda self, *arguments: (original(self, *arguments)[0] + np.float32(0.1), original(self, *arguments)[1]))
    with pytest.raises(RuntimeFailedError, match=r"\[verify\] gather is off by"):
        verify(plan)


def test_bundles_without_reference_values_say_how_to_get_them(seeded):
    with pytest.raises(BundleError, match="no reference values.*ps3 build .* --runtime onnx"):
        verify(seeded)


@pytest.fixture
def reference(plan, monkeypatch):
    """The plan's reference values, to be changed: what is in this dict is what verify finds in the bundle."""
    with Bundle.open(plan) as bundle:
        kept = {name: array.copy() for name, array in bundle.tensors(REFERENCE).items()}
    tensors = Bundle.tensors
    monkeypatch.setattr(Bundle, "tensors", lambda self, name: kept if name == REFERENCE else tensors(self, name))
    return kept


def refusal(plan):
    """What verify() says of reference values that are none of its model's."""
    with pytest.raises(BundleError, match=r"\[verify\] the reference values of .*half.plan do not fit its model: .* Build the bundle again.") as caught:
        verify(plan)
    return str(caught.value)


def test_reference_values_that_leave_something_out_are_a_bad_bundle(plan, reference):
    """Also all of a stage, a network's or the whole but for frame and picks: nothing would be measured, and pass."""
    whole = dict(reference)
    for stage in ("frame", "picked_756", "picked_1512_2", "score.prob.at", "encode_low.tokens.largest", "score", "encode_prompt", "decode.pooled", "encode_high", "gather", "encode_low.key_0"):
        for name in [name for name in whole if name.startswith(stage)]:
            del reference[name]
        assert "is missing" in refusal(plan)
        reference |= whole
    for name in [name for name in whole if name != "frame" and not name.startswith("picked_")]:
        del reference[name]
    assert "is missing" in refusal(plan)


@pytest.mark.parametrize("name, value, says", [
    ("score.prob", lambda array: np.full_like(array, np.nan), "every one finite"), ("decode.pooled", lambda array: np.where(array == array[0], np.inf, array), "every one finite"),
    ("encode_high.tokens.largest", lambda array: np.array([np.inf, array[1]], np.float32), "every one finite"),
    ("encode_high.tokens.largest", lambda array: np.array([array[0], np.nan], np.float32), "every one finite"),
    ("score.prob.largest", lambda array: array[:1], "the largest value and how many"), ("score.prob.largest", lambda array: np.tile(array, 2), "the largest value and how many"),
    ("score.prob.largest", lambda array: array[None], r"float32 \(1, 2\)"), ("score.prob.largest", lambda array: array * [1, 0], "largest is float64"),
    ("score.prob.largest", lambda array: array * np.float32([1, -1]), "how many there are"),
    ("score.prob.at", lambda array: array[:-1], "as many that ascend"), ("score.prob.at", lambda array: array[::-1], "as many that ascend"),
    ("score.prob.at", lambda array: np.zeros_like(array), "as many that ascend"), ("score.prob.at", lambda array: array - 1, "as many that ascend"),
    ("score.prob.at", lambda array: array.astype(np.float32), "one row of int32"), ("score.prob", lambda array: array.reshape(27, 27), r"float32 \(27, 27\)"),
    ("score.prob", lambda array: array.astype(np.int32), "one row of float32"), ("score.prob", lambda array: array.view(np.uint16), "one row of float32"),
    ("picked_756", lambda array: array[0], r"int32 \(\)"), ("picked_756", lambda array: array[None], "one row of int32"), ("picked_756", lambda array: array.astype(np.int64), "one row of int32"),
    ("picked_756", lambda array: array[:0], "0 ids"), ("picked_756_1", lambda array: array[:-1], "that ascend are needed"), ("picked_756", lambda array: array[::-1], "that ascend are needed"),
    ("picked_756_3", lambda array: array + 54 ** 2, "of 2916 patches"), ("picked_756", lambda array: array - 54 ** 2, "that ascend are needed"),
    ("picked_756", lambda array: np.append(array[:-1], np.int32(-2 ** 31)), "that ascend are needed"),
    ("frame", lambda array: array[:100], "frame is no picture"), ("frame", lambda array: array[None], "one row of uint8"), ("frame", lambda array: array[:0], "frame is no picture"),
    ("frame", lambda array: np.frombuffer(b"GIF89a" + bytes(100), np.uint8), "frame is no picture"), ("score.heat", lambda _: np.zeros(3, np.float32), "score.heat is unknown"),
    ("shadow", lambda _: np.zeros((), np.float32), "shadow is unknown")])
def test_reference_values_that_do_not_fit_are_a_bad_bundle(plan, reference, name, value, says):
    reference[name] = value(reference.get(name))
    assert re.search(says, refusal(plan))


def test_too_small_a_sample_is_a_bad_bundle(plan, reference):
    """Every value of a stage but the first few could be wrong."""
    for part in ("", ".at"):
        reference[f"encode_low.tokens{part}"] = reference[f"encode_low.tokens{part}"][:9]
    assert re.search("holds 9 values of .* 2048 at least", refusal(plan))


def test_a_sample_of_another_size_is_infinitely_off_and_json_says_null(plan, reference, capsys, tmp_path):
    """Its cosine, too, which would be of other values."""
    reference["decode.pooled.largest"][1] += 1
    assert cli.main(["verify", str(plan), "--json", "-o", str(tmp_path / "r.json")]) == 1
    out, err = capsys.readouterr()
    strict = lambda text: json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    found = strict(out)
    assert found == strict((tmp_path / "r.json").read_text()) and found["max_relative_error"]["decode"] is None and found["embedding_cosine"] is None and not found["passed"]
    assert "decode is off by inf" in err and "decode is off by inf" in found["why"] and found["max_relative_error"]["score"] < 5e-3


def test_a_largest_value_that_is_none_excuses_nothing(plan, reference):
    reference["encode_high.tokens.largest"][0] = 3e38
    reference["encode_high.tokens"] = reference["encode_high.tokens"] * np.float32(1.1)
    with pytest.raises(RuntimeFailedError, match="encode_high is off by"):
        verify(plan)


def test_a_frame_of_one_pixel_is_measured_too(plan, reference):
    """Its values are of another frame."""
    reference["frame"] = sample({}, np.zeros((1, 1, 3), np.uint8))["frame"]
    with pytest.raises(RuntimeFailedError, match="encode_low is off by"):
        verify(plan)


def test_every_output_that_networks_imply_is_one_that_is_observed(seeded, photo):
    for path in (seeded, None):
        with Session(path) as session:
            found, g = observe(session, np.ascontiguousarray(photo[::8, ::8]), "a boat"), session.geometry
            picked = {f"picked_{px}{view}" for px in g["scales_px"][1:] for view in VIEWS}
            assert set(found) == {*outputs_of(session.bundle.manifest), *picked} and len(set(outputs_of(session.bundle.manifest))) == len(found) - len(picked)
            check_reference(sample(found, photo[:9, :9]), session.bundle.manifest)


def test_no_number_is_infinitely_off():
    """Whichever of several outputs of a stage it is in: a maximum forgets it."""
    observed = {"encode_low.tokens": np.ones((70, 64), np.float32), "encode_low.features": np.ones(9, np.float32), "decode.pooled": np.ones(64, np.float32)}
    for name in observed:
        kept = sample(observed, np.zeros((9, 7, 3), np.uint8))
        kept[name] = np.full_like(kept[name], np.nan)
        report = compare(kept, observed)
        assert report.errors[name.split(".")[0]] == float("inf") and report.wrong("int4")
        kept = sample({**observed, name: observed[name] * np.float32(np.nan)}, np.zeros((9, 7, 3), np.uint8))
        assert compare(kept, observed).errors[name.split(".")[0]] == float("inf")


def test_samples_find_a_single_wrong_stage_and_what_is_missing():
    rng = np.random.default_rng(0)
    observed = {"encode_low.tokens": rng.standard_normal((700, 64), np.float32), "score.prob": rng.random((27, 27), np.float32), "decode.pooled": rng.standard_normal(64, np.float32),
                "picked_756": np.arange(100, dtype=np.int32)}
    picture = rng.integers(0, 256, (9, 7, 3), np.uint8)
    kept = sample(observed, picture)
    np.testing.assert_array_equal(frame_of(kept), picture)
    assert kept["encode_low.tokens"].size <= 4096 and compare(kept, observed) == Report({"encode_low": 0.0, "score": 0.0, "decode": 0.0}, 1.0, pytest.approx(1.0))
    shifted = {**observed, "picked_756": np.arange(10, 110, dtype=np.int32), "score.prob": observed["score.prob"] + np.float32(0.5)}
    report = compare(kept, shifted)
    assert report.overlap == 0.9 and report.errors["score"] > 0.4 and report.errors["encode_low"] == 0
    assert [line.split()[0] for line in report.wrong("fp16")] == ["score", "select"]
    assert "fewer than 99%: places" in report.table() and "fewer than" not in compare(kept, observed).table()
    for wrong in (observed["encode_low.tokens"][:-1], np.full((700, 64), np.nan, np.float32)):
        assert compare(kept, {**observed, "encode_low.tokens": wrong}).errors["encode_low"] == float("inf")
    del observed["encode_low.tokens"]
    assert compare(kept, observed).errors["encode_low"] == float("inf")


def test_values_of_a_real_frame_are_those_of_an_ask(session, photo):
    found = observe(session, photo, "a boat")
    encoding = session.encode(photo, "a boat")
    np.testing.assert_array_equal(found["score.prob"], encoding.prob)
    for px, ids in encoding.picked.items():
        np.testing.assert_array_equal(found[f"picked_{px}"], ids)
    np.testing.assert_array_equal(found["encode_low.tokens"], encoding.tokens[:encoding.num_low])


def test_outputs_of_a_look_are_gone_before_the_next_one(session, photo, monkeypatch):
    made, low = [], Session._encode_low

    def encode_low(self, patches):
        gc.collect()
        assert not [each for each in made if each() is not None], "keys and values of one look are held through another"
        found = low(self, patches)
        made.extend(weakref.ref(array) for tokens, kv in found[0] for array in (tokens, *kv.values()))
        return found
    monkeypatch.setattr(Session, "_encode_low", encode_low)
    found = observe(session, np.ascontiguousarray(photo[::4, ::4]), "a boat")
    assert len(made) > 4 and {"picked_756", "picked_756_1", "picked_756_3"} <= set(found)


def test_fewer_patches_than_scales_end_too(session, photo):
    found = observe(session, np.ascontiguousarray(photo[::4, ::4]), "a boat", most=1)
    assert len(found["encode_high.tokens"]) == 3, "one of each scale"


def test_a_language_model_is_held_to_its_reference_too(tmp_path, monkeypatch):
    path = tmp_path / "words.plan"
    build_engine("default", path, EngineOptions("onnx", precision="fp32"))
    report = verify(path)
    assert report.errors["decode"] < 1e-4 and "decode" in report.table()
    embed = TokenEmbedding.__call__
    monkeypatch.setattr(TokenEmbedding, "__call__", lambda self, ids: 0.5 * embed(self, ids) ** 2)
    with pytest.raises(RuntimeFailedError, match=r"decode is off by \S+ \(allowed 1e-01\)"):
        verify(path)


def test_the_coarsest_network_decides(plan):
    with Bundle.open(plan) as bundle:
        manifest = bundle.manifest
    assert precision_of(manifest) == "fp16"
    assert precision_of({"networks": {"encode": {"precision": "int8"}, "pool": {"precision": "fp16"}, "decode": {"precision": "int4"}}}) == "int8"
