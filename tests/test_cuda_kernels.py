"""The kernels' bodies, run block by block on the processor, give what the processor's loops give, to the bit.

Nothing here runs on a GPU: what is tested is every line a GPU thread executes, in three orders of the threads, with memory full of
garbage. What only a GPU shows is tests/test_cuda.py and benchmarks/gpu.py.
"""
import ctypes

import cuda_emulation as emulation
import numpy as np
import pytest
from cuda_emulation import CXX, FORMATS, ORDERS, c_frame, pointer
from test_gather import CLIP, HALF, RADIO, SIGLIP, SIZES, noise, pitched, planes_of, some_ids

from ps3_sdk import _core

pytestmark = pytest.mark.skipif(not CXX, reason="a C++ compiler is not installed")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return emulation.build(tmp_path_factory.mktemp("kernels"))


def check_gather(kernels, format, planes, h, w, scales, mean_std, num=20, order=0, **color):
    frame = _core.Frame(format, planes, h, w, *color.values())
    ids = [some_ids(size_px, patch_px, num) for _, size_px, patch_px in scales]
    code, message, outs = emulation.gather(kernels, c_frame(format, planes, h, w, *color.values()), scales, ids, *mean_std, order=order)
    assert code == 0, message
    for out, scale, each in zip(outs, scales, ids):
        assert np.array_equal(out, _core.gather(frame, *scale, each, *mean_std)), scale


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", SIZES)
def test_gather_of_all_scales_in_one_launch(kernels, size, order):
    h, w = SIZES[size]
    pixels = noise(h, w)
    for scales, mean_std in ((SIGLIP, HALF), (RADIO[:5], CLIP), (RADIO[5:], CLIP)):
        check_gather(kernels, "RGB", [pixels], h, w, scales, mean_std, order=order)


@pytest.mark.parametrize("padding", [0, 1, 64])
@pytest.mark.parametrize("format", FORMATS)
def test_gather_of_every_format_with_and_without_padded_rows(kernels, format, padding):
    for h, w in [(482, 646), (6, 38), (2, 2)]:
        planes = [pitched(plane, padding) for plane in planes_of(format, h, w)]
        check_gather(kernels, format, planes, h, w, [(756, 756, 14), (756, 378, 14), (756, 252, 14)], HALF)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("format", ["NV12", "YUYV"])
def test_gather_of_color_matrices(kernels, format, matrix, full_range):
    check_gather(kernels, format, planes_of(format, 64, 96), 64, 96, [(756, 756, 14), (756, 504, 14)], HALF, matrix=matrix, full_range=full_range)


@pytest.mark.parametrize("scale", [(100, 99, 33), (97, 96, 1), (5, 5, 5), (1, 1, 1), (300, 75, 25), (301, 70, 70), (64, 2, 1), (1000, 1000, 500), (63, 21, 7)])
def test_gather_of_odd_geometry(kernels, scale):
    """Ratios around 1 and 4 where base pixels begin and cease to be shared, patches cut into chunks along both axes."""
    for h, w in [(77, 130), (1, 500), (700, 3)]:
        check_gather(kernels, "RGB", [noise(h, w)], h, w, [scale], CLIP, num=5, order=2)


def test_gather_low_res_and_view_inputs(kernels):
    """All patches of the low-res picture and some of the score network's 1512 px view, from a 4K NV12 frame."""
    planes = planes_of("NV12", 2160, 3840)
    ids = [np.arange(729, dtype=np.int32), some_ids(1512, 28, 50)]
    scales = [(3780, 378, 14), (3780, 1512, 28)]
    code, message, outs = emulation.gather(kernels, c_frame("NV12", planes, 2160, 3840), scales, ids, *HALF, order=1)
    frame = _core.Frame("NV12", planes, 2160, 3840)
    assert code == 0, message
    assert all(np.array_equal(out, _core.gather(frame, *scale, each, *HALF)) for out, scale, each in zip(outs, scales, ids))


def test_gather_into_halves_rounds_the_floats(kernels):
    pixels = noise(480, 640)
    ids = [some_ids(size_px, patch_px, 10) for _, size_px, patch_px in SIGLIP]
    code, message, outs = emulation.gather(kernels, c_frame("RGB", [pixels], 480, 640), SIGLIP, ids, *CLIP, half=True)
    assert code == 0, message
    frame = _core.Frame("RGB", [pixels], 480, 640)
    for out, scale, each in zip(outs, SIGLIP, ids):
        assert np.array_equal(out, _core.gather(frame, *scale, each, *CLIP).astype(np.float16))


