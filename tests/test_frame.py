"""Frame.of takes what users have, without copying pixels, and refuses the rest with the fix in the message."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ps3_sdk import _core
from ps3_sdk.errors import InputError
from ps3_sdk.frame import FORMATS, Frame
from ps3_sdk.picture import size_of_file

S = 8
RGB = np.random.default_rng(0).integers(0, 256, (S, S, 3), np.uint8)
BGR, RGBA = RGB[..., ::-1].copy(), np.dstack((RGB, np.full((S, S), 7, np.uint8)))
BGRA = np.dstack((BGR, np.zeros((S, S), np.uint8)))
GRAY = RGB[..., 0].copy()
GRAY3 = np.repeat(GRAY[..., None], 3, 2)


def seen_by_core(frame):
    """(S, S, 3) uint8: the pixels that gather() reads, for a frame of S x S (then no resampling takes place)."""
    patch = _core.gather(frame.core, S, S, S, np.zeros(1, np.int32), np.zeros(3, np.float32), np.ones(3, np.float32))
    return np.rint(patch.reshape(3, S, S).transpose(1, 2, 0) * 255).astype(np.uint8)


def png(array, **options):
    out = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(out, "PNG", **options)
    return out.getvalue()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(png(RGB))
    return path


# -- what is taken ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data, format, kind, wanted", [
    (RGB, None, "RGB", RGB), (RGB, "rgb", "RGB", RGB), (BGR, "BGR", "BGR", RGB), (RGBA, None, "RGBA", RGB), (BGRA, "BGRA", "BGRA", RGB),
    (GRAY, None, "GRAY", GRAY3), (GRAY[..., None], None, "GRAY", GRAY3), (memoryview(RGB), None, "RGB", RGB),
    (Image.fromarray(RGB), None, "RGB", RGB), (Image.fromarray(RGBA), None, "RGBA", RGB), (Image.fromarray(GRAY), None, "GRAY", GRAY3),
    (png(RGB), None, "RGB", RGB), (bytearray(png(RGB)), None, "RGB", RGB), (memoryview(png(GRAY)), None, "GRAY", GRAY3),
    (png(RGBA), None, "RGBA", RGB),
], ids=str)
def test_arrays_pictures_and_bytes(data, format, kind, wanted):
    frame = Frame.of(data, format)
    assert (frame.format, frame.height, frame.width) == (kind, S, S)
    assert np.array_equal(seen_by_core(frame), wanted)
    assert np.array_equal(np.asarray(frame.picture()), wanted)


def test_paths_of_both_kinds(file):
    for path in (file, str(file)):
        frame = Frame.of(path)
        assert np.array_equal(seen_by_core(frame), RGB) and file.name in frame.source


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "La", "RGBa"])
def test_other_pil_modes_are_converted_to_rgb(mode):
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)      # premultiplied alpha takes two steps
    image = Image.fromarray(RGB).convert(straight).convert(mode)
    assert np.array_equal(seen_by_core(Frame.of(image)), np.asarray(image.convert(straight).convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped():
    values = (np.arange(S * S, dtype=np.uint16) * 1000).reshape(S, S)
    for data in (Image.fromarray(values), png(Image.fromarray(values))):
        assert np.array_equal(seen_by_core(Frame.of(data))[..., 0], values >> 8)


def test_an_animation_gives_its_first_frame():
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "GIF", save_all=True, append_images=[Image.fromarray(RGBA[..., :3] // 2)])
    assert Frame.of(out.getvalue()).height == S


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_and_bytes_but_not_to_pil_images(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png(RGB, exif=exif)
    (tmp_path / "turned.png").write_bytes(data)
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1),
              7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}[orientation]
    assert np.array_equal(seen_by_core(Frame.of(data)), turned)
    assert np.array_equal(seen_by_core(Frame.of(tmp_path / "turned.png")), turned)
    assert np.array_equal(seen_by_core(Frame.of(Image.open(io.BytesIO(data)))), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiffs_size_is_turned_once(orientation, tmp_path):
    """Pillow turns it when it opens the file, as its older releases do not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(tmp_path / "turned.tif", exif=exif)
    frame = Frame.of(tmp_path / "turned.tif")
    assert size_of_file(tmp_path / "turned.tif") == (frame.height, frame.width) == ((40, 70) if orientation < 5 else (70, 40))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_files_size_is_told_upright_from_its_header(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png(np.zeros((40, 70, 3), np.uint8), exif=exif)
    (tmp_path / "turned.png").write_bytes(data)
    frame = Frame.of(tmp_path / "turned.png")
    assert size_of_file(tmp_path / "turned.png") == (frame.height, frame.width) == ((40, 70) if orientation < 5 else (70, 40))
    (tmp_path / "cut.png").write_bytes(data[:-30])      # damage behind the header is for whoever decodes it
    assert size_of_file(tmp_path / "cut.png") == (frame.height, frame.width)
    (tmp_path / "none.png").write_bytes(b"none")
    for name, says in (("none.png", "not a picture"), ("missing.png", "cannot open")):
        with pytest.raises(InputError, match=says):
            size_of_file(tmp_path / name)


def test_a_frame_is_returned_as_it_is():
    frame = Frame.of(BGR, "BGR")
    assert Frame.of(frame) is frame and Frame.of(frame, "BGR") is frame
    with pytest.raises(InputError, match="carries its own format"):
        Frame.of(frame, "RGB")


def yuv_planes(seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (S, S), np.uint8), rng.integers(0, 256, (S // 2, S), np.uint8)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
def test_nv12_and_yuyv_look_the_same_to_the_core_and_to_the_eye(matrix, full_range):
    luma, chroma = yuv_planes()
    one = np.concatenate((luma, chroma))
    frames = [Frame.of(one, "NV12", matrix, full_range), Frame.of((luma, chroma), None, matrix, full_range),
              Frame.of([luma, chroma.reshape(S // 2, S // 2, 2)], "NV12", matrix, full_range)]
    for frame in frames:
        assert (frame.format, frame.height, frame.width) == ("NV12", S, S)
        assert np.array_equal(seen_by_core(frame), seen_by_core(frames[0]))
        assert np.abs(np.asarray(frame.picture()).astype(int) - seen_by_core(frame)).max() <= 1
    yuyv = np.random.default_rng(2).integers(0, 256, (S, S, 2), np.uint8)
    for data in (yuyv, yuyv.reshape(S, 2 * S)):
        frame = Frame.of(data, "YUYV", matrix, full_range)
        assert (frame.format, frame.height, frame.width) == ("YUYV", S, S)
        assert np.abs(np.asarray(frame.picture()).astype(int) - seen_by_core(frame)).max() <= 1


def test_a_yuv_frame_taller_than_one_band_is_drawn_whole():
    luma = np.random.default_rng(3).integers(0, 256, (514, 4), np.uint8)
    frame = Frame.of((luma, np.full((257, 4), 128, np.uint8)), full_range=True)
    assert np.array_equal(np.asarray(frame.picture()), np.repeat(luma[..., None], 3, 2))


# -- memory -------------------------------------------------------------------------------------------------------

def wide():
    return np.zeros((3 * S, 3 * S, 3), np.uint8)


@pytest.mark.parametrize("whole, view, format", [
    (np.zeros((S, S, 3), np.uint8), lambda a: a, "BGR"),
    (wide(), lambda a: a[2:2 + S, 3:3 + S], "RGB"),
    (wide(), lambda a: a[:2 * S:2, :S], "RGB"),
    (np.zeros((S, 64), np.uint8), lambda a: a[:, :S], "GRAY"),
    (np.zeros((S, 64), np.uint8), lambda a: a[:, :2 * S], "YUYV"),
    (np.zeros((S, 64, 2), np.uint8), lambda a: a[:, 4:4 + S], "YUYV"),
    (np.zeros((S * 3 // 2, 64), np.uint8), lambda a: a[:, :S], "NV12"),
], ids=["whole", "crop", "every other row", "pitch", "YUYV", "YUYV crop", "NV12"])
def test_arrays_are_not_copied(whole, view, format):
    data = view(whole)
    frame = Frame.of(data, format)
    before = seen_by_core(frame).copy()
    assert all(np.shares_memory(plane, whole) for plane in frame._planes)
    whole[:] = 200
    assert not np.array_equal(seen_by_core(frame), before)
    assert (np.asarray(frame.picture()) != before).any()


def test_the_memory_lives_as_long_as_the_frame():
    frame = Frame.of(RGB.copy())
    for _ in range(20):
        np.full((S, S, 3), 255, np.uint8)
    assert np.array_equal(seen_by_core(frame), RGB)


def test_read_only_arrays_are_taken():
    data = RGB.copy()
    data.flags.writeable = False
    assert np.array_equal(seen_by_core(Frame.of(data)), RGB)


@pytest.mark.parametrize("view", [
    np.zeros((9, 9, 3), np.uint8)[5:6, 2:8], np.zeros((9, 9, 3), np.uint8)[::-1][5:6], np.zeros((9, 9), np.uint8)[:, ::3][:, :1],
    np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)[::-1, ::-1]], ids=lambda v: str(v.shape))
def test_frames_of_one_row_or_one_column(view):
    frame = Frame.of(view)
    assert (frame.height, frame.width) == view.shape[:2] and frame.picture().size == view.shape[1::-1]


# -- tensors ------------------------------------------------------------------------------------------------------

def test_tensors_share_their_memory():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.from_numpy(RGB.copy())
    frame = Frame.of(tensor)
    assert np.array_equal(seen_by_core(frame), RGB)
    tensor += 1
    assert np.array_equal(seen_by_core(frame), RGB + np.uint8(1))
    assert Frame.of(tensor[:, 2:6]).width == 4


@pytest.mark.parametrize("make, says", [
    (lambda t: t.permute(2, 0, 1), "channels come last.*permute"),
    (lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0), "must be packed.*ascontiguousarray"),
    (lambda t: t.float() / 255, r"float32; pixels are uint8.*\* 255"),
    (lambda t: t[None], r"one frame at a time: array\[0\]"),
    (lambda t: t.to("meta"), "no uint8 memory"),
    (lambda t: t.bfloat16(), "uint8"),
    (lambda t: t.to_sparse(), "uint8"),
    (lambda t: (t / 255.0).requires_grad_(), "uint8"),
])
def test_tensors_that_are_no_frame(make, says):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(InputError, match=says):
        Frame.of(make(torch.from_numpy(RGB.copy())))


@pytest.mark.skipif(_core.build_info()["cuda"], reason="a core with CUDA kernels takes tensors of a GPU")
def test_a_tensor_on_a_device_is_refused_with_the_device_and_the_way():
    class OnDevice:
        def __dlpack__(self, **_):
            raise AssertionError("must not be asked for")

        def __dlpack_device__(self):
            return 2, 1

    with pytest.raises(InputError, match=r"on CUDA device 1.*tensor\.cpu\(\)"):
        Frame.of(OnDevice())


# -- what is refused ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data, format, says", [
    (RGB.astype(np.float32) / 255, None, r"float32; pixels are uint8, 0..255. Values 0..1: \(array \* 255\)"),
    (RGB.astype(np.uint16), None, r"uint16.*>> 8"),
    (RGB.astype(np.int64), None, r"int64.*astype\(numpy.uint8\)"),
    (RGB > 9, None, "bool"),
    (np.zeros(5, np.uint8), None, r"shape \(5,\)"),
    (np.array(3, np.uint8), None, r"shape \(\)"),
    (RGB[None], None, r"array\[0\]"),
    (np.zeros((0, 5, 3), np.uint8), None, "no pixel"),
    (np.zeros((5, 0), np.uint8), None, "no pixel"),
    (np.zeros((5, 5, 0), np.uint8), None, "no pixel"),
    (RGB.transpose(2, 0, 1), None, "channels come last"),
    (np.zeros((S, S, 2), np.uint8), None, 'Pass format="YUYV"'),
    (np.zeros((S, S, 5), np.uint8), None, r"needed is \(h, w, 3\)"),
    (RGB, "RGBA", "Pass format= that fits"),
    (RGBA, "BGR", "Pass format= that fits"),
    (GRAY, "RGB", "Pass format= that fits"),
    (RGB, "HSV", "known are " + ", ".join(FORMATS)),
    (RGB, 3, "known are RGB"),
    (np.zeros((7, 8), np.uint8), "NV12", "NV12 is one"),
    (np.zeros((9, 7), np.uint8), "NV12", "NV12 is one"),
    (np.zeros((8, 6), np.uint8), "YUYV", "YUYV is"),
    (np.zeros((8, 5, 2), np.uint8), "YUYV", "YUYV is"),
    (RGB[..., ::-1], None, 'negative strides.*format="BGR"'),
    (RGB[::-1], None, "negative strides.*ascontiguousarray"),
    (RGB[:, ::-1], None, "negative strides"),
    (RGB[:, ::2], None, "must be packed"),
    (RGBA[..., :3], None, "whole array with its format"),
    (np.broadcast_to(RGB[:1], RGB.shape), None, "must be packed"),
    (np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (65536, 1), (1, 1)), None, "at most 65535 pixels"),
    (np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2, 4, 3), (2**31, 3, 1)), None, "at most 2147483648 bytes"),
    ((GRAY,), None, "a tuple of 1"),
    ([RGB, RGB], "RGB", "a list of 2 frames; one frame.*ask_frames"), ([GRAY, GRAY, GRAY], None, "only NV12 comes as two planes"),
    ((GRAY, GRAY), None, "NV12 planes"),
    ((GRAY[:7], GRAY[:3]), None, "h and w even"),
    ((GRAY.astype(float), GRAY[:4]), None, "Y plane is float64"),
    ([[1, 2], [3, 4]], None, "got list; a frame is"),
    (None, None, "got NoneType; a frame is"),
    (5, None, "got int"),
    ({}, None, "got dict"),
    (b"", None, "got 0 bytes"),
    (b"not a picture", None, "is not a picture this reads"),
    (png(RGB)[:60], None, "is damaged"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", None, "is not a picture this reads"),
    (png(RGB), "BGR", "carries its own format"),
    (Image.new("F", (8, 8)), None, "without a defined white"),
    (Image.new("RGB", (0, 8)), None, "no pixel"),
    ("no/such/file.jpg", None, "no/such/file.jpg.*No such file"),
    ("zero\0byte", None, "cannot open"),
], ids=lambda value: str(value)[:30] if isinstance(value, str) else "")
def test_refusals_in_the_house_style(data, format, says):
    with pytest.raises(InputError, match=says) as caught:
        Frame.of(data, format)
    text = str(caught.value)
    assert text.startswith("[frame] ") and ";" in text and text.endswith(".") or "[0]" in text, text


@pytest.mark.parametrize("matrix", ["bt2020", None, 709])
def test_an_unknown_matrix_lists_the_known(matrix):
    with pytest.raises(InputError, match="known are bt601, bt709"):
        Frame.of(RGB, matrix=matrix)


def declared(width, height):
    """A PNG that declares a size and holds next to nothing."""
    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
    header = struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("limit", ["Pillow's", "none"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(limit, monkeypatch, tmp_path):
    if limit == "none":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(declared(40_000, 40_000))
    with pytest.raises(InputError, match="bomb.png.*(1600000000|MAX_IMAGE_PIXELS)"):
        Frame.of(path)


@pytest.mark.parametrize("keep", [10, 50, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_damaged_file_is_named(kind, keep, tmp_path):
    out = io.BytesIO()
    noise = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(out, kind)
    data = out.getvalue()
    path = tmp_path / f"broken.{kind.lower()}"
    path.write_bytes(data[:int(len(data) * keep) if keep < 1 else keep])
    with pytest.raises(InputError, match="broken"):
        Frame.of(path)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(InputError, match="cannot open.*Is a directory"):
        Frame.of(tmp_path)
