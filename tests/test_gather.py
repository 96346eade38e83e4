"""gather cuts, resamples and normalises exactly as Pillow and the reference's interpolation do, for every size and format."""
import threading

import numpy as np
import pytest
import reference_ops
from ps3_sdk import _core
from ps3_sdk.errors import InputError

HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIZES = {"480p": (480, 640), "720p": (720, 1280), "odd": (1081, 1921), "4k": (2160, 3840), "portrait": (3840, 2160), "8k": (4320, 7680),
         "tiny": (2, 3), "one_pixel": (1, 1)}
SIGLIP = [(3780, 378, 14), (3780, 756, 14), (3780, 1512, 14), (3780, 3780, 14), (3780, 1512, 28)]
RADIO = [(3840, 384, 16), (3840, 768, 16), (3840, 1536, 16), (3840, 3840, 16), (3840, 1512, 28), (1536, 1536, 16), (1536, 1512, 28)]


def noise(h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def some_ids(size_px, patch_px, num=300, seed=1):
    """Corners, a 10 x 10 block, and patches from anywhere; ascending."""
    grid = size_px // patch_px
    block = (np.arange(min(grid, 10))[:, None] * grid + np.arange(min(grid, 10))).reshape(-1)
    anywhere = np.random.default_rng(seed).integers(0, grid * grid, num)
    return np.unique(np.concatenate([block, anywhere, [grid - 1, grid * (grid - 1), grid * grid - 1]])).astype(np.int32)


def check_against_reference(frame, rgb, geometry, mean_std, picture=None):
    """Equal to the bit where no interpolation is left, else within 1e-6 of the range that 0..255 is normalised to."""
    base_px, size_px, patch_px = geometry
    ids = some_ids(size_px, patch_px, 30)
    got = _core.gather(frame, *geometry, ids, *mean_std)
    expected = reference_ops.gather(rgb, *geometry, ids, *mean_std, picture)
    assert got.shape == (len(ids), 3 * patch_px * patch_px) and got.dtype == np.float32
    if base_px % size_px == 0 and base_px // size_px % 2 == 1:
        assert np.array_equal(got, expected)
    else:
        assert np.abs(got - expected).max() <= 1e-6 / min(mean_std[1])


@pytest.mark.parametrize("size", SIZES)
def test_equals_pillow_and_interpolation(size):
    rgb = noise(*SIZES[size])
    picture = reference_ops.squash(rgb, 3780)
    for geometry in SIGLIP:
        check_against_reference(_core.Frame("RGB", [rgb], *SIZES[size]), rgb, geometry, HALF, picture)


@pytest.mark.parametrize("geometry", RADIO)
def test_c_radio_geometry(geometry):
    rgb = noise(720, 1280)
    check_against_reference(_core.Frame("RGB", [rgb], 720, 1280), rgb, geometry, CLIP)


def test_equals_torch_within_one_byte_step():
    """The promise in the reference's own words: at most 1/255 of the range apart, equal for 99.9 % of the values."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rgb = noise(1081, 1921)
    pixels = torch.from_numpy(reference_ops.squash(rgb, 3780).copy()).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)[None]
    frame = _core.Frame("RGB", [rgb], 1081, 1921)
    for _, size_px, patch_px in SIGLIP:
        grid = size_px // patch_px
        scaled = torch.nn.functional.interpolate(pixels, size=(size_px, size_px), mode="bicubic")
        expected = torch.nn.functional.unfold(scaled, patch_px, stride=patch_px)[0].T.numpy()
        got = _core.gather(frame, 3780, size_px, patch_px, np.arange(grid * grid, dtype=np.int32), *HALF)
        difference = np.abs(got - expected)
        assert difference.max() <= 1e-6
        if size_px in (756, 3780):
            assert np.array_equal(got, expected)


def pitched(plane, padding):
    """The same values in rows that are `padding` bytes longer, followed by nothing."""
    flat = plane.reshape(plane.shape[0], -1)
    memory = np.full((flat.shape[0], flat.shape[1] + padding), 123, np.uint8)
    memory[:, :flat.shape[1]] = flat
    strides = (memory.strides[0],) + plane.strides[1:]
    return np.lib.stride_tricks.as_strided(memory, plane.shape, strides)


def planes_of(format, h, w):
    pixels = np.random.default_rng(5).integers(0, 256, (h, w, 4), dtype=np.uint8)
    if format in ("RGB", "BGR"):
        return [np.ascontiguousarray(pixels[..., :3])]
    if format in ("RGBA", "BGRA"):
        return [pixels]
    if format == "GRAY":
        return [np.ascontiguousarray(pixels[..., 0])]
    if format == "NV12":
        return [np.ascontiguousarray(pixels[..., 0]), np.ascontiguousarray(pixels[:h // 2, :, 1])]
    return [np.ascontiguousarray(pixels[..., :2]).reshape(h, 2 * w)]


@pytest.mark.parametrize("padding", [0, 1, 64])
@pytest.mark.parametrize("format", ["RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV"])
def test_every_format_with_and_without_padded_rows(format, padding):
    for h, w in [(482, 646), (6, 38), (2, 2)]:
        planes = planes_of(format, h, w)
        frame = _core.Frame(format, [pitched(plane, padding) for plane in planes], h, w)
        for geometry in [(756, 756, 14), (756, 378, 14)]:
            check_against_reference(frame, reference_ops.to_rgb(format, planes), geometry, HALF)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("format", ["NV12", "YUYV"])
def test_color_matrices(format, matrix, full_range):
    planes = planes_of(format, 64, 96)
    frame = _core.Frame(format, planes, 64, 96, matrix, full_range)
    check_against_reference(frame, reference_ops.to_rgb(format, planes, matrix, full_range), (756, 756, 14), HALF)


def test_color_table_is_the_rounded_standard():
    """The integers of the header against the definition of the matrices: white, black and the primaries within one step."""
    for (matrix, full_range), (offset, luma, red_v, green_u, green_v, blue_u) in reference_ops.COLOR_TABLE.items():
        kr, kb = (0.299, 0.114) if matrix == "bt601" else (0.2126, 0.0722)
        kg = 1 - kr - kb
        y_range, c_range = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
        expected = [y_range, 2 * (1 - kr) * c_range, 2 * (1 - kb) * kb / kg * c_range, 2 * (1 - kr) * kr / kg * c_range, 2 * (1 - kb) * c_range]
        got = np.array([luma, red_v, green_u, green_v, blue_u]) / 65536
        assert offset == (0 if full_range else 16) and np.abs(got - expected).max() < 2e-5


def test_every_byte_normalises_as_torchvision_does():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frame = _core.Frame("GRAY", [gray], 16, 16)
    for mean, std in (HALF, CLIP, ([0.1, 0.2, 0.3], [0.25, 0.7, 1.5])):
        got = _core.gather(frame, 16, 16, 16, np.zeros(1, np.int32), mean, std).reshape(3, 256)
        unit = np.arange(256, dtype=np.float32) / np.float32(255)
        expected = [(unit - np.float32(m)) / np.float32(s) for m, s in zip(mean, std)]
        assert np.array_equal(got, np.stack(expected))


def test_order_repeats_threads_and_out_change_nothing():
    rgb = noise(300, 400)
    frame = _core.Frame("RGB", [rgb], 300, 400)
    for geometry in [(3780, 3780, 14), (3780, 1512, 14)]:
        grid = geometry[1] // geometry[2]
        everything = _core.gather(frame, *geometry, np.arange(grid * grid, dtype=np.int32), *HALF, 1)
        picked = np.random.default_rng(3).integers(0, grid * grid, 200).astype(np.int32)  # unsorted, some twice
        for threads in (0, 1, 2, 5):
            out = np.full((200, 588), np.nan, np.float32)
            assert _core.gather(frame, *geometry, picked, *HALF, threads, out) is out
            assert np.array_equal(out, everything[picked])


PARTS = {
    "inputs": [(378, 14), (1512, 28)], "turned": [(1512, 28), (378, 14)], "three": [(378, 14), (3780, 14), (1512, 28)], "one patch to one": [(1512, 14), (378, 14), (1512, 28)],
    "the same twice": [(1512, 28), (1512, 28)], "no whole number": [(378, 18), (1512, 28)], "one coarse scale": [(252, 14), (378, 14)]}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("size", ["4k", "odd", "portrait", "one_pixel"])
def test_parts_are_what_each_gives_alone(parts, size):
    rgb = noise(*SIZES[size])
    frame = _core.Frame("RGB", [rgb], *SIZES[size])
    whole = [np.arange((px // patch_px) ** 2, dtype=np.int32) for px, patch_px in PARTS[parts]]
    if parts == "three":
        whole[1] = some_ids(3780, 14)
    for threads, (mean, std) in ((1, HALF), (3, CLIP)):
        wanted = [(px, patch_px, ids, np.full((len(ids), 3 * patch_px ** 2), np.nan, np.float32)) for (px, patch_px), ids in zip(PARTS[parts], whole)]
        _core.gather_parts(frame, 3780, wanted, mean, std, threads)
        for px, patch_px, ids, out in wanted:
            assert np.array_equal(out, _core.gather(frame, 3780, px, patch_px, ids, mean, std)), (px, patch_px)


@pytest.mark.parametrize("base_px, parts", [(3840, [(384, 16), (1536, 32)]), (1536, [(384, 16), (768, 16)]), (64, [(16, 8), (32, 8)]), (60, [(6, 2), (24, 4)])])
def test_parts_of_other_pyramids(base_px, parts):
    rgb = noise(333, 517)
    frame = _core.Frame("BGR", [rgb], 333, 517)
    wanted = [(px, patch_px, np.arange((px // patch_px) ** 2, dtype=np.int32), np.full(((px // patch_px) ** 2, 3 * patch_px ** 2), np.nan, np.float32)) for px, patch_px in parts]
    _core.gather_parts(frame, base_px, wanted, *HALF)
    for px, patch_px, ids, out in wanted:
        assert np.array_equal(out, _core.gather(frame, base_px, px, patch_px, ids, *HALF)), (px, patch_px)


def test_parts_with_other_ids_and_nothing_outside_of_them():
    frame = _core.Frame("RGB", [noise(100, 120)], 100, 120)
    low, view = np.arange(729, dtype=np.int32), np.arange(54 * 54, dtype=np.int32)
    turned, repeated = low[::-1].copy(), np.concatenate([view[:-1], view[:1]])
    for low_ids, view_ids in ((turned, view), (low, repeated), (low, view[:-1]), (low[:0], view), (low, view)):
        memory = [np.full(4096 + len(ids) * 3 * px ** 2 + 4096, 7.0, np.float32) for ids, px in ((low_ids, 14), (view_ids, 28))]
        outs = [each[4096:-4096].reshape(len(ids), 3 * px ** 2) for each, ids, px in zip(memory, (low_ids, view_ids), (14, 28))]
        _core.gather_parts(frame, 3780, [(378, 14, low_ids, outs[0]), (1512, 28, view_ids, outs[1])], *HALF)
        assert np.array_equal(outs[0], _core.gather(frame, 3780, 378, 14, low_ids, *HALF)) and np.array_equal(outs[1], _core.gather(frame, 3780, 1512, 28, view_ids, *HALF))
        assert all((each[:4096] == 7).all() and (each[-4096:] == 7).all() for each in memory)


def test_bad_parts_are_refused_before_any_is_cut():
    frame, out = _core.Frame("RGB", [noise(20, 20)], 20, 20), np.full((729, 588), 7, np.float32)
    good = (378, 14, np.arange(729, dtype=np.int32), out)
    _core.gather_parts(frame, 3780, [], *HALF)
    for parts, said in (([good, (378, 14, np.array([729], np.int32), out[:1])], "id[0] is 729"),
                        ([good, (378, 14, np.arange(3, dtype=np.int32), out)], "needs (3, 588)"), ([good, (377, 14, good[2], out)], "377 is no multiple")):
        with pytest.raises(InputError) as error:
            _core.gather_parts(frame, 3780, parts, *HALF)
        assert said in str(error.value) and (out == 7).all()


def test_nothing_is_written_outside_out():
    memory = np.full(4096 + 588 * 30 + 4096, 7.0, np.float32)
    out = memory[4096:4096 + 588 * 30].reshape(30, 588)
    frame = _core.Frame("RGB", [noise(100, 100)], 100, 100)
    for size_px in (378, 756, 1512, 3780):
        _core.gather(frame, 3780, size_px, 14, np.arange(600, 630, dtype=np.int32), *HALF, 2, out)
    assert (memory[:4096] == 7).all() and (memory[-4096:] == 7).all()


def test_no_patches_give_an_empty_array():
    frame = _core.Frame("RGB", [noise(10, 10)], 10, 10)
    assert _core.gather(frame, 3780, 756, 14, np.empty(0, np.int32), *HALF).shape == (0, 588)


def test_two_threads_at_once():
    rgb = noise(1080, 1920)
    frame = _core.Frame("RGB", [rgb], 1080, 1920)
    ids = some_ids(3780, 14)
    alone = _core.gather(frame, 3780, 3780, 14, ids, *HALF)
    results = [None] * 4
    def work(i):
        results[i] = [_core.gather(frame, 3780, 3780, 14, ids, *HALF, 1 + i % 2) for _ in range(5)]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(np.array_equal(each, alone) for result in results for each in result)


def test_a_frame_keeps_its_planes_alive():
    rgb = noise(64, 64)
    expected = reference_ops.gather(rgb, 756, 756, 14, np.arange(5), *HALF)
    frame = _core.Frame("RGB", [rgb.copy()], 64, 64)
    noise(64, 64, 9)
    assert np.array_equal(_core.gather(frame, 756, 756, 14, np.arange(5, dtype=np.int32), *HALF), expected)


IDS = np.arange(3, dtype=np.int32)
BAD_CALLS = {
    "id_above": (dict(ids=np.array([0, 2916], np.int32)), "id[1] is 2916; a 54x54 grid has ids 0..2915"),
    "id_negative": (dict(ids=np.array([-1], np.int32)), "id[0] is -1"),
    "ids_int64": (dict(ids=np.arange(3)), "ids is int64; needs int32"),
    "ids_float": (dict(ids=np.arange(3.0)), "ids is float64; needs int32"),
    "ids_rank": (dict(ids=IDS[None]), "ids has shape (1, 3); needs 1 axis"),
    "ids_list": (dict(ids=[0, 1]), "ids is a list; needs a numpy array"),
    "ids_strided": (dict(ids=np.arange(6, dtype=np.int32)[::2]), "ids is not in C order"),
    "scale_no_multiple": (dict(size_px=757), "size_px 757 is no multiple of patch_px 14"),
    "scale_above_base": (dict(size_px=3794), "size_px 3794 is above base_px 3780"),
    "patch_zero": (dict(patch_px=0), "patch_px 0"),
    "patch_huge": (dict(patch_px=5000), "patch_px 5000"),
    "base_zero": (dict(base_px=0), "base_px 0"),
    "std_zero": (dict(std=[0.5, 0, 0.5]), "channel 1 has mean 0.5 and std 0"),
    "mean_nan": (dict(mean=[0.5, 0.5, np.nan]), "channel 2 has mean nan"),
    "mean_two": (dict(mean=[0.5, 0.5]), "mean is [0.5, 0.5]; needs 3 numbers"),
    "out_shape": (dict(out=np.empty((3, 587), np.float32)), "out has shape (3, 587); needs (3, 588)"),
    "out_dtype": (dict(out=np.empty((3, 588))), "out is float64; needs float32"),
    "out_strided": (dict(out=np.empty((588, 3), np.float32).T), "out is not in C order"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_say_what_is_wrong(name):
    change, message = BAD_CALLS[name]
    call = dict(base_px=3780, size_px=756, patch_px=14, ids=IDS, mean=[0.5] * 3, std=[0.5] * 3) | change
    with pytest.raises(InputError) as error:
        _core.gather(_core.Frame("RGB", [noise(20, 30)], 20, 30), **call)
    assert message in str(error.value) and str(error.value).startswith("[gather] ")


U8 = np.uint8
BAD_FRAMES = {
    "format": (("XYZ", [noise(4, 4)], 4, 4), "format is 'XYZ'; needs RGB, BGR"),
    "matrix": (("RGB", [noise(4, 4)], 4, 4, "bt2020"), "matrix is 'bt2020'; needs bt601 or bt709"),
    "float": (("RGB", [np.zeros((4, 4, 3), np.float32)], 4, 4), "needs uint8"),
    "int8": (("RGB", [np.zeros((4, 4, 3), np.int8)], 4, 4), "needs uint8"),
    "rank": (("RGB", [np.zeros((4, 4), U8)], 4, 4), "has shape (4, 4); a frame of 4x4 (h, w) needs (4, 4, 3)"),
    "channels": (("RGB", [np.zeros((4, 4, 4), U8)], 4, 4), "has shape (4, 4, 4)"),
    "empty": (("RGB", [np.zeros((0, 4, 3), U8)], 0, 4), "size is 0x4 (h, w)"),
    "size": (("RGB", [noise(4, 4)], 5, 4), "a frame of 5x4 (h, w) needs (5, 4, 3)"),
    "negative_rows": (("RGB", [noise(4, 4)[::-1]], 4, 4), "row stride -12; needs at least 12"),
    "negative_columns": (("RGB", [noise(4, 4)[:, ::-1]], 4, 4), "stride -3 on axis 1; needs 3, packed pixels"),
    "channel_order": (("RGB", [noise(4, 4)[:, :, ::-1]], 4, 4), "stride -1 on axis 2; needs 1, packed pixels"),
    "skipped_columns": (("GRAY", [noise(4, 8)[:, ::2, 0]], 4, 4), "stride 6 on axis 1; needs 1"),
    "overlapping_rows": (("GRAY", [np.lib.stride_tricks.as_strided(noise(4, 4), (4, 8), (2, 1))], 4, 8), "row stride 2; needs at least 8"),
    "nv12_odd": (("NV12", [np.zeros((5, 4), U8), np.zeros((2, 4), U8)], 5, 4), "NV12 of 5x4 (h, w); needs even height and width"),
    "nv12_one_plane": (("NV12", [np.zeros((4, 4), U8)], 4, 4), "NV12 got 1 planes; needs 2"),
    "nv12_chroma": (("NV12", [np.zeros((4, 4), U8), np.zeros((4, 4), U8)], 4, 4), "plane 1 has shape (4, 4); a frame of 4x4 (h, w) needs (2, 4)"),
    "yuyv_odd": (("YUYV", [np.zeros((4, 6), U8)], 4, 3), "YUYV of width 3; needs an even width"),
    "no_buffer": (("RGB", [[1, 2, 3]], 4, 4), "plane 0 is a list; needs a uint8 array"),
    "too_large": (("GRAY", [np.zeros((1, 65537), U8)], 1, 65537), "size is 1x65537 (h, w); needs 1..65536 each"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames_say_what_is_wrong(name):
    arguments, message = BAD_FRAMES[name]
    with pytest.raises(InputError) as error:
        _core.Frame(*arguments)
    assert message in str(error.value) and str(error.value).startswith("[frame] ")
