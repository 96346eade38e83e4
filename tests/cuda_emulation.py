"""Builds the kernels' bodies as host code (tests/cuda) and calls them: what a GPU would compute, block by block, on the processor."""
import ctypes
import os
import shutil
import subprocess
import sys

import numpy as np
from conftest import ROOT

import ps3_sdk

SEARCH = os.pathsep.join([os.path.join(sys.prefix, "bin"), os.environ.get("PATH", "")])
CXX, NVCC = (shutil.which(name, path=SEARCH) for name in ("c++", "nvcc"))
FORMATS = ("RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV")
ORDERS = (0, 1, 2)  # of the threads within a phase: ascending, descending, shuffled


def build(folder, *flags):
    """-> the library of tests/cuda, linked with the installed core."""
    sources = sorted((ROOT / "tests" / "cuda").glob("*.cpp"))
    library = folder / "emulation.so"
    subprocess.run([CXX, "-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *flags,
                    f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'ops'}", *map(str, sources),
                    os.path.join(ps3_sdk.cmake_dir(), "lib", "libps3.a"), "-lpthread", "-ldl", "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class CFrame(ctypes.Structure):
    _fields_ = [("format", ctypes.c_int), ("height", ctypes.c_int), ("width", ctypes.c_int), ("plane", ctypes.c_void_p * 2),
                ("stride_bytes", ctypes.c_ssize_t * 2), ("size_bytes", ctypes.c_size_t * 2), ("matrix", ctypes.c_int), ("full_range", ctypes.c_int)]


class CScale(ctypes.Structure):
    _fields_ = [("base_px", ctypes.c_int), ("size_px", ctypes.c_int), ("patch_px", ctypes.c_int)]


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def c_frame(format, planes, height, width, matrix="bt709", full_range=False):
    data = [plane.ctypes.data for plane in planes] + [None] * (2 - len(planes))
    strides = [plane.strides[0] for plane in planes] + [0] * (2 - len(planes))
    sizes = [(plane.shape[0] - 1) * plane.strides[0] + int(np.prod(plane.shape[1:])) for plane in planes] + [0] * (2 - len(planes))
    return CFrame(FORMATS.index(format), height, width, (ctypes.c_void_p * 2)(*data), (ctypes.c_ssize_t * 2)(*strides),
                  (ctypes.c_size_t * 2)(*sizes), ("bt601", "bt709").index(matrix), int(full_range))


def gather(library, frame, scales, ids, mean, std, half=False, order=0):
    """scales: [(base_px, size_px, patch_px)]; ids: one int32 array each -> list of (K, 3*patch*patch), as one launch."""
    outs = [np.full((len(each), 3 * patch * patch), 7, np.float16 if half else np.float32) for each, (_, _, patch) in zip(ids, scales)]
    num = len(scales)
    message = ctypes.create_string_buffer(512)
    code = library.emulate_gather(ctypes.byref(frame), num, (CScale * num)(*(CScale(*scale) for scale in scales)),
                                  (ctypes.c_void_p * num)(*(each.ctypes.data for each in ids)), (ctypes.c_size_t * num)(*map(len, ids)),
                                  pointer(np.asarray(mean, np.float32)), pointer(np.asarray(std, np.float32)),
                                  (ctypes.c_void_p * num)(*(out.ctypes.data for out in outs)), int(half), order, message)
    return code, message.value.decode(), outs
