"""Score, gather and position rows on the GPU that the networks run on, driven with stand-ins of the vendor's module, the GPU and the core's
kernels (tests/standin): what travels between host and GPU, what is waited for, what memory is taken. The kernels' own values: tests/test_cuda*.py.
"""
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from conftest import ROOT, why_no_gpu
from ps3_sdk import Frame, _core
from ps3_sdk.errors import ClosedError, InputError, RuntimeFailedError, RuntimeMissingError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import EngineOptions
from ps3_sdk.ops import DeviceOps, HostOps
from ps3_sdk.verify import verify

TOKENS, WHY = 64, why_no_gpu()      # of the real GPU: asked before anything stands in for it


@pytest.fixture(scope="module")
def plan(seeded, standin, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "engine.plan"
    build_engine(seeded, path, EngineOptions("tensorrt", max_tokens=2559, max_batch=2))
    return path


@pytest.fixture
def gpu(standin):
    standin.GPU.__init__()
    yield standin.GPU
    gc.collect()


@pytest.fixture
def kernels(gpu, standin, monkeypatch):
    """A core with kernels."""
    import core_cuda
    core_cuda.gpu, core_cuda.Driverless.gpu = standin, gpu      # another test file's, else
    core_cuda.Cuda.made.clear()
    monkeypatch.setattr(_core, "Cuda", core_cuda.Cuda)
    monkeypatch.setattr(_core, "Frame", core_cuda.frame)
    return core_cuda


@pytest.fixture
def session(plan, kernels, gpu):
    with ps3_sdk.Session(plan, verify=False) as opened:
        assert isinstance(opened.ops, DeviceOps) and opened.ops.where == "cuda"
        yield opened
    gc.collect()
    assert not gpu.memory and not gpu.contexts, "closing gives everything back"


@pytest.fixture
def host_session(plan, gpu):
    with ps3_sdk.Session(plan, verify=False) as opened:
        assert isinstance(opened.ops, HostOps) and opened.ops.where == "cpu"
        yield opened


def on_gpu(frame, kernels):
    frame = Frame.of(frame)
    frame.core = kernels.OnGpu(frame.core)
    return frame


def test_an_encoding_is_the_one_of_the_processors_ops(plan, kernels, gpu, photo, monkeypatch):
    with ps3_sdk.Session(plan, verify=False) as ours:
        a = ours.encode(photo, "the name plate", tokens=300, smooth=True)
        monkeypatch.undo()      # what stands in for the driver stays, and with it no kernels
        with ps3_sdk.Session(plan, verify=False) as theirs:
            assert theirs.ops.where == "cpu"
            b = theirs.encode(photo, "the name plate", tokens=300, smooth=True)
            np.testing.assert_array_equal(a.prob, b.prob)
            np.testing.assert_array_equal(a.tokens, b.tokens)
            assert {px: ids.tolist() for px, ids in a.picked.items()} == {px: ids.tolist() for px, ids in b.picked.items()}
            assert list(a.timing.stages_ms) == list(b.timing.stages_ms)


def test_nothing_large_travels_but_the_tokens(session, kernels, gpu, photo):
    frame = on_gpu(photo, kernels)
    session.encode(frame, "a boat", tokens=TOKENS)
    look = session.look(frame)
    assert type(look.low_features).__name__ == "DeviceTensor" and look.low_features.shape == np.asarray(look.low_features).shape
    before = dict(session.ops.copies)
    gpu.calls.clear()
    picked = look.encode("a boat", tokens=TOKENS).picked
    assert "cuMemcpyHtoDAsync_v2" not in gpu.calls and gpu.calls.count("cuMemcpyDtoHAsync_v2") == 1, "tokens alone"
    moved = {key: session.ops.copies[key] - before[key] for key in before}
    width, places = session.geometry["width"], 27 * 27
    assert moved["to_device_bytes"] == 4 * width + 2 * 4 * sum(map(len, picked.values())), "the prompt, and ids twice"
    assert (moved["to_host"], moved["to_host_bytes"]) == (1, 4 * places), "the probabilities"


def test_a_frame_in_host_memory_is_copied_once_as_it_is(session, photo):
    before = dict(session.ops.copies)
    look = session.look(photo)
    copied = {key: session.ops.copies[key] - before[key] for key in before}
    assert (copied["to_device"], copied["to_device_bytes"]) == (1 + 3, photo.nbytes + 4 * (2 * 27 * 27 + 54 * 54)), "the frame, ids of low-res patches twice and of the view"
    assert look.placed.device == "cuda:0" and look.frame.device == "cpu"
    before = session.ops.copies["to_device"]
    look.encode("a boat", tokens=TOKENS)
    assert session.ops.copies["to_device"] - before == 1 + 2 * 3, "prompt, ids of three scales twice"


def test_a_look_at_a_part_of_an_array_is_that_of_its_copy(session, photo):
    part = photo[100:1180, 200:2120]
    ours, theirs = (session.encode(each, "a boat", tokens=TOKENS) for each in (part, part.copy()))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_no_memory_is_taken_by_an_ask(session, kernels, gpu, photo):
    frame = on_gpu(photo, kernels)
    for _ in range(2):
        session.encode(frame, "a boat", tokens=TOKENS)
        gc.collect()
    before = len(gpu.memory)
    for tokens in (TOKENS, TOKENS - 4, TOKENS):
        session.encode(frame, "a boat", tokens=tokens)
        gc.collect()
    assert len(gpu.memory) == before


def test_batches_are_gathered_into_one_array(session, kernels, photo):
    one = session.look(photo).encode("a boat", tokens=TOKENS)
    looks = session.look_many([photo, photo[:, ::-1].copy()], batch=2)
    both = looks[0].ask_many(["a boat", "the sea"], batch=2, tokens=TOKENS)
    assert {px: ids.tolist() for px, ids in both[0].picked.items()} == {px: ids.tolist() for px, ids in one.picked.items()}
    np.testing.assert_allclose(looks[0].encode("a boat", tokens=TOKENS).tokens, one.tokens, atol=2e-2)


def test_several_threads_get_their_own(session, kernels, photo):
    look = session.look(on_gpu(photo, kernels))
    prompts = ["a boat", "the sea", "a rope", "the sky"] * 3
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: look.encode(prompt, tokens=TOKENS), prompts))
    for prompt, encoding in zip(prompts, together):
        alone = look.encode(prompt, tokens=TOKENS)
        np.testing.assert_array_equal(encoding.prob, alone.prob)
        np.testing.assert_array_equal(encoding.tokens, alone.tokens)


