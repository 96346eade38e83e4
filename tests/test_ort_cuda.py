"""ONNX bundles on a GPU. Without one, the adapter's calls run for real on ONNX Runtime's CPU provider, whose tensors are bound in the same way."""
import numpy as np
import onnxruntime
import pytest

import ps3_sdk
from conftest import why_no_gpu
from ps3_sdk import Frame
from ps3_sdk.errors import ClosedError, InputError, RuntimeFailedError, RuntimeMissingError
from ps3_sdk.ops import DeviceOps, HostOps
from ps3_sdk.runtimes import ort_cuda

HAS_GPU = ort_cuda.PROVIDER in onnxruntime.get_available_providers()


@pytest.fixture
def device(monkeypatch):
    """Where OrtCudaNetwork runs: a GPU, else the CPU in its place."""
    if not HAS_GPU:
        monkeypatch.setattr(ort_cuda, "PROVIDER", "CPUExecutionProvider")
        monkeypatch.setattr(ort_cuda, "DEVICE", "cpu")


def test_tokens_are_those_of_the_cpu(device, seeded, session, photo):
    with ps3_sdk.Session(seeded, device="cuda") as gpu:
        ours, theirs = gpu.encode(photo, "a boat", tokens=300), session.encode(photo, "a boat", tokens=300)
        assert {px: ids.tolist() for px, ids in ours.picked.items()} == {px: ids.tolist() for px, ids in theirs.picked.items()}
        np.testing.assert_allclose(ours.tokens, theirs.tokens, atol=2e-4)


def test_keys_and_values_stay_on_the_device_and_are_cut_there(device, seeded, session, photo):
    with ps3_sdk.Session(seeded, device="cuda") as gpu:
        looks = gpu.look_many([photo, photo[::-1].copy()], batch=2)
        for look, frame in zip(looks, (photo, photo[::-1].copy())):
            wanted = session.look(frame).kv
            assert set(look.kv) == set(wanted)
            for key, value in look.kv.items():
                assert isinstance(value, ort_cuda.OnDevice) and tuple(value.shape) == wanted[key].shape
                np.testing.assert_allclose(np.asarray(value), wanted[key], atol=2e-4)


def test_closing_waits_for_a_run_that_reads_the_sessions_memory(device, seeded, photo):
    import threading
    order, inside, go_on = [], threading.Event(), threading.Event()
    session = ps3_sdk.Session(seeded, device="cuda")
    network = session._networks["encode"]
    bound = network._bound_to

    def slowly(inputs):
        inside.set()
        go_on.wait(20)
        order.append("run")
        return bound(inputs)
    network._bound_to = slowly

    def ask():
        with pytest.raises(ClosedError):        # its later stages
            session.look(photo)
    asking = threading.Thread(target=ask)
    asking.start()
    assert inside.wait(20)
    closing = threading.Thread(target=lambda: (session.close(), order.append("closed")))
    closing.start()
    closing.join(0.2)
    assert closing.is_alive(), "memory that a run reads is not given back"
    go_on.set()
    closing.join(20), asking.join(20)
    assert order == ["run", "closed"]
    with pytest.raises(ClosedError, match="encode is closed"):
        network.run({}, [])


def test_rows_of_a_tensor_on_the_device(device):
    whole = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    tensor = ort_cuda.OnDevice(onnxruntime.OrtValue.ortvalue_from_numpy(whole, ort_cuda.DEVICE, 0))
    part = tensor[1:4][1:3]
    assert part.shape == (2, 3, 2) and len(part) == 2 and part.address == tensor.address + 2 * 24
    assert np.array_equal(np.asarray(part), whole[2:4]) and np.array_equal(np.concatenate([tensor[:1], part.copy()]), whole[[0, 2, 3]])
    one = tensor[1:4][1]
    assert one.shape == (3, 2) and one.address == part.address and np.array_equal(np.asarray(one), whole[2])
    assert one.__cuda_array_interface__ == {"shape": (3, 2), "typestr": "<f4", "data": (one.address, True), "strides": None, "version": 3}
    neighbours, apart = tensor.joined([tensor[1:2], tensor[2:4]]), tensor.joined([tensor[:1], tensor[2:3]])
    assert isinstance(neighbours, ort_cuda.OnDevice) and np.array_equal(np.asarray(neighbours), whole[1:4])
    assert np.array_equal(apart, whole[[0, 2]])
    with pytest.raises(IndexError, match="steps of 1"):
        tensor[::2]
    with pytest.raises(IndexError, match="row 4"):
        tensor[4]


@pytest.mark.parametrize("said, words", [
    ("bfc_arena.cc:376 AllocateRawInternal Failed to allocate memory for requested buffer of size 1048576", "memory is full .*can be used further.*fewer tokens"),
    ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", "GPU was lost .CUDA error 700.*in a new process"),
    ("CUDA failure 2: out of memory ; GPU=0", "memory is full"), ("Got invalid dimensions for input: patches", "failed: Got invalid dimensions.*It was given patches")])
def test_failures_say_what_to_do(device, seeded, photo, monkeypatch, said, words):
    with ps3_sdk.Session(seeded, device="cuda") as gpu:
        look = gpu.look(photo)

        class Fails:
            def io_binding(self):
                raise RuntimeError(said)
        with monkeypatch.context() as failing:
            failing.setattr(gpu._networks["encode"], "_session", Fails())
            with pytest.raises(RuntimeFailedError, match=words):
                look.encode("a boat", tokens=8)
        assert len(look.encode("a boat", tokens=8).tokens) > 729


