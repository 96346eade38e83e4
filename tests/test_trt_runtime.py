"""The adapter of TensorRT engines, driven with a stand-in of the vendor's module and of the GPU (tests/standin).

The stand-in does nothing until a stream is waited for, keeps count of every byte, and runs the engine's ONNX in ONNX Runtime: so what is
checked are calls, shapes, order, lifetimes and numbers. That a real engine runs on a real GPU is for `ps3 verify` to say there.
"""
import ctypes
import gc
import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from conftest import ROOT
from ps3_sdk.bundle import Bundle, describe
from ps3_sdk.errors import BundleError, ClosedError, ExportError, InputError, RuntimeFailedError, RuntimeMissingError
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_options import EngineOptions, check_options
from ps3_sdk.verify import verify

TOKENS = 64
PANEL = ROOT / "examples" / "frames" / "panel_4k.jpg"


@pytest.fixture(scope="module")
def plans(seeded, standin, tmp_path_factory):
    """{runtime: engine.plan}: fp16 engines of the stand-in, and the same networks for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("plans")
    options = {"tensorrt": EngineOptions("tensorrt", max_tokens=2559, max_batch=2), "onnx": EngineOptions("onnx", precision="fp16")}
    for runtime, each in options.items():
        build_engine(seeded, folder / f"{runtime}.plan", each)
    return {runtime: folder / f"{runtime}.plan" for runtime in options}


@pytest.fixture
def gpu(standin):
    """The stand-in's GPU, as new."""
    state = standin.GPU
    state.__init__()
    yield state
    gc.collect()
    state.fail.clear()


@pytest.fixture
def session(plans, gpu):
    with ps3_sdk.Session(plans["tensorrt"], verify=False) as opened:
        yield opened
    gc.collect()
    assert not gpu.memory and not gpu.queues and not gpu.graphs and not gpu.contexts, "closing gives everything back"


def test_an_ask_is_the_one_of_the_same_networks_elsewhere(session, plans, photo):
    with ps3_sdk.Session(plans["onnx"], verify=False) as other:
        ours, theirs = session.ask(photo, "the name plate", tokens=TOKENS, choices=["a", "b"]), other.ask(photo, "the name plate", tokens=TOKENS, choices=["a", "b"])
        assert {px: ids.tolist() for px, ids in ours.picked.items()} == {px: ids.tolist() for px, ids in theirs.picked.items()}
        assert [choice.similarity for choice in ours.choices] == pytest.approx([choice.similarity for choice in theirs.choices], abs=1e-3), "attention is rounded elsewhere there"
        np.testing.assert_allclose(ours.prob, theirs.prob, atol=5e-4)


def test_batches_are_cut_and_joined_on_the_device(session, photo):
    one = session.look(photo).encode("a boat", tokens=TOKENS)
    looks = session.look_many([photo, photo[:, ::-1].copy()], batch=2)
    both = looks[0].ask_many(["a boat", "the sea"], batch=2, tokens=TOKENS)
    assert len(looks[1].encode("a boat", tokens=TOKENS).tokens) == len(one.tokens)
    assert {px: ids.tolist() for px, ids in both[0].picked.items()} == {px: ids.tolist() for px, ids in one.picked.items()}
    np.testing.assert_allclose(looks[0].encode("a boat", tokens=TOKENS).tokens, one.tokens, atol=2e-2)


def test_keys_and_values_stay_on_the_device(session, gpu, photo):
    look, g = session.look(photo), session.geometry
    assert all(type(kv).__name__ == "DeviceTensor" for kv in look.kv.values())
    gpu.calls.clear()
    session.encode_high(*session.gather(look.frame, {756: np.arange(8, dtype=np.int32)}), look.kv)
    assert gpu.calls.count("cuMemcpyHtoDAsync_v2") == 2, "patches and position alone"
    assert gpu.calls.count("cuMemcpyDtoHAsync_v2") == 1, "tokens alone"
    assert np.asarray(look.kv["past_key_0"]).shape == look.kv["past_key_0"].shape == (1, g["heads"], 729, g["width"] // g["heads"])


def test_no_memory_is_taken_by_an_ask(session, gpu, photo):
    for _ in range(2):
        session.ask(photo, "a boat", tokens=TOKENS)
        gc.collect()
    before, gpu.calls[:] = len(gpu.memory), []
    for tokens in (TOKENS, 17, TOKENS):
        session.ask(photo, "a boat", tokens=tokens)
        gc.collect()
    assert "cuMemAlloc_v2" not in gpu.calls and len(gpu.memory) == before


def test_the_third_run_of_a_size_launches_a_captured_graph(session, gpu, photo):
    answers = []
    for _ in range(4):
        gpu.calls.clear()
        answers.append(session.encode(photo, "a boat", tokens=TOKENS))
        gc.collect()
    assert gpu.calls.count("cuGraphLaunch") >= 3 and "execute_async_v3" not in gpu.calls
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.tokens, answers[0].tokens)