def test_stages_of_their_own_and_verify(session, plan, photo):
    look = session.look(photo)
    patches, position = session.gather(look.frame, {756: np.arange(8, dtype=np.int32)})
    assert (patches.shape, position.shape) == ((8, 588), (8, session.geometry["width"])) and np.asarray(patches).dtype == np.float32
    assert session.encode_high(patches, position, look.kv).shape == (8, session.geometry["width"])
    assert session.encode_high(*session.gather(look.frame, {756: np.empty(0, np.int32)}), look.kv).shape == (0, session.geometry["width"])
    assert max(verify(plan).errors.values()) < 5e-3


def test_values_that_are_none_are_refused(session, photo):
    look = session.look(photo)
    bad = session.encode_prompt("a boat")
    with pytest.raises(InputError, match="NaN"):
        session.ops.score(look.low_features, look.view_features, np.full_like(bad.vector, np.nan))
    broken = np.asarray(look.low_features).copy()
    broken[3] = np.nan
    with pytest.raises(InputError, match="a probability NaN"):
        session.ops.score(broken, look.view_features, bad.vector)
    assert look.encode("a boat", tokens=8).tokens.shape[0] > 729, "and the session goes on"


def test_the_callers_stream_is_that_of_the_ops(plan, kernels, gpu):
    gpu.queues[77] = []
    with ps3_sdk.Session(plan, verify=False, stream=77):
        assert [each.stream for each in kernels.Cuda.made] == [77]