@pytest.mark.skipif(HAS_GPU, reason="this ONNX Runtime has the CUDA provider")
def test_without_the_provider_the_message_says_what_to_install(seeded):
    with pytest.raises(RuntimeMissingError, match=r"\[ort_cuda\].*CUDAExecutionProvider is needed.*pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"):
        ps3_sdk.Session(seeded, device="cuda")


def test_a_provider_that_does_not_start_is_not_replaced_in_silence(monkeypatch, seeded):
    """onnxruntime-gpu without its libraries falls back to the CPU; here the provider is one that does not exist."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort_cuda.PROVIDER])
    monkeypatch.setattr(ort_cuda.ort, "open_session", lambda *_: onnxruntime.InferenceSession(str(__import__("tiny_llm").ONNX), providers=["CPUExecutionProvider"]))
    with pytest.raises(RuntimeMissingError, match="cannot start CUDAExecutionProvider"):
        ps3_sdk.Session(seeded, device="cuda")


def test_other_devices_are_refused(seeded):
    with pytest.raises(InputError, match="device is 'tpu'"):
        ps3_sdk.Session(seeded, device="tpu")


@pytest.mark.skipif(bool(why_no_gpu()), reason=why_no_gpu() or "runs")
def test_ops_on_a_gpu_are_equal_to_the_processors(photo):
    from ps3_sdk.bundle import Bundle
    from ps3_sdk.session import DEFAULT_BUNDLE
    rng = np.random.default_rng(0)
    with Bundle.open(DEFAULT_BUNDLE) as bundle:
        tables, geometry = bundle.tensors("tables.safetensors"), bundle.manifest["geometry"]
        host, device = HostOps(geometry, tables, 0), DeviceOps(geometry, tables)
        picks = [{px: np.sort(rng.choice((px // 14) ** 2, 50, replace=False)).astype(np.int32) for px in geometry["scales_px"]} for _ in range(2)]
        frames = [Frame.of(photo), Frame.of(photo[:1080].copy())]
        np.testing.assert_array_equal(np.asarray(device.patches(frames, picks, 14)), host.patches(frames, picks, 14))
        np.testing.assert_allclose(np.asarray(device.positions(picks)), host.positions(picks), atol=1e-6)
        low, view, prompt = (rng.standard_normal(shape, np.float32) for shape in ((729, geometry["width"]), (2916, geometry["view_width"]), (geometry["width"],)))
        np.testing.assert_array_equal(device.score(low, view, prompt), host.score(low, view, prompt))


def test_float32_language_models_stay_on_the_processor(device, session):
    """ONNX Runtime's attention of theirs has no float32 kernel for a GPU."""
    from ps3_sdk.runtimes import ort
    with ps3_sdk.Session(device="cuda") as ours:
        assert isinstance(ours._networks["decode"], ort.OrtNetwork) and isinstance(ours._networks["encode"], ort_cuda.OrtCudaNetwork)


def test_what_a_bound_network_reads_is_bound_anew_for_each_run(monkeypatch):
    """Binding copies what an operator on the processor reads: bound once, it would be read as it was before the first run."""
    import tiny_llm
    monkeypatch.setattr(ort_cuda, "DEVICE", "cpu")      # with a GPU too: a session of the CPU provider alone reads nothing of a GPU
    made = onnxruntime.InferenceSession(str(tiny_llm.ONNX), providers=["CPUExecutionProvider"])
    bound_inputs = []

    class Binding:
        def __init__(self):
            self.real = made.io_binding()

        def bind_ortvalue_input(self, key, value):
            bound_inputs.append(key)
            self.real.bind_ortvalue_input(key, value)

        def __getattr__(self, name):
            return getattr(self.real, name)

    class Recording:
        get_inputs, io_binding = made.get_inputs, Binding

        def run_with_iobinding(self, binding, options):
            made.run_with_iobinding(binding.real, options)
    c = tiny_llm.config()
    shape = (1, c["num_key_value_heads"], 8, c["hidden_size"] // c["num_attention_heads"])
    names = [value.name for value in made.get_inputs() if value.name.startswith("past")]
    arrays = {name: np.zeros(shape, np.float32) for name in names}
    arrays |= {name.replace("past_key_values", "present"): array for name, array in arrays.items()}
    network = ort_cuda.BoundOrtCudaNetwork(Recording(), "decode", onnxruntime.RunOptions(), arrays)
    for length in (1, 2):
        bound_inputs.clear()
        network.run({"inputs_embeds": np.ones((1, 1, c["hidden_size"]), np.float32), "attention_mask": np.ones((1, length), np.int64)}, ["logits"])
        assert sorted(bound_inputs) == sorted(names)


def test_tokens_are_written_where_they_are_wanted(device, seeded, session, photo):
    with ps3_sdk.Session(seeded, device="cuda") as gpu:
        look = gpu.look(photo)
        picks = {756: np.arange(40, dtype=np.int32)}
        patches, position = gpu.gather(look.frame, picks)
        into = np.full((40, gpu.geometry["width"]), np.nan, np.float32)
        assert gpu.encode_high_many(patches[None], position[None], [look.kv], into)[0] is into
        np.testing.assert_allclose(into, session.encode_high(*session.gather(look.frame, picks), session.look(photo).kv), atol=2e-4)
