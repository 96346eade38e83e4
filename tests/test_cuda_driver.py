"""The calls of libcuda, made through ctypes to a library of the same names that is compiled here and works in the host's memory."""
import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from ps3_sdk.errors import RuntimeMissingError
from ps3_sdk.runtimes import cuda_driver

Driver = cuda_driver.Driver         # before anything stands in for it
SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef int R; typedef void *P; typedef size_t S;
static int count = COUNT, live, current, capturing;
R cuInit(unsigned f) { return f ? 1 : INIT; }
R cuDriverGetVersion(int *v) { *v = 13010; return 0; }
R cuDeviceGetCount(int *n) { *n = count; return 0; }
R cuDeviceGet(int *d, int i) { *d = 40 + i; return 0; }
R cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 40 ? "Stub" : "?", n); return 0; }
R cuDeviceGetAttribute(int *v, int a, int d) { *v = d != 40 ? -1 : a == 75 ? 8 : a == 76 ? 9 : -1; return 0; }
R cuDevicePrimaryCtxRetain(P *c, int d) { *c = (P)0x1122334455667788; live++; return d != 40; }
R cuDevicePrimaryCtxRelease_v2(int d) { live--; return d != 40; }
R cuCtxPushCurrent_v2(P c) { if (c != (P)0x1122334455667788) return 201; current++; return 0; }
R cuCtxPopCurrent_v2(P *c) { *c = (P)0x1122334455667788; current--; return 0; }
R cuPointerGetAttribute(P v, int a, P p) { if (a != 1 || p == (P)0x66) return 1; *(P *)v = p == (P)0x77 ? (P)0x1234 : p == (P)0x88 ? 0 : (P)0x1122334455667788; return 0; }
R cuStreamGetCtx(P q, P *c) { *c = q == (P)0x7766554433221100 ? (P)0x1122334455667788 : (P)0x55; return q == (P)0x66 ? 400 : 0; }
R cuMemGetInfo_v2(S *f, S *t) { *f = 5ull << 32; *t = 6ull << 32; return 0; }
R cuMemAlloc_v2(P *p, S n) { if (n > (1ull << 33)) return 2; *p = malloc(n); return 0; }
R cuMemFree_v2(P p) { free(p); return 0; }
R cuMemcpyHtoDAsync_v2(P d, P s, S n, P q) { if (q != (P)0x7766554433221100) return 400; memcpy(d, s, n); return 0; }
R cuMemcpyDtoHAsync_v2(P d, P s, S n, P q) { return cuMemcpyHtoDAsync_v2(d, s, n, q); }
R cuMemcpyDtoDAsync_v2(P d, P s, S n, P q) { return cuMemcpyHtoDAsync_v2(d, s, n, q); }
R cuStreamCreate(P *q, unsigned f) { *q = (P)0x7766554433221100; return f != 1; }
R cuStreamDestroy_v2(P q) { return q != (P)0x7766554433221100; }
R cuStreamSynchronize(P q) { return q == (P)0x7766554433221100 ? 0 : 719; }
R cuStreamBeginCapture_v2(P q, int m) { capturing = 1; return m != 1; }
R cuStreamEndCapture(P q, P *g) { *g = capturing ? malloc(1) : 0; capturing = 0; return 0; }
R cuGraphInstantiateWithFlags(P *e, P g, unsigned long long f) { *e = (P)0x99; return f != 0; }
R cuGraphLaunch(P e, P q) { return e != (P)0x99; }
R cuGraphExecDestroy(P e) { return e != (P)0x99; }
R cuGraphDestroy(P g) { free(g); return 0; }
R cuGetErrorName(int c, const char **s) { *s = c == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : c == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : 0; return *s ? 0 : 1; }
int stub_live(void) { return live; }
int stub_current(void) { return current; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("stub")

    def made(count=1, init=0, without=""):
        path = folder / f"libcuda_{count}_{init}_{without}.so"
        source = SOURCE.replace("COUNT", str(count)).replace("INIT", str(init))
        (folder / "stub.c").write_text(source.replace(without, without + "_gone") if without else source)
        subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", path, folder / "stub.c"], check=True)
        return str(path)
    return made


def test_every_call_has_its_arguments(library):
    path = library()
    driver = Driver(library=path)
    assert (driver.name, driver.sm, driver.cuda_version, driver.free_bytes()) == ("Stub", 89, (13, 1), 5 << 32)
    with driver.current():
        assert ctypes.CDLL(path).stub_current() == 1
        with pytest.raises(ZeroDivisionError), driver.current():
            assert ctypes.CDLL(path).stub_current() == 2
            1 / 0
    assert ctypes.CDLL(path).stub_current() == 0, "what was current before is so again"
    stream, values = driver.new_stream(), np.arange(1000, dtype=np.float32)
    first, second, back = driver.allocate(4000), driver.allocate(4000), np.zeros(1000, np.float32)
    driver.to_device(first, values.ctypes.data, 4000, stream)
    driver.on_device(second, first, 4000, stream)
    driver.to_host(back.ctypes.data, second, 4000, stream)
    driver.synchronize(stream)
    np.testing.assert_array_equal(back, values)
    driver.begin_capture(stream)
    ready = driver.end_capture(stream)
    driver.launch(ready, stream)
    driver.destroy_graph(ready)
    assert driver.end_capture(stream) == 0, "nothing was captured"
    driver.free(first)
    driver.free(second)
    assert driver.has_memory(first) and driver.has_memory(0x66) and driver.has_memory(0x88) and not driver.has_memory(0x77), "that one is of another context"
    assert driver.has_stream(stream) and driver.has_stream(0) and not driver.has_stream(0x1234), "that one is of another context"
    driver.destroy_stream(stream)
    driver.close()
    driver.close()
    with pytest.raises(cuda_driver.CudaError, match="cuCtxPushCurrent_v2"), driver.current():
        pass
    assert ctypes.CDLL(path).stub_live() == 0


def test_a_failed_call_says_which_and_whether_the_gpu_is_lost(library):
    driver = Driver(library=library())
    with pytest.raises(cuda_driver.CudaError, match=r"cuMemAlloc_v2 gave CUDA_ERROR_OUT_OF_MEMORY \(2\)") as full:
        driver.allocate(1 << 34)
    with pytest.raises(cuda_driver.CudaError, match="CUDA_ERROR_LAUNCH_FAILED") as lost:
        driver.synchronize(5)
    assert not full.value.lost and lost.value.lost
    with pytest.raises(cuda_driver.CudaError, match="error 400"):
        driver.to_device(driver.allocate(8), driver.allocate(8), 8, 5)


@pytest.mark.parametrize("stub, says", [
    (dict(count=0), "sees 0 GPUs.*nvidia-smi"), (dict(init=100), "sees 0 GPUs"), (dict(init=804), "does not start"), (dict(without="cuStreamBeginCapture_v2"), "Update it")])
def test_what_is_missing_is_said(library, stub, says):
    with pytest.raises(RuntimeMissingError, match=says):
        Driver(library=library(**stub))


def test_no_driver_at_all():
    with pytest.raises(RuntimeMissingError, match="no NVIDIA driver here.*--runtime onnx"):
        Driver(library="libno_such_driver.so.1")
