"""A GPU that the program uses otherwise, too, and sessions that end or fail in unusual ways; driven with the stand-ins of test_trt_runtime.py and test_device_ops.py."""
import gc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs ps3_sdk[export]")

import ps3_sdk
from ps3_sdk.errors import InputError, RuntimeFailedError, RuntimeMissingError
from ps3_sdk.runtimes.engine import EngineNetwork
from test_device_ops import TOKENS, gpu, kernels, on_gpu, plan       # noqa: F401, fixtures


@pytest.fixture
def pycuda(gpu):      # noqa: F811
    """A context of somebody else's is current in this thread."""
    gpu.stack.append("pycuda")
    yield gpu.stack
    assert gpu.stack.pop() == "pycuda" and not gpu.stack


@pytest.mark.parametrize("with_kernels", [False, True])
def test_the_programs_own_context_stays_current(plan, gpu, pycuda, photo, request, with_kernels):     # noqa: F811
    """The stand-ins refuse calls in another context than the GPU's primary one."""
    if with_kernels:
        request.getfixturevalue("kernels")
    with ps3_sdk.Session(plan, verify=False) as session:
        assert session.ops.where == ("cuda" if with_kernels else "cpu")
        look = session.look(photo)
        look.encode("a boat", tokens=TOKENS)
        np.asarray(look.kv["past_key_0"]), look.kv["past_key_0"].copy(), np.asarray(look.low_features)
        assert pycuda == ["pycuda"]
        gpu.memory_bytes = 1
        with pytest.raises(RuntimeFailedError, match="memory is full"):
            look.encode("a boat", tokens=1500) if with_kernels else [session.look(photo) for _ in range(9)]
        gpu.memory_bytes = 8 << 30
        assert pycuda == ["pycuda"]
    assert pycuda == ["pycuda"]


def test_a_session_that_is_forgotten_gives_the_gpu_back(plan, gpu, kernels, photo):       # noqa: F811
    session = ps3_sdk.Session(plan, verify=False)
    session.encode(photo, "a boat", tokens=TOKENS)
    assert gpu.memory and gpu.contexts
    del session
    gc.collect()
    assert not gpu.memory and not gpu.contexts and not gpu.graphs


def test_a_closed_session_does_not_hold_its_networks(plan, gpu):       # noqa: F811
    import weakref
    session = ps3_sdk.Session(plan, verify=False)
    network = weakref.ref(session._networks["encode"])
    session.close()
    gc.collect()
    assert network() is None


def test_closing_goes_on_where_a_part_of_it_fails(plan, gpu, monkeypatch):     # noqa: F811
    session = ps3_sdk.Session(plan, verify=False)
    give_back = EngineNetwork._give_back

    def fails(self, kernels):     # noqa: F811
        give_back(self, kernels)
        if self.name == "encode":
            raise MemoryError("while closing")
    monkeypatch.setattr(EngineNetwork, "_give_back", fails)
    with pytest.raises(MemoryError, match="while closing"):
        session.close()
    gc.collect()
    assert not gpu.memory and not gpu.contexts
    session.close()


def test_a_stream_of_another_gpu_is_refused(plan, gpu):       # noqa: F811
    with pytest.raises(InputError, match=r"the stream 0x4d2 is not one of Stand-in, GPU 0.*torch.cuda.Stream\(0\)"):
        ps3_sdk.Session(plan, verify=False, stream=1234)
    gc.collect()
    assert not gpu.memory and not gpu.contexts


def test_a_driver_for_which_the_vendor_makes_nothing(plan, gpu, monkeypatch):      # noqa: F811
    import tensorrt

    def null(logger):
        logger.log(tensorrt.Level.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    monkeypatch.setattr(tensorrt, "Runtime", null)
    with pytest.raises(RuntimeMissingError, match=r"driver is too old for tensorrt 10.3.0 \(CUDA initialization failure with error: 35\). Update the driver"):
        ps3_sdk.Session(plan, verify=False)


def test_sizes_that_the_vendor_cannot_work_out(plan, gpu, photo, monkeypatch):      # noqa: F811
    import tensorrt
    with ps3_sdk.Session(plan, verify=False) as session:
        with monkeypatch.context() as failing:
            failing.setattr(tensorrt.Context, "infer_shapes", lambda self: (_ for _ in ()).throw(RuntimeError("shape inference failed")))
            with pytest.raises(RuntimeFailedError, match="encode: the sizes of this run cannot be worked out .shape inference failed"):
                session.look(photo)
        assert session.look(photo).kv


@pytest.mark.parametrize("said, error, words", [
    ("(cudaError 222: the provided PTX was compiled with an unsupported toolchain.)", ps3_sdk.errors.BundleError, "is refused by tensorrt"),
    ("(cudaError 2: out of memory)", RuntimeFailedError, "does not fit into the GPU's memory"), ("OutOfMemory (Requested size was 5 bytes)", RuntimeFailedError, "does not fit"),
    ("(cudaError 35: CUDA driver version is insufficient)", RuntimeMissingError, "driver is too old")])
def test_what_the_vendor_logs_is_told_apart(plan, gpu, said, error, words):      # noqa: F811
    gpu.fail["deserialize"] = said
    with pytest.raises(error, match=words):
        ps3_sdk.Session(plan, verify=False)


def test_an_interrupted_capture_ends(plan, gpu, photo, monkeypatch):      # noqa: F811
    import tensorrt
    run = tensorrt.Context.execute_async_v3

    def interrupted(self, stream):
        if stream in gpu.capturing:
            raise KeyboardInterrupt
        return run(self, stream)
    with ps3_sdk.Session(plan, verify=False) as session:
        with monkeypatch.context() as pressed:
            pressed.setattr(tensorrt.Context, "execute_async_v3", interrupted)
            with pytest.raises(KeyboardInterrupt):
                for _ in range(4):
                    session.encode(photo, "a boat", tokens=TOKENS)
        assert not gpu.capturing and gc.isenabled()
        wanted = session.encode(photo, "a boat", tokens=TOKENS).tokens
        assert gpu.graphs
        np.testing.assert_array_equal(session.encode(photo, "a boat", tokens=TOKENS).tokens, wanted)


def test_threads_and_blocks_of_memory_are_no_more_than_asked_for(plan, gpu, kernels):       # noqa: F811
    with ps3_sdk.Session(plan, verify=False, threads=1) as session, session.ops._at_work():
        assert [each.num_threads for each in kernels.Cuda.made] == [1]
        before = sum(map(len, gpu.memory.values()))
        frame = session.ops._new((4320, 7680, 4), "uint8")      # 133 MB
        assert sum(map(len, gpu.memory.values())) - before <= frame.nbytes + (4 << 20)
        rows = session.ops._new((3, 5))
        assert rows[-1].address == rows.address + 2 * 5 * 4
        with pytest.raises(IndexError, match="row -4"):
            rows[-4]


def test_a_frame_of_another_context_is_refused_before_a_kernel_reads_it(plan, gpu, kernels, photo):      # noqa: F811
    with ps3_sdk.Session(plan, verify=False) as session:
        frame = on_gpu(photo, kernels)
        assert session.look(frame).kv
        gpu.elsewhere.add(frame._planes[0].__array_interface__["data"][0])
        with pytest.raises(InputError, match="another CUDA context.*pycuda.autoprimaryctx in place of pycuda.autoinit"):
            session.look(frame)
        assert session.look(photo).kv, "which is copied there"