def test_halves_round_as_numpy_does(kernels):
    kernels.half_of.argtypes, kernels.half_of.restype = [ctypes.c_float], ctypes.c_ushort
    random = np.random.default_rng(0)
    values = np.concatenate([random.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32).view(np.float32),
                             np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32),
                             np.float32([65519.99, 65520, 65504, 6e-8, 2.98e-8, 2.99e-8, 6.1e-5, 0, -0.0, np.inf, -np.inf])])
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    assert np.array_equal(np.array([kernels.half_of(value) for value in values], np.uint16), expected)
    assert kernels.half_of(float("nan")) & 0x7fff > 0x7c00


def test_gather_marks_ids_out_of_range(kernels):
    """They cannot be refused without waiting for the GPU: their patches are NaN, the others are right."""
    pixels = noise(64, 64)
    ids = np.array([0, -1, 5, 4, 2**31 - 1], np.int32)
    code, message, (out,) = emulation.gather(kernels, c_frame("RGB", [pixels], 64, 64), [(28, 28, 14)], [ids], *HALF)
    assert code == 0, message
    assert [bool(np.isnan(row).all()) for row in out] == [False, True, True, True, True]
    assert np.array_equal(out[0], _core.gather(_core.Frame("RGB", [pixels], 64, 64), 28, 28, 14, ids[:1], *HALF)[0])


def test_gather_refuses_frames_too_large_for_a_chunk(kernels):
    pixels = np.zeros((1, 65535, 3), np.uint8)
    code, message, _ = emulation.gather(kernels, c_frame("RGB", [pixels], 1, 65535), [(14, 14, 14)], [np.zeros(1, np.int32)], *HALF)
    assert code == 3 and message.startswith("[gather] a 1x65535 (h, w) frame over base_px 14")


def test_chunks_leave_room_for_several_blocks_a_multiprocessor(kernels):
    """At most 16 kB of shared memory each, for every usual frame and scale: six blocks of 128 threads even with 100 kB."""
    for h, w in SIZES.values():
        for scale in SIGLIP + RADIO:
            rows, cols, shared = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
            assert kernels.chunk_of(h, w, ctypes.byref(emulation.CScale(*scale)), ctypes.byref(rows), ctypes.byref(cols), ctypes.byref(shared)) == 0
            assert shared.value <= 16 * 1024 and rows.value >= 2 and cols.value >= 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid, width, view", [(27, 1152, (54, 512)), (24, 1024, (54, 512)), (5, 33, (7, 17)), (1, 1, (1, 1)), (27, 48, None), (3, 16, None)])
def test_score(kernels, grid, width, view, order):
    random = np.random.default_rng(2)
    floats = lambda *shape: random.standard_normal(shape, np.float32)
    features, prompt = floats(grid * grid, width), floats(width)
    fine, weight, bias = (floats(view[0]**2, view[1]), floats(view[1], width), floats(view[1])) if view else (None, None, None)
    expected = _core.score(features, fine, prompt, weight, bias)
    prob, message = np.full((grid, grid), 7, np.float32), ctypes.create_string_buffer(512)
    code = kernels.emulate_score(pointer(features), grid, width, pointer(prompt), pointer(fine) if view else None, *(view or (0, 0)),
                                 pointer(weight) if view else None, pointer(bias) if view else None, pointer(prob), order, message)
    assert code == 0, message.value
    assert np.array_equal(prob, expected)


def select(kernels, prob, rows, cols, count, taken, order=0):
    ids, message = np.full(count, 7, np.int32), ctypes.create_string_buffer(512)
    code = kernels.emulate_select(pointer(prob), *prob.shape, rows, cols, pointer(taken), pointer(ids), count, order, message)
    return code, message.value.decode(), ids