def test_frames_of_the_gpu_come_after_what_wrote_them(plan, kernels, gpu, photo):
    gpu.queues[77] = []
    with ps3_sdk.Session(plan, verify=False, stream=77) as session:
        session.encode(photo, tokens=8)
        assert not kernels.Cuda.made[0].ordered
        session.encode(on_gpu(photo, kernels), tokens=8)
        assert set(kernels.Cuda.made[0].ordered) == {0}, "Frame.of has the legacy stream wait for what wrote the frame"


def test_frames_of_the_gpu_need_kernels(host_session, kernels, photo):
    with pytest.raises(InputError, match=r"lies on cuda:0; this session gathers on the processor, as .*kernels cannot be used .*Frame.of\(frame\).cpu"):
        host_session.look(on_gpu(photo, kernels))


def test_kernels_that_do_not_run_leave_it_to_the_processor(plan, kernels, gpu, photo, monkeypatch):
    def fails(*arguments, **keywords):
        raise RuntimeFailedError("[cuda] no device memory")
    monkeypatch.setattr(kernels.Cuda, "upload", fails)
    with ps3_sdk.Session(plan, verify=False) as session:
        assert session.ops.where == "cpu" and "no device memory" in session.ops.why
        assert session.encode(photo, tokens=8).picked


def test_memory_of_other_sizes_is_let_go_of_when_it_is_needed(session, kernels, gpu, photo):
    session.encode(photo, "a boat", tokens=300)
    gc.collect()
    gpu.memory_bytes = sum(map(len, gpu.memory.values()))
    assert session.encode(photo, "a boat", tokens=16).picked


def test_memory_that_is_full_and_kernels_that_fail_leave_the_session_usable(session, kernels, gpu, photo):
    look = session.look(photo)
    look.encode("a boat", tokens=16)
    gc.collect()
    gpu.memory_bytes = 1
    with pytest.raises(RuntimeFailedError, match="memory is full.*can be used further.*fewer tokens"):
        look.encode("a boat", tokens=1500)
    gpu.memory_bytes = 8 << 30
    gpu.fail["kernels"] = "[gather] the GPU stopped"
    with pytest.raises(RuntimeFailedError, match="GPU stopped"):
        look.encode("a boat", tokens=16)
    gpu.fail.clear()
    assert look.encode("a boat", tokens=16).picked


def test_arrays_on_the_gpu_are_cut_in_place(session):
    rows = session.ops.positions([{756: np.arange(8, dtype=np.int32)}])[0]
    whole = np.asarray(rows)
    for part, wanted in ((rows[2:5], whole[2:5]), (rows[3], whole[3]), (rows[None], whole[None]), (rows[4:2], whole[4:2])):
        assert part.shape == wanted.shape
        if wanted.size:
            np.testing.assert_array_equal(np.asarray(part), wanted)
    with pytest.raises(IndexError, match="steps of 1"):
        rows[::2]
    with pytest.raises(IndexError, match="row 8"):
        rows[8]


def test_after_closing_the_ops_say_so(plan, kernels, gpu, photo):
    with ps3_sdk.Session(plan, verify=False) as session:
        ops, kept = session.ops, session.ops.positions([{756: np.arange(8, dtype=np.int32)}])
    with pytest.raises(ClosedError, match="outlived its session"):
        np.asarray(kept)
    with pytest.raises(ClosedError, match="closed"):
        ops.positions([{756: np.arange(8, dtype=np.int32)}])


def test_residuals_kept_as_rows_and_columns_become_one_table(kernels):
    from ps3_sdk.position import full_residual, position_rows
    rng, geometry = np.random.default_rng(0), {"scales_px": [28, 56], "patch_px": 14, "position_grid": 2, "position": "resize", "width": 6}
    tables = {"position": rng.standard_normal((4, 6), np.float32), "position_row_56": rng.standard_normal((4, 6), np.float32),
              "position_column_56": rng.standard_normal((4, 6), np.float32)}
    ids = np.array([0, 5, 6, 15], np.int32)
    assert full_residual(tables, geometry, 28) is None and full_residual(tables, geometry, 56).shape == (16, 6)
    made = np.asarray(DeviceOps(geometry, tables).positions([{28: ids[:1], 56: ids}]))[0]
    np.testing.assert_allclose(made[1:], position_rows(tables, geometry, 56, ids), atol=1e-6)
    np.testing.assert_array_equal(made[:1], position_rows(tables, geometry, 28, ids[:1]))