@pytest.mark.parametrize("fails", ["capture", "execute while capturing"])
def test_what_cannot_be_captured_still_runs_and_half_a_capture_is_not_kept(session, gpu, photo, fails):
    gpu.fail[fails] = True
    first, *rest = (session.encode(photo, "a boat", tokens=TOKENS).tokens for _ in range(3))
    assert not gpu.graphs
    for tokens in rest:
        np.testing.assert_array_equal(tokens, first)


def test_the_callers_stream_is_used_and_left_alone(plans, gpu, photo):
    gpu.queues[77] = []
    with ps3_sdk.Session(plans["tensorrt"], verify=False, stream=77) as session:
        for _ in range(3):
            session.ask(photo, "a boat", tokens=8)
        assert gpu.captured_on and 77 not in gpu.captured_on, "where others' work would be captured, too"
        assert set(gpu.waited_for) == {77}
    assert list(gpu.queues) == [77]


def test_memory_of_other_sizes_is_let_go_of_when_it_is_needed(session, gpu, photo):
    looks = session.look_many([photo] * 2, batch=2)
    del looks
    gc.collect()
    gpu.memory_bytes = sum(map(len, gpu.memory.values()))
    assert session.look(photo).ask("a boat", tokens=8).picked


def test_a_stream_for_an_onnx_bundle_is_refused(plans):
    with pytest.raises(InputError, match="no engine that runs on one"):
        ps3_sdk.Session(plans["onnx"], stream=1)


