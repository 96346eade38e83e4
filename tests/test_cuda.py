"""The kernels on a GPU give what the processor's loops give; frames and tensors of a GPU are read in place; without kernels, driver
or GPU every call says what is missing.

What needs a GPU is skipped elsewhere, with the reason. tests/test_cuda_kernels.py runs the kernels' bodies on any machine.
"""
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, why_no_gpu
from cuda_emulation import CXX, NVCC, SEARCH
from test_gather import CLIP, HALF, RADIO, SIGLIP, SIZES, noise, pitched, planes_of, some_ids

import ps3_sdk
from ps3_sdk import Frame, _core
from ps3_sdk.errors import InputError, RuntimeMissingError

BUILD = _core.build_info()
WHY = why_no_gpu()
needs_gpu = pytest.mark.skipif(bool(WHY), reason=WHY or "runs")
needs_no_gpu = pytest.mark.skipif(not WHY, reason="there is a GPU")


class OnGpu:
    """A tensor of a GPU by its interface alone; nothing lies at its address."""

    def __init__(self, shape, typestr="|u1", strides=None, at=0x7F0000000000):
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (at, False), "strides": strides, "version": 3}


# -- without a GPU ------------------------------------------------------------------------------------------------

@needs_no_gpu
def test_without_a_gpu_cuda_says_what_is_missing():
    with pytest.raises(RuntimeMissingError) as caught:
        _core.Cuda()
    said = str(caught.value)
    if not BUILD["cuda"]:
        assert said == "[cuda] called with Cuda; this build has no CUDA kernels. Call it with Cpu, or build with -DPS3_CUDA=ON."
    else:
        assert said.startswith("[cuda] no driver for CUDA ") or said.startswith("[cuda] no GPU to be had")
        assert "needs" in said and said.endswith("call it with Cpu.")


def test_build_info_names_the_architectures():
    assert isinstance(BUILD["cuda"], bool)
    assert BUILD["cuda"] == bool(BUILD.get("cuda_archs")) == bool(re.fullmatch(r"\d+\.\d+", BUILD.get("cuda_runtime", "")))


def test_everything_else_works_without_a_gpu():
    pixels = noise(64, 64)
    assert Frame.of(pixels).device == "cpu" and Frame.of(pixels).cpu().device == "cpu"
    assert _core.gather(_core.Frame("RGB", [pixels], 64, 64), 28, 28, 14, np.arange(4, dtype=np.int32), *HALF).shape == (4, 588)


def test_frames_on_a_gpu_are_refused_by_the_processor():
    frame = _core.Frame("NV12", [OnGpu((4, 6)), OnGpu((2, 6))], 4, 6)
    assert frame.device == "cuda:0"
    with pytest.raises(InputError, match="lies on GPU 0; needs one in host memory"):
        _core.gather(frame, 28, 28, 14, np.zeros(1, np.int32), *HALF)


def test_planes_on_a_gpu_are_checked():
    host = np.zeros((2, 6), np.uint8)
    for planes, says in [([OnGpu((4, 6)), host], "plane 1 lies in host memory, plane 0 does not"),
                         ([OnGpu((4, 6), "<f4"), OnGpu((2, 6))], "dtype code '<f4'; needs uint8"),
                         ([OnGpu((4, 6), "<f8"), OnGpu((2, 6))], "of type <f8"),
                         ([OnGpu((4, 5)), OnGpu((2, 6))], r"has shape \(4, 5\)"),
                         ([OnGpu((4, 6), strides=(12, 2)), OnGpu((2, 6))], "has stride 2 on axis 1"),
                         ([OnGpu((4, 6), strides=(-6, 1)), OnGpu((2, 6))], "row stride -6")]:
        with pytest.raises(InputError, match=says):
            _core.Frame("NV12", planes, 4, 6)