def test_without_a_driver_the_networks_adapter_says_what_is_missing(seeded, monkeypatch):
    def no_driver(*_):
        raise RuntimeMissingError("[cuda] no driver")
    monkeypatch.setattr(_core, "Cuda", no_driver)
    with ps3_sdk.Session(seeded) as session:            # runs on the processor anyway
        assert session.ops.where == "cpu"
    if WHY:
        with pytest.raises(RuntimeMissingError, match="ort_cuda"):
            ps3_sdk.Session(seeded, device="cuda")


# -- the acceptance on a GPU (benchmarks/gpu_ask.py), tried with two sessions of the processor ---------------------------

@pytest.fixture
def gpu_ask(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_ask
    return gpu_ask


def test_the_acceptance_tells_equal_from_other_encodings(gpu_ask, seeded, session_of_networks, photo):
    with ps3_sdk.Session(seeded) as ours:
        same = gpu_ask.compare(ours, session_of_networks, photo, photo)
        assert same["overlap"] == 1 and same["error"] < 1e-6
        other = gpu_ask.compare(ours, session_of_networks, photo, photo[::-1].copy())
        assert other["error"] > gpu_ask.ERROR
        told = gpu_ask.clock(ours, photo, 2)
        assert 0 < told["rest_ms"] < told["ms"] and set(told["stages_ms"]) >= {"encode_low", "gather", "encode_high"}


def test_the_acceptance_names_what_is_missed(gpu_ask):
    from gpu_wanted import GATHER, missed
    good = {"checked": {"gather": 24}, "sanitizer": "nothing found", "rows": {GATHER: {"ms": 0.02}}, "encodes": {"a": {"overlap": 1.0, "error": 1e-3, "rest_share": 0.09}},
            "full_size": {"ratio_time_fp16": 9.7, "percent_beside_networks_fp16": 8.0, "s_peer": 0.5}}
    assert not missed(good)
    for change, says in (({"checked": None}, "not compared"), ({"sanitizer": "found something"}, "found something"), ({"rows": {}}, "not timed"),
                         ({"rows": {GATHER: {"ms": 0.2}}}, "0.2000 ms, wanted at most 0.1"), ({"encodes": {}}, "no whole encode"), ({"full_size": None}, "--peer"),
                         ({"encodes": {"a": {"overlap": 0.98, "error": 1e-3, "rest_share": 0.09}}}, "98.0 % of the same patches"),
                         ({"encodes": {"a": {"overlap": 1.0, "error": float("nan"), "rest_share": 0.09}}}, "off by nan"),
                         ({"encodes": {"a": {"overlap": 1.0, "error": 1e-3, "rest_share": 0.33}}}, "33 % beside the networks"),
                         ({"full_size": {"ratio_time_fp16": 2.0, "percent_beside_networks_fp16": 8.0}}, "2.0 times ps3-torch's speed"),
                         ({"full_size": {"ratio_time_fp16": 9.7, "percent_beside_networks_fp16": 32.9}}, "33 % beside the networks")):
        assert [says in line for line in missed({**good, **change})] == [True], change


def test_the_acceptance_says_what_is_not_to_be_had(gpu_ask, seeded, capsys):
    if WHY:
        assert gpu_ask.run(seeded, [], 1) == {} and "not run: [ort_cuda]" in capsys.readouterr().out


@pytest.fixture
def session_of_networks(seeded):
    with ps3_sdk.Session(seeded) as opened:
        yield opened


def test_a_session_whose_gpu_was_lost_is_closed_in_silence(plan, kernels, gpu, photo):
    """What a look says is not hidden by what closing meets, and the bundle is let go of."""
    with pytest.raises(RuntimeFailedError, match="GPU was lost"), ps3_sdk.Session(plan, verify=False) as session:
        gpu.fail.update(cuStreamSynchronize=(719, "CUDA_ERROR_LAUNCH_FAILED"), cuMemFree_v2=(719, "CUDA_ERROR_LAUNCH_FAILED"))
        session.look(photo)
    assert not session._networks and gpu.contexts == 0
    gpu.fail.clear()
