"""Formats of cameras that become one that the core reads, open files, and arrays that could be two things."""
import io

import numpy as np
import pytest

from ps3_sdk.errors import InputError
from ps3_sdk.frame import CONVERTED, FORMATS, Frame
from test_frame import GRAY, RGB, png

H, W = 12, 16
LUMA, U, V = (np.random.default_rng(n).integers(16, 236, shape, np.uint8) for n, shape in enumerate(((H, W), (H // 2, W // 2), (H // 2, W // 2))))
NV12 = np.concatenate([LUMA, np.stack((U, V), -1).reshape(H // 2, W)])
YUYV = np.random.default_rng(3).integers(16, 236, (H, W, 2), np.uint8)
FLAT = lambda *parts: np.concatenate([part.reshape(-1) for part in parts]).reshape(H // 2, W)       # noqa: E731
GIVEN = {"NV21": np.concatenate([LUMA, np.stack((V, U), -1).reshape(H // 2, W)]), "I420": np.concatenate([LUMA, FLAT(U, V)]), "YV12": np.concatenate([LUMA, FLAT(V, U)]),
         "UYVY": np.ascontiguousarray(YUYV[..., ::-1])}


@pytest.mark.parametrize("format", GIVEN)
def test_what_cameras_give_too_is_the_same_picture(format):
    wanted = Frame.of(YUYV, "YUYV") if format == "UYVY" else Frame.of(NV12, "NV12")
    for data in (GIVEN[format], np.pad(GIVEN[format], [(0, 0), (0, 4), (0, 0)][:GIVEN[format].ndim])[:, :GIVEN[format].shape[1]]):       # and with a pitch
        frame = Frame.of(data, format.lower())
        assert (frame.format, frame.height, frame.width) == (CONVERTED[format], H, W)
        np.testing.assert_array_equal(np.asarray(frame.picture()), np.asarray(wanted.picture()))
    assert format not in FORMATS


def test_the_luma_of_planar_frames_is_not_copied():
    data = GIVEN["I420"].copy()
    frame = Frame.of(data, "I420")
    before = np.asarray(frame.picture())
    data[:H] = 16
    assert np.asarray(frame.picture()).sum() < before.sum()


@pytest.mark.parametrize("format, shape, says", [
    ("NV21", (H + 1, W), r"NV21 is one \(h\*3/2, w\) array"), ("I420", (18, 15), "h and w even"), ("YV12", (18, 16, 3), r"one \(h\*3/2, w\)"),
    ("UYVY", (12, 15, 2), "Crop to an even width"), ("UYVY", (12, 18), "Crop to an even width"), ("YUY2", (12, 16, 2), "YUY2 is YUYV")])
def test_shapes_that_do_not_fit_are_refused(format, shape, says):
    with pytest.raises(InputError, match=says):
        Frame.of(np.zeros(shape, np.uint8), format)


def test_an_open_file_is_read(tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(png(RGB))
    with open(path, "rb") as file:
        for opened in (file, io.BytesIO(png(RGB))):
            np.testing.assert_array_equal(np.asarray(Frame.of(opened).picture()), RGB)
    with pytest.raises(InputError, match='gave str; bytes of a picture file.*"rb"'):
        Frame.of(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(InputError, match="cannot be read"):
        Frame.of(closed)


def test_a_flat_array_of_a_cameras_size_is_not_taken_for_grey():
    flat = np.zeros((1620, 1920), np.uint8)
    with pytest.raises(InputError, match=r"NV12 of 1080 x 1920 pixels, or grey of 1620 x 1920. Pass format="):
        Frame.of(flat)
    assert Frame.of(flat, "NV12").height == 1080 and Frame.of(flat, "GRAY").height == 1620 and Frame.of(flat[:1500]).format == "GRAY"


@pytest.mark.parametrize("data, says", [
    (np.ma.masked_array(RGB, RGB > 3), r"array is masked.*\.filled\(0\)"), (GRAY > 3, r"astype\(numpy.uint8\) \* 255"),
    (RGB.astype(np.float32), r"values 0\.\.255: array\.round\(\)"), (GRAY.astype(np.uint16), r"array >> 8.*12 bits >> 4"), (None, "Pass one of these")])
def test_what_to_do_is_said(data, says):
    with pytest.raises(InputError, match=says):
        Frame.of(data)
