"""Large networks that run once per frame or text are in memory only while they run; the answers stay the same."""
import shutil

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
from ps3_sdk import Session
from ps3_sdk.errors import RuntimeFailedError
from ps3_sdk.runtimes import ort


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(ort, "LARGE_BYTES", 0)


def tokens_of(session, photo):
    encoding = session.encode(photo, "a boat", tokens=32)
    return encoding.tokens, encoding.prob


def test_answers_are_the_same(photo, seeded, session, large):
    with Session(seeded) as passing:
        kinds = {name: type(network).__name__ for name, network in passing._networks.items()}
        assert kinds == {"encode": "OrtNetwork", "score_features": "PassingOrtNetwork", "pool": "OrtNetwork", "encode_prompt": "PassingOrtNetwork"}
        for ours, theirs in zip(tokens_of(passing, photo), tokens_of(session, photo)):
            assert np.array_equal(ours, theirs)
        assert passing.ask(photo, "a boat", tokens=8, choices=["red", "green"]).choices


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_bundle_that_changes_on_the_disk_is_gone_on_with(tmp_path, photo, seeded, session, large, how):
    plan = tmp_path / "engine.plan"
    shutil.copy(seeded, plan)
    with Session(plan) as passing:
        if how == "replaced":
            (tmp_path / "new").write_bytes(seeded.read_bytes().replace(b'"ps3-seeded"', b'"another-ps"').replace(b"\x3d", b"\x3e"))
            (tmp_path / "new").rename(plan)
        else:
            plan.unlink()
        for ours, theirs in zip(tokens_of(passing, photo), tokens_of(session, photo)):
            assert np.array_equal(ours, theirs)


def test_a_network_that_cannot_be_opened_is_found_when_the_session_opens(seeded, large, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no such operator")
    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(RuntimeFailedError, match="no such operator"):
        Session(seeded)
