"""ps3 build: sizes that no engine can have, files that are none, a dry run that promises what a build keeps, a builder's own words, a stop from outside."""
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from conftest import PHOTO
from ps3_sdk.budget import fitting
from ps3_sdk.bundle import Bundle
from ps3_sdk.errors import ExportError, InputError
from ps3_sdk.export import engine_options, to_engine
from ps3_sdk.export.build_engine import build_engine
from ps3_sdk.export.engine_bundle import profiles_of
from ps3_sdk.export.engine_options import check_options
from ps3_sdk.export.engine_sizes import Size, check_sizes, estimate, gpu_bytes, least_tokens, looks_of
from ps3_sdk.export.precision import to_float16, typed
from ps3_sdk.export.standard_onnx import read_network
from ps3_sdk.export.stop import ended_by_sigterm
from ps3_sdk.export.write_bundle import BundleWriter
from ps3_sdk.manifest import schema
from ps3_sdk.session import DEFAULT_BUNDLE
from test_build_engine import frames, options     # noqa: F401, frames is a fixture
from test_trt_runtime import gpu     # noqa: F401, a fixture


@pytest.fixture(scope="module")
def embedded():
    with Bundle.open(DEFAULT_BUNDLE) as bundle:
        yield bundle


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr("ps3_sdk.export.build_engine.read_network", lambda *_: pytest.fail("a network is read"))


# -- sizes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("per_look, r", [((85, 341, 2133), 1), ((85, 341, 2133), 2), ((85, 341, 2133), 3), ((64, 256), 2), ((0, 5, 7), 1), ((3, 900), 2), ((512,), 1), ((0, 0), 1)])
def test_from_the_least_max_tokens_on_every_scale_has_patches(per_look, r):
    geometry = {"per_look": list(per_look), "scales_px": [378, 756, 1512, 3780][:len(per_look) + 1], "patch_px": 14}
    manifest = {"geometry": geometry, "language": {"downsample": r} if r > 1 else None}
    least = least_tokens(manifest) - r * r + 1
    whole = lambda most: all(share >= min(r * r, full) for share, full in zip(fitting(geometry, most)["per_look"], per_look))
    assert whole(least) and (not whole(least - 1) or least == 1)
    check_sizes(options("onnx", max_tokens=least + r * r - 1), manifest)
    if least > 1:
        with pytest.raises(InputError, match=rf"max-tokens is {least + r * r - 2}; .* from {least + r * r - 1} on. Leave it out, or give more"):
            check_sizes(options("onnx", max_tokens=least + r * r - 2), manifest)


def test_an_engine_of_the_least_tokens_is_asked_in_looks_at_every_scale(standin, gpu, photo, tmp_path, embedded):
    least = least_tokens(embedded.manifest)
    assert least == 124
    for few in (3, 4, 30, least - 1):
        with pytest.raises(InputError, match=rf"max-tokens is {few}; .*a block of 2 x 2 patches, a row of the language model, from 124 on"):
            build_engine("default", tmp_path / "few.plan", options("tensorrt", max_tokens=few))
    lines = build_engine("default", tmp_path / "few.plan", options("tensorrt", max_tokens=least))
    assert lines[-1] == "an ask, 482 patches by default, is made in 5 looks of at most 120"
    with ps3_sdk.Session(tmp_path / "few.plan", verify=False) as session:
        picked = session.ask(photo, "the sign", max_tokens=1, look_again=0).picked
        assert sorted(picked) == [756, 1512, 3780] and all(len(ids) >= 4 for ids in picked.values()) and 400 < sum(map(len, picked.values())) <= 482
    assert looks_of(options("tensorrt", max_tokens=2562), embedded.manifest) is None and looks_of(options("tensorrt"), embedded.manifest) is None


