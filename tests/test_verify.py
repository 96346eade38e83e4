"""ps3 verify: a bundle held to the reference values inside, on the machine at hand."""
import gc
import json
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
from ps3_sdk.verify import LIMITS, Report, compare, frame_of, observe, precision_of, sample, verify


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


def test_reference_values_that_do_not_fit_are_a_bad_bundle(plan, monkeypatch):
    tensors = Bundle.tensors

    def other(self, name):
        found = tensors(self, name)
        return {key: array for key, array in found.items() if key not in gone}
    monkeypatch.setattr(Bundle, "tensors", other)
    for gone in (("frame",), ("picked_756",), ("score.prob.at",), ("encode_low.tokens.largest",)):
        with pytest.raises(BundleError, match="do not fit its model"):
            verify(plan)


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
