"""Engines of several sizes, and graphs of them; small engines, numbers that are none, a lost GPU: driven as in test_trt_runtime.py with stand-ins of the vendor's module and of the GPU."""
import gc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from ps3_sdk.errors import InputError, RuntimeFailedError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import EngineOptions
from ps3_sdk.verify import verify
from test_trt_runtime import TOKENS, gpu, opened, plans, session      # noqa: F401, gpu, plans and session are fixtures


def test_graphs_of_several_sizes_do_not_disturb_each_other(session, gpu, photo):
    """Two looks of one ask go through one profile in turn: each graph has a context of its own, which nobody else tells anything."""
    first = {tokens: session.encode(photo, "a boat", tokens=tokens).tokens for tokens in (TOKENS, 17)}
    for _ in range(4):
        gpu.calls.clear()
        for tokens, wanted in first.items():
            np.testing.assert_array_equal(session.encode(photo, "a boat", tokens=tokens).tokens, wanted)
            gc.collect()
    assert gpu.calls.count("cuGraphLaunch") >= 4 and "execute_async_v3" not in gpu.calls


def test_a_graph_is_let_go_of_when_others_are_used_more(session, gpu, photo):
    from ps3_sdk.runtimes.graphs import KEPT
    wanted = session.encode(photo, "a boat", tokens=TOKENS).tokens
    for tokens in (TOKENS, TOKENS, *range(20, 20 + KEPT), TOKENS):
        found = session.encode(photo, "a boat", tokens=tokens).tokens
        gc.collect()
    np.testing.assert_array_equal(found, wanted)
    assert len(gpu.graphs) <= 3 * KEPT, "of three networks"


@pytest.mark.parametrize("none", [True, False])
def test_without_room_for_more_contexts_runs_go_on_as_before(session, gpu, photo, monkeypatch, none):
    import tensorrt
    wanted, made = session.encode(photo, "a boat", tokens=TOKENS).tokens, tensorrt.Engine.create_execution_context
    monkeypatch.setattr(tensorrt.Engine, "create_execution_context", lambda self, strategy: None if none else made(self, strategy))
    for _ in range(3):
        np.testing.assert_array_equal(session.encode(photo, "a boat", tokens=TOKENS).tokens, wanted)
    assert bool(gpu.graphs) is not none


def test_an_engine_of_few_tokens_is_asked_in_looks_that_it_takes(seeded, gpu, photo, tmp_path):
    """What a message about a full memory says to build: the default ask is one look of its size, more tokens are several."""
    build_engine(seeded, tmp_path / "few.plan", EngineOptions("tensorrt", max_tokens=64))
    with ps3_sdk.Session(tmp_path / "few.plan", verify=False) as session:
        seen = lambda **options: sum(map(len, session.ask(photo, "a boat", **options).picked.values()))
        assert 55 < seen() <= 64 and 140 <= seen(tokens=150) <= 150
        with pytest.raises(InputError, match=r"\[decode\] \d+ patches are to be pooled into one feature.*built for 729. Ask for at most 729 tokens"):
            session.encode_high_many = lambda *_, **__: pytest.fail("it is said before anything is looked at closely")
            session.ask(photo, "a boat", tokens=1200, choices=["a", "b"])
    gc.collect()


def test_a_second_full_look_in_whole_blocks_fits_an_engine(standin, gpu):
    """Whole blocks carry patches from one look to the next, so that the second is a little larger than a look."""
    from ps3_sdk.export.engine_bundle import profiles_of
    from ps3_sdk.session import DEFAULT_BUNDLE
    from ps3_sdk.encoding import planned_blocks
    with ps3_sdk.Session(DEFAULT_BUNDLE) as session:
        most = profiles_of("encode", session.bundle.manifest, EngineOptions("tensorrt"))[1]["tokens"][2]
        planned = list(map(sum, planned_blocks(session, session.budget(looks=5), 2)))
        assert sum(session.geometry["per_look"]) < max(planned) <= most


def test_features_that_are_no_numbers_are_named_with_their_stage(plans, gpu, monkeypatch, standin):
    """What overflows in half precision is what verify is there to find."""
    import tensorrt
    run = tensorrt.Context.execute_async_v3

    def overflows(self, stream):
        done = run(self, stream)
        for name in self.engine.io:
            if name == "features":
                shape, address = tuple(self.get_tensor_shape(name)), self.addresses[name]
                standin.GPU.enqueue(stream, lambda: standin.GPU.array(address, shape, np.float32).fill(np.nan))
        return done
    monkeypatch.setattr(tensorrt.Context, "execute_async_v3", overflows)
    with pytest.raises(RuntimeFailedError, match=r"encode_low is off by inf") as caught:
        verify(plans["tensorrt"])
    assert caught.value.report.errors["encode_low"] == float("inf") and caught.value.report.overlap == 0


def test_a_session_whose_gpu_was_lost_is_closed_in_silence(plans, gpu, photo, monkeypatch):
    with pytest.raises(RuntimeFailedError, match="GPU was lost"), opened(plans) as session:
        gpu.fail["cuStreamSynchronize"] = 719, "CUDA_ERROR_LAUNCH_FAILED"
        session.look(photo)
    assert session.bundle.members is not None and not session._networks
    gpu.fail.clear()