def test_verify_measures_on_this_machine_and_names_the_stage(plans, gpu, monkeypatch, standin):
    report = verify(plans["tensorrt"])
    assert max(report.errors.values()) < 5e-3 and report.overlap >= 0.99 and report.cosine > 0.9999
    original = standin.Driver.to_host

    def wrong(self, host, address, num_bytes, stream):      # a device that computes wrongly
        original(self, host, address, num_bytes, stream)
        if num_bytes > 100_000:
            self.gpu.enqueue(stream, lambda: ctypes.memset(host, 0, num_bytes // 2))
    monkeypatch.setattr(standin.Driver, "to_host", wrong)
    with pytest.raises(RuntimeFailedError, match=r"encode_low is off by .*rebuild") as caught:
        verify(plans["tensorrt"])
    assert caught.value.report.errors["encode_low"] > 0.1


def test_the_same_path_drives_plain_tensorrt(seeded, gpu, tmp_path):
    """Options, progress, timing cache, refusals of the builder."""
    cache, lines = tmp_path / "kernels.cache", []
    build_engine(seeded, tmp_path / "a.plan", EngineOptions("tensorrt", timing_cache=cache, workspace_gb=1.0), progress=lines.append)
    assert cache.read_bytes() == b"timed" * 4 and "build encode: 100 %" in lines
    with Bundle.open(tmp_path / "a.plan") as made:
        entry = made.manifest["networks"]["encode"]
        assert entry["runtime"] == "tensorrt" and entry["engine"]["sms"] == [87] and entry["engine"]["workspace_bytes"] == 1 << 30 and entry["weights"] is None
        assert made.manifest["tools"]["tensorrt"] == "10.3.0" and not any(name.endswith(".onnx") for name in made.members)
    with pytest.raises(ExportError, match="tensorrt 10.3.0 did not build encode: Could not find any implementation.*larger --workspace than"):
        build_engine(seeded, tmp_path / "b.plan", EngineOptions("tensorrt", workspace_gb=0.0001))
    cache.write_bytes(b"of another")
    with pytest.raises(ExportError, match="timing cache .* is of another GPU"):
        build_engine(seeded, tmp_path / "b.plan", EngineOptions("tensorrt", timing_cache=cache))
    with pytest.raises(ExportError, match="sm 86 was asked for; TensorRT builds for the GPU it runs on, here sm_87"):
        build_engine(seeded, tmp_path / "b.plan", EngineOptions("tensorrt", sms=(86,)))
    with pytest.raises(InputError, match="only TensorRT times its kernels"):
        check_options(EngineOptions("tensorrt-rtx", timing_cache=cache))
    assert not (tmp_path / "b.plan").exists()


# -- bad input: a clear refusal with the fix ------------------------------------------------------------------------------

def opened(plans):
    return ps3_sdk.Session(plans["tensorrt"], verify=False)


def test_another_gpu(plans, gpu):
    gpu.sm = 110
    with pytest.raises(BundleError, match=r"built for sm_87; this GPU, Stand-in, is sm_110. Rebuild: ps3 build"):
        opened(plans)
    assert not gpu.memory and not gpu.contexts


def test_another_release(plans, gpu, monkeypatch):
    import tensorrt
    monkeypatch.setattr(tensorrt, "__version__", "10.13.2.6")
    with pytest.raises(BundleError, match=r"built by tensorrt 10.3.0; here is 10.13.2.6.*pip install 'tensorrt==10.3.0.\*', or: Rebuild"):
        opened(plans)


def test_too_old_a_release(plans, gpu, monkeypatch):
    import tensorrt
    monkeypatch.setattr(tensorrt, "__version__", "8.6.1")
    with pytest.raises(RuntimeMissingError, match="is 8.6.1; at least 10"):
        opened(plans)


def test_a_driver_that_is_too_old(plans, gpu):
    gpu.cuda_version = (11, 4)
    with pytest.raises(RuntimeMissingError, match="serves CUDA up to 11.4.*Update the driver"):
        opened(plans)
    gpu.cuda_version, gpu.fail["deserialize"] = (12, 0), "CUDA driver version is insufficient for CUDA runtime version"
    with pytest.raises(RuntimeMissingError, match="driver is too old"):
        opened(plans)


def test_an_engine_of_another_platform(plans, gpu, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BundleError, match="built for linux-.*; this is linux-riscv64"):
        opened(plans)


def test_a_truncated_or_altered_engine(plans, gpu, tmp_path):
    data = bytearray(plans["tensorrt"].read_bytes())
    (tmp_path / "short.plan").write_bytes(data[:-5000])
    with pytest.raises(BundleError):
        ps3_sdk.Session(tmp_path / "short.plan")
    at = data.index(b"standin!")
    data[at:at + 8] = b"damaged!"
    (tmp_path / "damaged.plan").write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        ps3_sdk.Session(tmp_path / "damaged.plan")
    with pytest.raises(BundleError, match="magic tag.*truncated, altered"):
        ps3_sdk.Session(tmp_path / "damaged.plan", verify=False)


def rows(session, patches, positions):
    return np.zeros((patches, 3 * session.patch_px ** 2), np.float32), np.zeros((positions, session.geometry["width"]), np.float32)


def test_keys_and_values_from_the_host_are_those_on_the_device(session, photo):
    look, (patches, positions) = session.look(photo), rows(session, 6, 6)
    patches[:] = np.random.default_rng(0).normal(size=patches.shape)
    stayed = session.encode_high(patches, positions, look.kv)
    copied = session.encode_high(patches, positions, {name: np.asarray(values) for name, values in look.kv.items()})
    assert np.abs(stayed).max() > 0
    np.testing.assert_array_equal(stayed, copied)


def test_bfloat16_from_the_host_is_rounded_not_reinterpreted():
    from ps3_sdk.runtimes.device_memory import host_array
    values = np.array([1.0, -2.5, 1 + 2 ** -8, 1 + 3 * 2 ** -8, np.inf, -np.inf, np.nan, 3.0e38, 0.0], np.float32)
    bits = host_array(values, "bfloat16")
    back = (bits.astype(np.uint32) << 16).view(np.float32)
    assert bits.dtype == np.uint16 and np.array_equal(host_array(bits, "bfloat16"), bits)
    np.testing.assert_array_equal(back[[0, 1, 2, 3, 4, 5, 6, 8]], np.array([1, -2.5, 1, 1 + 2 ** -6, np.inf, -np.inf, np.nan, 0], np.float32))
    assert back[7] == pytest.approx(3.0e38, rel=2 ** -8)


def test_more_tokens_than_the_profile(session, photo):
    with pytest.raises(InputError, match=r"tokens 1\.\.2559.*ps3 build .*--max-tokens 2600"):
        session.encode_high(*rows(session, 2600, 2600), session.look(photo).kv)
    with pytest.raises(InputError, match=r"batch 1\.\.2.*--max-batch 3"):
        session.look_many([photo] * 3, batch=3)
    assert session.ask(photo, "a boat", tokens=8).picked


def test_wrong_shapes_and_types_are_named(session, photo):
    kv = session.look(photo).kv
    with pytest.raises(InputError, match=r"patches has shape \(1, 4, 587\); .*588.* is needed"):
        session.encode_high(rows(session, 4, 4)[0][:, 1:], rows(session, 4, 4)[1], kv)
    with pytest.raises(InputError, match="tokens is 5; another input has 4"):
        session.encode_high(*rows(session, 4, 5), kv)


def command_in(text):
    """The options of the `ps3 build` that a message names, as the command would take them. Raises ExportError where it would be refused."""
    from ps3_sdk.cli import _parser
    from ps3_sdk.export.engine_options import from_arguments
    words = text[text.index("ps3 build "):].split()
    given = _parser().parse_args(["build", *words[2:]])
    options = from_arguments(given)
    check_options(options)
    return options


@pytest.mark.parametrize("runtime, sm, precision", [("tensorrt", 87, "fp16"), ("tensorrt-rtx", 120, "fp16"), ("tensorrt-rtx", 87, "fp16"), ("tensorrt-rtx", 90, "int8"),
                                                    ("tensorrt-rtx", 75, "bf16"), ("tensorrt", 87, "fp8"), ("tensorrt", 72, "bf16")])
def test_the_rebuild_that_a_refusal_names_is_one_that_is_taken(tmp_path, runtime, sm, precision):
    from ps3_sdk.runtimes.trt_vendor import rebuild_command
    (tmp_path / "a.jpg").write_bytes(b"")
    entry = {"precision": precision, "engine": {"sms": [86, 89], "profiles": [{"batch": [1, 1, 2], "tokens": [729] * 3, "past": [0] * 3}, {"batch": [1, 1, 2], "tokens": [1, 1, 800], "past": [729] * 3}]}}
    networks = {"encode": entry, "encode_prompt": {"precision": precision, "engine": {"sms": [86, 89], "profiles": [{"batch": [1, 1, 32]}]}}}
    for name in networks:
        options = command_in(rebuild_command(runtime, networks, name, sm).replace("FOLDER", str(tmp_path)))
        assert (options.precision, options.max_tokens, options.max_batch) == (precision if sm not in (72, 75) and precision != "fp8" else "fp16", 800, 2)
        assert options.runtime == ("tensorrt-rtx" if sm in (75, 120) else "tensorrt") and options.sms == {120: (86, 89, 120), 75: (75, 86, 89)}.get(sm, ())
    assert command_in(rebuild_command(runtime, networks, "encode", sm, max_batch=5).replace("FOLDER", str(tmp_path))).max_batch == 5
    entry["engine"]["profiles"][1]["tokens"] = [1, 1, 500]      # fewer than a look at low resolution takes
    assert command_in(rebuild_command(runtime, networks, "encode", sm).replace("FOLDER", str(tmp_path))).max_tokens == 500


def test_a_precision_that_this_gpu_lacks_is_refused_before_any_work(seeded, gpu, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")         # which calibrating would notice
    with pytest.raises(ExportError, match=r"fp8 for sm_87 .Jetson Orin.; that GPU has no fp8"):
        build_engine(seeded, tmp_path / "o.plan", EngineOptions("tensorrt", precision="fp8", calibrate=tmp_path))


# -- the embedded bundle, whose engines see and whose language model stays with ONNX Runtime ----------------------------

@pytest.fixture(scope="module")
def default_plan(standin, tmp_path_factory):
    path = tmp_path_factory.mktemp("default") / "default.plan"
    build_engine("default", path, EngineOptions("tensorrt", max_tokens=964, check_frame=PANEL))
    return path


def test_engines_of_the_embedded_bundle_answer_in_words(default_plan, gpu):
    with Bundle.open(default_plan) as bundle:
        parity = bundle.manifest["parity"]
        assert {"encode_low", "encode_high", "score", "project", "prompt_head", "decode"} <= set(parity), "what was not built keeps its measurement"
        assert max(entry["max_relative_error"] for entry in parity.values()) <= 5e-3 and bundle.manifest["verify"]["picked_overlap"] >= 0.99
    with ps3_sdk.Session(default_plan, verify=False) as engines, ps3_sdk.Session() as networks:
        ours, theirs = engines.ask(PANEL, "what is written on the purple search field?"), networks.ask(PANEL, "what is written on the purple search field?")
        same = sum(np.isin(ids, theirs.picked[px]).sum() for px, ids in ours.picked.items())
        assert same >= 0.99 * sum(map(len, theirs.picked.values()))
        assert ours.text == theirs.text and ours.confidence == pytest.approx(theirs.confidence, abs=0.1)


def test_more_blocks_than_the_engine_takes_are_projected_piece_by_piece(default_plan, gpu):
    with ps3_sdk.Session(default_plan, verify=False) as engines, ps3_sdk.Session() as networks:
        assert engines.language._most_blocks == 964 // 4
        blocks = np.random.default_rng(0).standard_normal((500, 4 * engines.geometry["width"]), np.float32)
        made, wanted = (each.language._project(blocks, 3, np.arange(500), 135) for each in (engines, networks))
        assert made.shape == wanted.shape
        np.testing.assert_allclose(made, wanted, atol=5e-3 * np.abs(wanted).max())


def test_an_engine_of_few_tokens_still_projects_a_whole_low_res_look():
    from ps3_sdk.export.engine_bundle import profiles_of
    from ps3_sdk.session import DEFAULT_BUNDLE
    with Bundle.open(DEFAULT_BUNDLE) as bundle:
        assert profiles_of("project", bundle.manifest, EngineOptions("tensorrt", max_tokens=64))[0]["blocks"][2] == 14 * 14


def test_an_engine_of_few_tokens_is_verified_all_the_same(seeded, gpu, tmp_path):
    build_engine(seeded, tmp_path / "few.plan", EngineOptions("tensorrt", max_tokens=64))
    report = verify(tmp_path / "few.plan")
    assert report.errors["encode_high"] < 5e-3


def test_memory_that_runs_out_when_opening(plans, gpu):
    gpu.memory_bytes = 1 << 20
    with pytest.raises(RuntimeFailedError, match="memory is full, [01] MB are free beside what it has taken so far. Close other programs.*--max-tokens") as caught:
        opened(plans)
    assert "can be used further" not in str(caught.value)
    gc.collect()
    assert not gpu.memory and not gpu.contexts


def test_memory_that_runs_out_in_an_ask_leaves_the_session_usable(session, gpu, photo):
    look = session.look(photo)
    gpu.memory_bytes = sum(map(len, gpu.memory.values()))
    with pytest.raises(RuntimeFailedError, match="can be used further: let go of looks"):
        session.look(photo)
    assert look.ask("a boat", tokens=8).picked
    del look
    gc.collect()
    assert session.look(photo).ask("a boat", tokens=8).picked


def test_an_engine_that_refuses_a_run_leaves_the_session_usable(session, gpu, photo):
    gpu.fail["execute"] = True
    with pytest.raises(RuntimeFailedError, match="session can be used further"):
        session.look(photo)
    gpu.fail.clear()
    assert session.ask(photo, "a boat", tokens=8).picked


def test_a_gpu_lost_in_an_ask_closes_the_session(session, gpu, photo):
    look = session.look(photo)
    gpu.fail["cuStreamSynchronize"] = 719, "CUDA_ERROR_LAUNCH_FAILED"
    with pytest.raises(RuntimeFailedError, match="GPU was lost in cuStreamSynchronize .CUDA_ERROR_LAUNCH_FAILED.*This session is closed"):
        look.ask("a boat", tokens=8)
    gpu.fail.clear()
    with pytest.raises(ClosedError, match="lost in an earlier run"):
        look.ask("a boat", tokens=8)


def test_a_look_that_outlives_its_session(plans, gpu, photo):
    with opened(plans) as session:
        look = session.look(photo)
    with pytest.raises(ClosedError):
        look.ask("a boat")
    with pytest.raises(ClosedError, match="outlived"):
        np.asarray(look.kv["past_key_0"])


def test_info_tells_what_the_engines_are_for(plans):
    with Bundle.open(plans["tensorrt"]) as bundle:
        text = describe(bundle)
        record = bundle.manifest["networks"]["encode"]["engine"]
    assert "tensorrt 10.3.0 for sm_87" in text and "not yet run on the device" in text
    assert record["profiles"][0]["tokens"] == [729] * 3 and record["profiles"][1]["past"] == [729] * 3 and "key_0" in record["on_device"]
    assert json.dumps(record)
