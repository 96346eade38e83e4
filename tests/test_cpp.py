"""The C++ package: found by CMake where the wheel put it and where `cmake --install` puts it; its examples run; its C
interface compiles as C; its arithmetic compiles for CUDA."""
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import ps3_sdk

SEARCH = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ.get("PATH", "")])
CMAKE, CXX, NVCC = (shutil.which(name, path=SEARCH) for name in ("cmake", "c++", "nvcc"))
needs_cmake = pytest.mark.skipif(not (CMAKE and CXX), reason="cmake or a C++ compiler is not installed")


def run(*command, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build_examples(prefix, build):
    run(CMAKE, "-S", ROOT / "examples" / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror -std=c99 -pedantic")
    run(CMAKE, "--build", build)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    build = tmp_path_factory.mktemp("examples")
    build_examples(ps3_sdk.cmake_dir(), build)
    return build


@needs_cmake
def test_cpp_example_picks_the_bright_square(examples):
    """The square lies at x 2900..3200, y 400..700 of 3840 x 2160: row 5 to 8, column 20 to 22 of the 27 x 27 map."""
    said = run(examples / "pick_patches")
    picked = {int(size): (int(num), int(row), int(col)) for size, num, row, col in
              re.findall(r"(\d+) px: (\d+) of \d+ patches, first at row (\d+) column (\d+)", said)}
    assert {size: num for size, (num, _, _) in picked.items()} == {756: 17, 1512: 68, 3780: 426}
    for size, (_, row, col) in picked.items():
        cells = size // 378
        assert row // cells in (4, 5, 6, 7, 8) and 20 <= col // cells <= 22


@needs_cmake
def test_cpp_example_reads_a_ppm_and_refuses_anything_else(examples, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    (tmp_path / "frame.ppm").write_bytes(b"P6\n640 480\n255\n" + pixels.tobytes())
    assert "3780 px: 426 of 72900" in run(examples / "pick_patches", tmp_path / "frame.ppm")
    (tmp_path / "comment.ppm").write_bytes(b"P6\n# made by a painter\n640 480\n# of 8 bits\n255\n" + pixels.tobytes())
    assert "3780 px: 426 of 72900" in run(examples / "pick_patches", tmp_path / "comment.ppm")
    (tmp_path / "short.ppm").write_bytes(b"P6\n640 480\n255\n" + pixels.tobytes()[:-1])
    assert subprocess.run([examples / "pick_patches", tmp_path / "short.ppm"], capture_output=True).returncode == 1


@needs_cmake
def test_c_interface(examples):
    said = run(examples / "pick_patches_c").splitlines()
    assert said[0] == f"ps3 {ps3_sdk.__version__} picked 85 patches, 1444 and 1499 among them; a pixel is 0.0196"
    assert said[1] == "[gather] id[3] is 5000; a 54x54 grid has ids 0..2915. Pass ids from select() of the same scale."


@needs_cmake
def test_plain_cmake_installs_the_package(tmp_path):
    prefix = tmp_path / "prefix"
    run(CMAKE, "-S", ROOT, "-B", tmp_path / "build", "-DPS3_STRICT=ON")
    run(CMAKE, "--build", tmp_path / "build", "-j", "2")
    run(CMAKE, "--install", tmp_path / "build", "--prefix", prefix)
    installed = {path.relative_to(prefix / "include").as_posix() for path in (prefix / "include").rglob("*.h")}
    assert installed == {path.relative_to(ROOT / "csrc" / "include").as_posix() for path in (ROOT / "csrc" / "include").rglob("*.h")}
    build_examples(prefix, tmp_path / "examples")
    assert "3780 px" in run(tmp_path / "examples" / "pick_patches")


@needs_cmake
def test_every_header_compiles_alone(tmp_path):
    include = ROOT / "csrc" / "include"
    headers = sorted(include.rglob("*.h"))
    assert {"ps3.h", "c_api.h", "c_api_cuda.h", "gather.h", "select.h"} <= {header.name for header in headers}
    for header in headers:
        source = tmp_path / "alone.cpp"
        source.write_text(f"#include <{header.relative_to(include).as_posix()}>\nint main() {{ return 0; }}\n")
        run(CXX, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{include}", source)


@pytest.mark.skipif(not NVCC, reason="nvcc is not installed")
def test_the_arithmetic_compiles_for_cuda(tmp_path):
    """One kernel that calls every op's arithmetic on the device."""
    ops = ROOT / "csrc" / "ops"
    headers = sorted(path.name for path in ops.glob("*_math.h"))
    assert headers == ["frame_math.h", "gather_math.h", "position_rows_math.h", "resample_math.h", "scatter_math.h", "score_math.h", "select_math.h"]
    source = tmp_path / "math.cu"
    source.write_text("".join(f'#include "{name}"\n' for name in headers) + """
using namespace ps3::ops;
__global__ void all(float* out, const float* in, int n) {
  double weights[16];
  const double center = base_center(n, 1920, 3780);
  antialias_weights(center, 1920, 3780, antialias_window(center, 1920, 3780), weights);
  float taps[4];
  cubic_taps(phase_of(n, 3780, 1512).part, taps);
  const ColorWeights color = color_weights(ps3::ColorMatrix::kBT709, false);
  const ChromaPart<int> chroma = chroma_part(n, n, color);
  out[0] = fixed_weight(weights[0]) + to_byte_range(n) + taps[0] + clip_color(luma_part(n, color) + chroma.red);
  out[1] = normalize_byte<true>(in[0], 0.5f, 0.5f, 2.0f) + normalize_byte<false>(in[0], 0.5f, 0.5f, 2.0f) + normalize_sample(in[0], 0.5f, 2.0f);
  out[2] = probability(cosine(products(in, in, n))) + dot(in, in, n) + nearest(n, 27, 54) + more_probable(in[0], in[1]);
  out[3] = half_to_float(n) + table_center(n, 27, 54) + map_index(n, n, n) + channel_byte(ps3::PixelFormat::kBGR, n) + pixel_bytes(ps3::PixelFormat::kRGB);
}
""")
    run(NVCC, "-std=c++17", "-arch=sm_80", "--Werror", "all-warnings", f"-I{ROOT / 'csrc' / 'include'}", f"-I{ops}", "-c", source, "-o", tmp_path / "math.o")