def test_what_lies_on_a_gpu_is_known():
    assert _core.is_on_device(OnGpu((1,)))
    assert not any(map(_core.is_on_device, (np.zeros(1), [1], None, "text")))
    view = _core.view_device(OnGpu((3, 4), "<f2", at=4096))
    assert (view.shape, view.strides, view.dtype, view.data_ptr, view.device) == ((3, 4), (8, 2), np.float16, 4096, 0)
    assert view.__cuda_array_interface__["data"][0] == 4096
    assert view.__dlpack_device__() == (2, 0)
    part = view.plane(8, (2, 2), (8, 2))
    assert part.data_ptr == 4104 and part.shape == (2, 2)
    with pytest.raises(InputError, match="needs one that lies inside"):
        view.plane(8, (3, 4), (8, 2))


def test_a_view_keeps_its_tensor_alive():
    import weakref

    class Kept(OnGpu):
        pass

    tensor = Kept((4, 6))
    gone = weakref.ref(tensor)
    frame = _core.Frame("GRAY", [tensor], 4, 6)
    del tensor
    assert gone() is not None
    del frame
    assert gone() is None


def test_dlpack_goes_both_ways_without_a_copy():
    """torch's CPU build reads no CUDA memory, so the capsule is read back by the core itself."""
    class Again:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, stream=None):
            assert stream == 1  # the legacy default stream
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    view = _core.view_device(OnGpu((3, 4), "<i4", strides=(32, 4), at=1 << 40))
    again = _core.view_device(Again(view))
    assert (again.shape, again.strides, again.dtype, again.data_ptr) == ((3, 4), (32, 4), np.int32, 1 << 40)
    del again
    view.__dlpack__()  # an unread capsule frees what it holds