def test_sizes_that_no_look_of_the_model_and_no_builder_reaches(embedded):
    for wanted, says in ((dict(max_tokens=99_999_999), "max-tokens is 99999999; a look of this model has at most 87483, all patches"),
                         (dict(max_batch=99_999), r"with --max-batch 99999 an engine takes at least \d+\.\d\d GB of the GPU.*the workspace is 64 GB. Give less, or a larger --workspace"),
                         (dict(max_batch=99, max_tokens=3000, workspace_gb=0.5), "with --max-tokens 3000 and --max-batch 99 an engine takes at least 1.26 GB .*workspace is 0.5 GB"),
                         (dict(workspace_gb=0.01), r"\] an engine takes at least .*the workspace is 0.01 GB. Give a smaller --max-tokens, or")):
        with pytest.raises(InputError, match=says):
            check_sizes(options(**wanted), embedded.manifest)
    check_sizes(options(max_tokens=87_483), embedded.manifest)
    check_sizes(options(max_batch=99_999, workspace_gb=1024, precision="fp16", max_tokens=124), {**embedded.manifest, "geometry": {**embedded.manifest["geometry"], "view_px": None}})
    assert gpu_bytes(options(max_batch=6), embedded.manifest) == 6 * gpu_bytes(options(), embedded.manifest) < gpu_bytes(options(max_batch=6, max_tokens=20_000), embedded.manifest)


def test_values_are_bounded_as_the_manifest_is(embedded):
    """What is accepted at the start can be written at the end."""
    engine = schema()["$defs"]["engine"]["properties"]
    assert engine["workspace_bytes"]["anyOf"][1]["maximum"] == engine_options.MOST_GB * 2**30
    sm = engine["sms"]["items"]
    assert (sm["minimum"], sm["maximum"]) == engine_options.SM_RANGE
    most = engine["profiles"]["items"]["additionalProperties"]["items"]["maximum"]
    largest = options(max_tokens=engine_options.MOST_TOKENS, max_batch=engine_options.MOST_BATCH)
    for name in ("encode", "pool", "project", "score_features"):
        assert all(each[2] <= most for profile in profiles_of(name, embedded.manifest, largest) for each in profile.values())
    check_options(largest)
    check_options(options(workspace_gb=1024))
    for wanted, says in ((dict(workspace_gb=1024.5), "workspace is 1024.5 GB; more than 0 and at most 1024"), (dict(max_tokens=engine_options.MOST_TOKENS + 1), "max-tokens is .*from 1 to"),
                         (dict(max_batch=2**31), "max-batch is 2147483648; a whole number from 1 to 2147483647"), (dict(sms=(9999,)), "sm is 9999; a GPU's compute capability.*nvidia-smi"),
                         (dict(sms=(-5,)), "sm is -5"), (dict(sms=(0,)), "sm is 0"), (dict(sms=("86",)), "sm is '86'")):
        for runtime in ("tensorrt", "tensorrt-rtx"):
            with pytest.raises(InputError, match=says):
                check_options(options(runtime, **wanted))


# network -> float32 weights, products, MB of engines of TensorRT-RTX 1.7.1; seconds of the build on two cores
BUILT = [("fp16", {"encode": (1_661_568, 65, 12.8), "score_features": (1_058_656, 13, 3.3), "project": (136_576, 2, 0.5), "prompt_head": (24_704, 1, 0.3)}, 4.4, 8.2),
         ("fp32", {"encode": (1_661_568, 65, 15.3), "score_features": (1_058_656, 13, 5.2), "project": (136_576, 2, 0.7), "prompt_head": (24_704, 1, 0.4)}, 4.4, 11.4),
         ("int8", {"encode": (1_661_568, 65, 14.1), "score_features": (1_058_656, 13, 3.3), "project": (136_576, 2, 0.5), "prompt_head": (24_704, 1, 0.3)}, 11.0, 12.6),
         ("int4", {"encode": (1_661_568, 65, 12.5), "score_features": (1_058_656, 13, 3.3), "project": (136_576, 2, 0.5), "prompt_head": (24_704, 1, 0.3)}, 10.4, 12.8),
         ("fp16", {"encode": (99_120, 25, 4.8), "score_features": (97_248, 10, 1.2), "pool": (23_664, 8, 1.6), "encode_prompt": (69_936, 19, 2.2)}, 4.0, 10.5),
         ("fp16", {"encode": (412_145_136, 217, 854), "score_features": (34_406_016, 13, 70), "pool": (15_240_656, 8, 30)}, 63.5, 65.0)]