@pytest.mark.parametrize("order", ORDERS)
def test_select_with_ties_and_taken_patches(kernels, order):
    random = np.random.default_rng(3)
    for (h, w), (rows, cols) in [((27, 27), (54, 54)), ((27, 27), (270, 270)), ((24, 24), (240, 240)), ((5, 7), (33, 19)), ((9, 9), (4, 3)), ((1, 1), (50, 90)), ((128, 128), (7, 300))]:
        for levels in (1, 3, 10**6):
            prob = (random.integers(0, levels, (h, w)) / levels).astype(np.float32)
            prob[random.random((h, w)) < 0.1] *= -0.0
            expected_taken = (random.random(rows * cols) < 0.3).astype(np.uint8)
            free = int((expected_taken == 0).sum())
            for count in (0, 1, free // 3, free):
                taken, reference = expected_taken.copy(), expected_taken.copy()
                expected = _core.select(prob, rows, cols, count, reference)
                if count:
                    code, message, ids = select(kernels, prob, rows, cols, count, taken, order)
                    assert code == 0, message
                    assert np.array_equal(ids, expected) and np.array_equal(taken, reference)


def test_select_of_what_the_processor_refuses(kernels):
    """NaN is picked last; what is missing is -1. Neither can be refused without waiting for the GPU."""
    prob = np.float32([[np.nan, 0.5], [0.25, -np.inf]])
    taken = np.zeros(16, np.uint8)
    code, message, ids = select(kernels, prob, 4, 4, 8, taken)
    assert code == 0 and ids.tolist() == [2, 3, 6, 7, 8, 9, 12, 13], message
    code, message, ids = select(kernels, prob, 4, 4, 16, taken)
    assert code == 0 and ids.tolist() == [0, 1, 4, 5, 10, 11, 14, 15] + [-1] * 8 and taken.all(), message
    assert select(kernels, prob, 4, 4, 17, taken)[0] == 2
    assert select(kernels, np.zeros((129, 2), np.float32), 4, 4, 1, taken)[:2] == (3, "[select] a map of 129x2; Cuda ranks up to 128x128. Call it with Cpu.")


def position_rows(kernels, table, g, n, ids, residual=None, crop=False, order=0):
    out, message, lanes = np.full((len(ids), table.shape[1]), 7, np.float32), ctypes.create_string_buffer(512), ctypes.c_int()
    kind = 0 if residual is None else 1 if residual.dtype == np.float32 else 2
    code = kernels.emulate_position_rows(pointer(table), g, table.shape[1], pointer(residual) if kind else None, kind, int(crop), n, pointer(ids),
                                         ctypes.c_size_t(len(ids)), pointer(out), ctypes.byref(lanes), order, message)
    return code, message.value.decode(), out, lanes.value


@pytest.mark.parametrize("kind", [None, np.float32, np.float16])
@pytest.mark.parametrize("g, n, width, crop", [(27, 270, 1152, False), (27, 54, 48, False), (27, 27, 48, False), (64, 24, 21, False), (16, 5, 400, True), (13, 90, 5, False), (40, 3, 8, False)])
def test_position_rows(kernels, g, n, width, crop, kind):
    random = np.random.default_rng(4)
    table = random.standard_normal((g * g, width), np.float32)
    residual = None if kind is None else random.standard_normal((n * n, width), np.float32).astype(kind)
    ascending = np.unique(random.integers(0, n * n, 60)).astype(np.int32)
    block = (np.arange(min(n, 10))[:, None] * n + np.arange(min(n, 10))).reshape(-1).astype(np.int32)
    for ids in (ascending, block, random.permutation(np.concatenate([block, ascending, block])).astype(np.int32), block[::-1].copy(), block[:1]):
        for order in ORDERS:
            code, message, out, lanes = position_rows(kernels, table, g, n, ids, residual, crop, order)
            assert code == 0, message
            assert np.array_equal(out, _core.position_rows(table, g, n, ids, residual, crop))
            assert lanes == (4 if width % 4 == 0 and g < 40 else 1)  # the ring of 40 -> 3 fits one lane only


def test_position_rows_marks_ids_out_of_range_and_refuses_large_shrinking(kernels):
    table = np.random.default_rng(5).standard_normal((9, 8), np.float32)
    code, _, out, _ = position_rows(kernels, table, 3, 2, np.array([3, -1, 4, 0], np.int32))
    assert code == 0 and np.isnan(out).all(axis=1).tolist() == [False, True, True, False]
    code, message, _, _ = position_rows(kernels, np.zeros((100 * 100, 4), np.float32), 100, 2, np.zeros(1, np.int32))
    assert code == 3 and "shrunk to 2x2" in message


@pytest.mark.parametrize("order", ORDERS)
def test_scatter(kernels, order):
    random = np.random.default_rng(6)
    for rows, cols, channels, num in [(27, 27, 48, 729), (54, 54, 1152, 85), (3, 50, 33, 0), (1, 1, 1, 1), (70, 41, 5, 300)]:
        ids = np.sort(random.permutation(rows * cols)[:num]).astype(np.int32)
        tokens = random.standard_normal((num, channels), np.float32)
        out, message = np.full((channels, rows, cols), 7, np.float32), ctypes.create_string_buffer(512)
        args = lambda i, t: (pointer(t), channels, pointer(i), ctypes.c_size_t(len(i)), rows, cols, pointer(out), order, message)
        assert kernels.emulate_scatter(*args(ids, tokens)) == 0, message.value
        assert np.array_equal(out, _core.scatter(tokens, ids, rows, cols))
    odd = np.array([5, -1, 5, 10**6], np.int32)  # the last of equal ids wins, those out of range are left out
    tokens = np.arange(4 * channels, dtype=np.float32).reshape(4, channels)
    assert kernels.emulate_scatter(*args(odd, tokens)) == 0
    assert np.array_equal(out, _core.scatter(tokens[2:3].copy(), odd[:1].copy(), rows, cols))