@pytest.mark.skipif(not BUILD["cuda"], reason="this build has no CUDA kernels")
def test_frame_of_takes_gpu_tensors_of_every_layout():
    for data, format, found in [(OnGpu((4, 6, 3)), None, ("RGB", 4, 6)), (OnGpu((4, 6, 4)), "BGRA", ("BGRA", 4, 6)), (OnGpu((6, 6)), "NV12", ("NV12", 4, 6)),
                                ((OnGpu((4, 6), strides=(64, 1)), OnGpu((2, 3, 2), strides=(64, 2, 1))), "NV12", ("NV12", 4, 6)),
                                (OnGpu((4, 6, 2)), "YUYV", ("YUYV", 4, 6)), (OnGpu((4, 6)), None, ("GRAY", 4, 6))]:
        frame = Frame.of(data, format=format)
        assert (frame.format, frame.height, frame.width, frame.device) == (*found, "cuda:0")
    with pytest.raises(InputError, match="float16; pixels are uint8"):
        Frame.of(OnGpu((4, 6, 3), "<f2"))


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["75", "87", "90", "110", "121"])
def test_kernels_compile_without_a_warning(arch, tmp_path):
    """One kernel for the first and last GPU, Orin, Hopper and Thor. The wheel's build compiles all kernels for all of them."""
    known = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True).stdout
    if f"sm_{arch}" not in known.split():
        pytest.skip(f"this nvcc does not know sm_{arch}")
    done = subprocess.run([NVCC, "-std=c++17", f"-arch=sm_{arch}", "--fmad=false", "-diag-suppress=2810", "--Werror", "all-warnings", f"-I{ROOT / 'csrc' / 'include'}",
                           f"-I{ROOT / 'csrc' / 'ops'}", "-Xptxas", "-v", "-c", str(ROOT / "csrc" / "ops" / "gather_cuda.cu"), "-o", str(tmp_path / "gather.o")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(line.split(" bytes stack frame")[0].split()[-1]) <= 16 for line in done.stderr.splitlines() if "stack frame" in line)


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("source", sorted(path.name for path in (ROOT / "csrc" / "ops").glob("*.cu") if path.name != "gather_cuda.cu"))
def test_every_source_of_the_gpu_compiles(source, tmp_path):
    done = subprocess.run([NVCC, "-std=c++17", "-arch=sm_87", "--fmad=false", "-diag-suppress=2810", "--Werror", "all-warnings", '-DPS3_CUDA_ARCHS="sm_87"', f"-I{ROOT / 'csrc' / 'include'}",
                           f"-I{ROOT / 'csrc' / 'ops'}", "-c", str(ROOT / "csrc" / "ops" / source), "-o", str(tmp_path / "object.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not BUILD["cuda"] or not shutil.which("ldd"), reason="this build has no CUDA kernels, or ldd is missing")
def test_the_module_needs_no_cuda_library():
    said = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in said


def build_and_run(folder, name, source):
    """What a program prints that finds this installation by CMake."""
    (folder / name).write_text(source)
    (folder / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.18)\nproject(no_gpu LANGUAGES C CXX)\nfind_package(ps3 REQUIRED)\n"
                                           f"add_executable(no_gpu {name})\ntarget_link_libraries(no_gpu ps3::ps3)\n")
    cmake = shutil.which("cmake", path=SEARCH)
    for command in ([cmake, "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={ps3_sdk.cmake_dir()}"], [cmake, "--build", folder / "build"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return subprocess.run([folder / "build" / "no_gpu"], capture_output=True, text=True, check=True).stdout


CPP = """
#include <ps3/ps3.h>

#include <cstdio>
#include <vector>

using namespace ps3;

static void say(const char* op, const Status& status) { std::printf("%s|%s|%s\\n", op, code_name(status.code()), status.message().c_str()); }

int main() {
  std::vector<float> f(1 << 16), out(4 * 588);
  std::vector<std::uint8_t> bytes(1 << 16), workspace(1 << 20);
  std::vector<std::int32_t> ids(4);
  Cuda cuda;
  cuda.workspace = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) / 256 * 256);
  cuda.workspace_bytes = workspace.size() - 256;
  FrameView frame;
  frame.height = frame.width = 64;
  frame.plane[0] = {bytes.data(), 192, 64 * 192};
  const Scale scale{28, 28, 14};
  say("cuda", check_cuda());
  say("gather", gather(cuda, frame, scale, ids, Normalize{}, out));
  GatherTables tables;
  say("make_gather_tables", make_gather_tables(cuda, 64, 64, Span<const Scale>(&scale, 1), tables));
  say("score", score(cuda, {f.data(), 4 * 8}, 2, 8, {f.data(), 8}, {}, {f.data(), 4}));
  say("select", select(cuda, {{f.data(), 4}, 2, 2}, 4, 4, {bytes.data(), 16}, ids));
  say("position_rows", position_rows(cuda, {{f.data(), 4 * 8}, 2, 8, {}, {}, false}, 4, ids, {f.data(), 4 * 8}));
  say("scatter", scatter(cuda, {f.data(), 4 * 8}, 8, ids, 4, 4, {f.data(), 128}));
  cuda.workspace_bytes = 1;
  say("workspace", score(cuda, {f.data(), 4 * 8}, 2, 8, {f.data(), 8}, {}, {f.data(), 4}));
  std::size_t needed = 0;
  const Scale large{3780, 1512, 14};
  say("bytes", gather_workspace_bytes(2160, 3840, Span<const Scale>(&large, 1), needed));
  return needed > 0 ? 0 : 1;
}
"""


@needs_no_gpu
@pytest.mark.skipif(not (shutil.which("cmake", path=SEARCH) and CXX), reason="cmake or a C++ compiler is not installed")
def test_every_cuda_overload_of_cpp_refuses_without_a_gpu(tmp_path):
    said = build_and_run(tmp_path, "main.cpp", CPP)
    answers = {op: (code, message) for op, code, message in (line.split("|") for line in said.splitlines())}
    missing = "no driver for CUDA|no GPU to be had" if BUILD["cuda"] else "this build has no CUDA kernels"
    for op in ("cuda", "gather", "make_gather_tables", "score", "select", "position_rows", "scatter"):
        code, message = answers[op]
        assert code == "kNoCuda" and re.search(missing, message), message
        assert message.startswith("[make_gather_tables]" if op == "gather" and BUILD["cuda"] else f"[{op}]")
    assert answers["bytes"][0] == "kOk"  # sizes are known without a GPU
    if BUILD["cuda"]:
        assert answers["workspace"] == ("kInvalidArgument", "[score] a workspace of 1 bytes; needs 256. Size it by score_workspace_bytes().")


C = """
#include <ps3/c_api_cuda.h>
#include <stdio.h>

int main(void) {
  char message[512] = "";
  static unsigned char pixels[64 * 192];
  static float f[4096];
  static int32_t ids[4];
  static uint8_t taken[16];
  float half[3] = {0.5f, 0.5f, 0.5f};
  ps3_scale scale = {28, 28, 14};
  ps3_frame frame = {PS3_RGB, 64, 64, {0, 0}, {192, 0}, {64 * 192, 0}, PS3_BT709, 0};
  ps3_cuda cuda = {0, (void*)4096, 1 << 20};
  ps3_gather_tables tables = {(void*)4096, 64, 64, 1, {{28, 28, 14}}};
  ps3_gather_part part = {{28, 28, 14}, 0, 4, 0, 0};
  ps3_position_table table = {0, 2, 8, 0, 0, 0};
  size_t bytes = 0;
  frame.plane[0] = pixels;
  part.ids = ids;
  part.out = f;
  table.values = f;
#define SAY(call) message[0] = 0; printf("%d|", call); printf("%s\\n", message)
  SAY(ps3_check_cuda(message, sizeof message));
  SAY(ps3_make_gather_tables(&cuda, 64, 64, &scale, 1, &tables, message, sizeof message));
  tables.data = (void*)4096; tables.height = tables.width = 64; tables.num_scales = 1; tables.scales[0] = scale;
  SAY(ps3_gather_cuda(&cuda, &frame, &tables, &part, 1, half, half, message, sizeof message));
  SAY(ps3_score_cuda(&cuda, f, 2, 8, f, 0, f, message, sizeof message));
  SAY(ps3_select_cuda(&cuda, f, 2, 2, 4, 4, taken, ids, 4, message, sizeof message));
  SAY(ps3_position_rows_cuda(&cuda, &table, 4, ids, 4, f, message, sizeof message));
  SAY(ps3_scatter_cuda(&cuda, f, 8, ids, 4, 4, 4, f, message, sizeof message));
  SAY(ps3_gather_workspace_bytes(64, 64, &scale, 1, &bytes, message, sizeof message));
  SAY(ps3_gather_workspace_bytes(64, 64, &scale, 9, &bytes, message, 8));
  return bytes > 0 && ps3_score_workspace_bytes(2, 0, 8) == 256 && ps3_select_workspace_bytes(2, 2, 4, 4) == 5 * 256 &&
         ps3_position_rows_workspace_bytes(&table, 4) == 512 && ps3_scatter_workspace_bytes(4, 4) == 256 ? 0 : 1;
}
"""


@needs_no_gpu
@pytest.mark.skipif(not (shutil.which("cmake", path=SEARCH) and CXX), reason="cmake or a C++ compiler is not installed")
def test_every_cuda_function_of_c_refuses_without_a_gpu(tmp_path):
    lines = build_and_run(tmp_path, "main.c", C.replace("scale, 9", "scale, 0")).splitlines()
    missing = "no driver for CUDA|no GPU to be had" if BUILD["cuda"] else "this build has no CUDA kernels"
    assert len(lines) == 9 and all(line.startswith("4|") and re.search(missing, line) for line in lines[:7]), lines
    assert lines[7:] == ["0|", "1|[gather"]


# -- on a GPU -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cuda():
    return _core.Cuda()


def upload_pitched(cuda, plane):
    """The plane in GPU memory with the same strides."""
    whole = np.lib.stride_tricks.as_strided(plane, (plane.shape[0], plane.strides[0]), (plane.strides[0], 1))
    return cuda.upload(whole.copy()).plane(0, plane.shape, plane.strides)


@needs_gpu
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_gather_on_a_gpu(cuda, size, half):
    h, w = SIZES[size]
    pixels = noise(h, w)
    frame = _core.Frame("RGB", [pixels], h, w)
    on_gpu = _core.Frame("RGB", [cuda.upload(pixels)], h, w)
    for scales, mean_std in ((SIGLIP, HALF), (RADIO[:5], CLIP)):
        ids = [some_ids(size_px, patch_px, 100) for _, size_px, patch_px in scales]
        outs = cuda.gather(on_gpu, scales[0][0], [(s[1], s[2], cuda.upload(each), None) for s, each in zip(scales, ids)], *mean_std, "float16" if half else "float32")
        for out, scale, each in zip(outs, scales, ids):
            expected = _core.gather(frame, *scale, each, *mean_std)
            assert np.array_equal(cuda.download(out), expected.astype(np.float16) if half else expected)


@needs_gpu
@pytest.mark.parametrize("padding", [0, 1, 64])
@pytest.mark.parametrize("format", ["RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV"])
def test_gather_of_every_format_on_a_gpu(cuda, format, padding):
    h, w = 482, 646
    planes = [pitched(plane, padding) if padding else plane for plane in planes_of(format, h, w)]
    frame = _core.Frame(format, planes, h, w)
    on_gpu = _core.Frame(format, [upload_pitched(cuda, plane) for plane in planes], h, w) if padding else _core.Frame(format, [cuda.upload(plane) for plane in planes], h, w)
    for size_px in (756, 378):
        ids = some_ids(size_px, 14, 50)
        for source in (on_gpu, frame):  # a host frame is copied first
            out, = cuda.gather(source, 756, [(size_px, 14, ids, None)], *HALF)
            assert np.array_equal(cuda.download(out), _core.gather(frame, 756, size_px, 14, ids, *HALF))


@needs_gpu
def test_score_select_position_rows_and_scatter_on_a_gpu(cuda):
    random = np.random.default_rng(0)
    floats = lambda *shape: random.standard_normal(shape, np.float32)
    features, fine, prompt, weight, bias = floats(729, 1152), floats(2916, 512), floats(1152), floats(512, 1152), floats(512)
    prob = cuda.score(*map(cuda.upload, (features, fine, prompt, weight, bias)))
    expected = _core.score(features, fine, prompt, weight, bias)
    assert np.array_equal(cuda.download(prob), expected)
    taken, on_gpu = np.zeros(270 * 270, np.uint8), cuda.upload(np.zeros(270 * 270, np.uint8))
    for count in (2133, 1, 70000, 766):
        ids = cuda.select(prob, 270, 270, count, on_gpu)
        assert np.array_equal(cuda.download(ids), _core.select(expected, 270, 270, count, taken))
        assert np.array_equal(cuda.download(on_gpu), taken)
    table, residual = floats(729, 1152), floats(270 * 270, 1152).astype(np.float16)
    some = some_ids(3780, 14, 500)
    assert np.array_equal(cuda.download(cuda.position_rows(cuda.upload(table), 27, 270, cuda.upload(some), cuda.upload(residual))),
                          _core.position_rows(table, 27, 270, some, residual))
    tokens = floats(len(some), 96)
    assert np.array_equal(cuda.download(cuda.scatter(cuda.upload(tokens), some, 270, 270)), _core.scatter(tokens, some, 270, 270))


@needs_gpu
def test_torch_tensors_are_read_and_written_in_place(cuda):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    planes = planes_of("NV12", 1080, 1920)
    frame = Frame.of(tuple(torch.from_numpy(plane).cuda() for plane in planes), format="NV12")
    ids = torch.arange(85, dtype=torch.int32, device="cuda")
    out = torch.empty(85, 588, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    own = _core.Cuda(stream)
    own.gather(frame.core, 3780, [(756, 14, ids, out)], *HALF)
    torch.cuda.synchronize()
    assert own.copies == {"to_device": 0, "to_device_bytes": 0, "to_host": 0, "to_host_bytes": 0}
    assert np.array_equal(out.cpu().numpy(), _core.gather(Frame.of(tuple(planes), format="NV12").core, 3780, 756, 14, np.arange(85, dtype=np.int32), *HALF))
    assert torch.from_dlpack(own.empty((3, 4))).shape == (3, 4)
    assert np.array_equal(np.asarray(frame.picture()), np.asarray(Frame.of(tuple(planes), format="NV12").picture()))


@needs_gpu
def test_pageable_memory_is_refused_in_words_by_the_cpp_op(cuda):
    with pytest.raises(InputError, match="in host memory"):
        cuda.score(np.zeros((4, 4), np.float32), None, np.zeros(4, np.float32), None, None)


@needs_gpu
@pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="compute-sanitizer is not installed")
def test_compute_sanitizer_finds_nothing():
    script = str(ROOT / "benchmarks" / "gpu.py")
    done = subprocess.run(["compute-sanitizer", "--error-exitcode", "9", os.sys.executable, script, "--check-only"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