@pytest.mark.parametrize("precision, networks, least_s, most_s", BUILT)
def test_sizes_and_times_are_about_those_that_were_measured(precision, networks, least_s, most_s, frames):
    calibrate = frames if precision == "int8" else None
    found = estimate({name: Size(weights, products) for name, (weights, products, _) in networks.items()}, options(precision=precision, calibrate=calibrate))
    assert sum(found.plan_bytes.values()) == pytest.approx(1e6 * sum(mb for *_, mb in networks.values()), rel=0.2)
    assert all(found.plan_bytes[name] == pytest.approx(1e6 * mb, rel=0.35, abs=0.25e6) for name, (*_, mb) in networks.items())
    assert 0.7 * least_s <= found.seconds <= 1.3 * most_s


# -- a dry run refuses what a build would --------------------------------------------------------------------------------

def pictures(tmp_path, *broken):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "z.jpg"):
        (folder / name).symlink_to(PHOTO)
    if "damaged" in broken:
        (folder / "m.jpg").write_bytes(b"no picture")
    if "folder" in broken:
        (folder / "b.jpg").mkdir()
    if "dangling" in broken:
        (folder / "c.jpg").symlink_to(folder / "none")
    return folder


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_dry_run_refuses_what_a_build_refuses_before_any_work(seeded, tmp_path, standin, no_work, dry_run):
    (tmp_path / "flat.png").write_bytes(b"flat")
    damaged = pictures(tmp_path, "damaged")
    for given, says in (
            (dict(output=tmp_path / "no" / "x.plan"), "there is no folder"), (dict(output=tmp_path), "is a folder"), (dict(check_frame=tmp_path / "none.png"), "none.png.*No such file"),
            (dict(check_frame=tmp_path / "flat.png"), "flat.png is not a picture"), (dict(max_tokens=99_999_999), "has at most 87480, all"), (dict(max_tokens=30), "from 31 on"),
            (dict(max_batch=99_999), "the largest GPUs have 288 GB. Give less\\.$"), (dict(sms=(86, 89)), "TensorRT builds for one GPU"), (dict(sms=(9999,)), "sm is 9999"),
            (dict(precision="int8", calibrate=damaged), "m.jpg is not a picture"), (dict(timing_cache=Path("/proc/kernels.cache")), "kernels.cache cannot be written")):
        output = given.pop("output", tmp_path / "x.plan")
        with pytest.raises((InputError, ExportError), match=says):
            build_engine(seeded, output, options("tensorrt", **given), dry_run=dry_run)
    assert sorted(os.listdir(tmp_path)) == ["flat.png", "pictures"]


def test_what_is_called_like_a_picture_and_is_none(tmp_path):
    folder = pictures(tmp_path, "folder")
    assert [path.name for path in engine_options.calibration_files(folder)] == ["a.jpg", "z.jpg"]
    (folder / "c.jpg").symlink_to(folder / "none")
    with pytest.raises(InputError, match="c.jpg.*No such file"):
        engine_options.check_files(tmp_path / "x.plan", options(precision="int8", calibrate=folder))


def test_an_encoders_dry_run_refuses_what_its_export_would(tmp_path):
    tiny_models = pytest.importorskip("tiny_models", reason="needs ps3_sdk[export]")
    source = tiny_models.write(tmp_path / "model", tiny_models.config(text=False))
    with pytest.raises(ExportError, match="--llm-precision was given; a PS3 encoder has no language model"):
        build_engine(source, tmp_path / "x.plan", options("onnx", precision="fp32", llm_precision="int4"), dry_run=True)


def test_folders_that_may_not_be_read(seeded, tmp_path, monkeypatch):
    def forbidden(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", forbidden)
        with pytest.raises(InputError, match=r"^\[calibrate\] .* cannot be listed: Permission denied; .*Check its permissions"):
            check_options(options(precision="int8", calibrate=tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", forbidden)
        for dry_run in (True, False):
            with pytest.raises(InputError, match=r"^\[build\] .*seeded.plan cannot be reached: Permission denied; .*permissions of its folders"):
                build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp32"), dry_run=dry_run)


def test_the_word_default_is_the_embedded_bundle_whatever_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    wanted = options("onnx", precision="fp32")
    said = [build_engine(source, "x.plan", wanted, dry_run=True) for source in ("default", DEFAULT_BUNDLE)]
    assert said[0][:6] == said[1][:6] and "encode" in said[0][1]
    for folder in ("./default", Path("default")):
        with pytest.raises(ExportError, match="config.json does not exist"):
            build_engine(folder, "x.plan", wanted, dry_run=True)


# -- what a bundle may hold ------------------------------------------------------------------------------------------------

def mutated(model, rng):
    """A network with one thing wrong that protobuf does not mind."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = model.graph.node
    node = rng.choice(nodes)
    change = rng.randrange(6)
    if change == 0:
        del node.input[:rng.randrange(1, 4)]
    elif change == 1:
        del node.output[:]
    elif change == 2:
        del node.attribute[:]
    elif change == 3:
        node.op_type = rng.choice(["Concat", "MultiHeadAttention", "Slice", "Add", "MatMul", "Gather", "Reshape"])
        node.domain = rng.choice(["", "com.microsoft"])
    elif change == 4:
        nodes.remove(node)
    else:
        rng.choice(model.graph.initializer).Clear()
    return model


@pytest.mark.parametrize("name", ["encode", "score_features"])
def test_malformed_onnx_is_refused_in_words(seeded, name):
    rng = random.Random(0)
    with Bundle.open(seeded) as bundle:
        model = onnx.ModelProto.FromString(bytes(bundle.member(f"{name}.onnx")))
        refused = set()
        for _ in range(150):
            data = mutated(model, rng).SerializeToString()
            fake = types.SimpleNamespace(manifest=bundle.manifest, path=bundle.path, member=lambda _: data, tensors=bundle.tensors)
            try:
                typed(read_network(fake, name), "fp16")
            except ExportError as error:
                refused.add(str(error))
    assert any("is not as an export writes it (IndexError" in each and each.endswith("Export the bundle again.") for each in refused)


def poisoned(source, path, name, value):
    """The bundle with one weight of a network replaced."""
    from ps3_sdk.tensors import read_header
    with Bundle.open(source) as bundle, BundleWriter(path) as writer:
        for member in (member for member in bundle.members if member != "manifest.json"):
            data = bytearray(bundle.member(member))
            if member == f"{name}.safetensors":
                first = max(read_header(bundle.member(member), "weights").values(), key=lambda tensor: len(tensor.shape)).first
                data[first:first + 4] = np.float32(value).tobytes()
            writer.add_bytes(member, bytes(data))
        writer.finish(bundle.manifest)
    return path


@pytest.mark.parametrize("name, value, where", [("encode", np.nan, ": the features"), ("pool", np.inf, " in decode")])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_damaged_weights_are_called_so_in_every_precision(seeded, tmp_path, name, value, where, precision):
    with pytest.raises(ExportError, match=rf"^\[build\] the float32 networks that are built from give no numbers{where}.* damaged.*Download it again"):
        build_engine(poisoned(seeded, tmp_path / "n.plan", name, value), tmp_path / "x.plan", options("onnx", precision=precision))
    for number in (np.nan, np.inf):
        with pytest.raises(ExportError, match="w holds values that are no numbers; the checkpoint is damaged"):
            to_float16(np.float32([1, number]), "w")


def test_what_is_off_in_float32_is_not_to_be_built_with_another_precision(seeded, tmp_path, monkeypatch):
    from ps3_sdk import verify
    monkeypatch.setattr(verify.Report, "wrong", lambda *_: ["encode_low is off by 1"])
    with pytest.raises(ExportError, match="in fp32 encode_low is off by 1. Nothing was written. The ONNX of this bundle is not what it was: export it again"):
        build_engine(seeded, tmp_path / "x.plan", options("onnx", precision="fp32"))


# -- the builder's words -----------------------------------------------------------------------------------------------------

class Said:
    def __init__(self, words):
        self.words = words.lower()

    def mentions(self, *words):
        return any(word in self.words for word in words)


def plan(**changes):
    return to_engine.Plan("encode", {}, (), **changes)


@pytest.mark.parametrize("words, given, says", [
    ("Error Code 2: OutOfMemory (Requested size was 68722808064 bytes.)", dict(precision="fp16", sizes_given=("--max-tokens 99999999",)), "Give less than --max-tokens 99999999, build where"),
    ("Cuda Runtime (out of memory)", dict(sizes_given=("--max-tokens 9000", "--max-batch 4")), "Give less than --max-tokens 9000 and --max-batch 4, .*larger --workspace"),
    ("cudaError 2: out", {}, "Give a smaller --max-tokens, build where there is more memory"), ("cudaError 222: unsupported toolchain", dict(precision="fp16"), "^Try --precision fp32; if"),
    ("cudaError 209: x", dict(precision="fp32"), "^Try --precision fp16; if"), ("cudaError 35: x", {}, "install a driver"), ("dimensions have overflown", {}, "^Give a smaller --max-tokens.$"),
    ("Tactic Selection: no tactics to implement", dict(workspace_bytes=2**20), "larger --workspace than 0.0009")])
def test_what_the_builder_says_comes_with_what_helps(words, given, says):
    import re
    assert re.search(says, to_engine._fix(Said(words), plan(**given)))


def test_a_builder_killed_for_its_memory(tmp_path, monkeypatch):
    from ps3_sdk.export import build_apart
    monkeypatch.setattr(build_apart, "module", lambda *_: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(ExportError, match=r"died \(SIGKILL\).*probably out of memory: free some, or build where there is more. Give less than --max-batch 9\.$"):
        build_apart.build_apart("tensorrt", tmp_path / "x.onnx", plan(sizes_given=("--max-batch 9",)), tmp_path, print)


@pytest.mark.parametrize("runtime, says", [("tensorrt", r"tensorrt 10.3.0 gives no builder: CUDA initialization failure with error: 35. .*driver is too old for it, or missing.*TensorRT of the driver's"),
                                           ("tensorrt_rtx", "tensorrt-rtx .* gives no builder: CUDA init.*Install it again")])
def test_a_builder_that_a_driver_is_too_old_for(standin, tmp_path, monkeypatch, runtime, says):
    module = __import__(runtime)

    def nothing(logger):
        logger.log(module.Level.ERROR, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    monkeypatch.setattr(module, "Builder", nothing)
    with pytest.raises(ExportError, match=says):
        to_engine.build(module, tmp_path / "x.onnx", plan())


# -- a stop from outside --------------------------------------------------------------------------------------------------------

BUILD = """
import sys
from ps3_sdk import cli
from ps3_sdk.export import build_apart
build_apart.module = lambda *_: [sys.executable, "-c", "import os, time; print('child', os.getpid(), flush=True); time.sleep(600)"]
sys.exit(cli.main(["build", sys.argv[1], "-o", "x.plan", "--runtime", "tensorrt-rtx", "--sm", "86"]))
"""


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_sigterm_leaves_nothing_behind_and_no_builder_running(seeded, tmp_path, standin):
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(seeded)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process.stdout:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("child"):
                break
        assert said[-1].startswith("child"), "".join(said)
        assert len(os.listdir(tmp_path)) == 2, "the folder of the build and the unfinished bundle"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert process.stdout.read() == ""
    child, end = int(said[-1].split()[1]), time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child) and not os.listdir(tmp_path)


def test_the_handler_is_there_for_the_work_alone():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(SystemExit) as ended, ended_by_sigterm(), ended_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ended.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    seen = []

    @ended_by_sigterm()
    def look():
        seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGTERM, own := lambda *_: None)
    try:
        look()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    look()
    assert seen[:2] == [signal.SIG_DFL, own] and callable(seen[2]) and seen[2] is not own
