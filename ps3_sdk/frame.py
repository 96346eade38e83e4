"""Whatever a user has - array, picture file, bytes, PIL image, tensor, camera planes - as one Frame the core reads in place."""
import os

import numpy as np
from PIL import Image

from . import _core, picture
from .errors import InputError

FORMATS = ("RGB", "BGR", "RGBA", "BGRA", "GRAY", "NV12", "YUYV")
CONVERTED = {"NV21": "NV12", "I420": "NV12", "YV12": "NV12", "UYVY": "YUYV"}       # what cameras give, too -> what it becomes
CAMERA_SIZES = {(480, 640), (480, 848), (600, 800), (720, 1280), (800, 1280), (960, 1280), (1080, 1920), (1200, 1600), (1200, 1920), (1440, 2560), (1520, 2688), (1536, 2048), (1944, 2592),
                (2160, 3840), (2160, 4096), (3000, 4000), (3040, 4032), (4320, 7680)}       # of which a flat array is rather NV12 than grey
MATRICES = ("bt601", "bt709")
MAX_SIDE_PX = 65535
MAX_BYTES = 2**31
_CHANNELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "BGRA": 4}
# DLPack device types whose memory the processor reads directly: CPU, pinned CUDA host, pinned ROCm host.
_HOST_DEVICES = (1, 3, 11)
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}


class Frame:
    """One picture, h x w pixels of one format, in memory that stays the caller's.

    Attributes:
        core: ps3_sdk._core.Frame, what gather() reads. It keeps the memory alive.
        height, width: pixels.  format: one of FORMATS.  source: short text, where it came from.
        device: "cpu", or "cuda:0" where the memory is a GPU's; only a core with CUDA kernels takes such frames.

    Arrays and tensors are not copied: change a pixel and the frame has changed. Files, bytes and PIL images are decoded once.
    """

    __slots__ = ("core", "height", "width", "format", "source", "matrix", "full_range", "_planes")

    def __init__(self, planes, height, width, format, source, matrix, full_range):
        self.core = _core.Frame(format, [_of_device(plane) for plane in planes], height, width, matrix, full_range)
        self.height, self.width, self.format, self.source = height, width, format, source
        self.matrix, self.full_range, self._planes = matrix, full_range, planes

    @classmethod
    def of(cls, data, format=None, matrix="bt709", full_range=False):
        """Make a Frame of anything that holds one picture.

        Args:
            data: one of
                uint8 array (h, w, 3) RGB, or BGR if format says so; (h, w, 4) RGBA or BGRA, alpha ignored; (h, w) or (h, w, 1) GRAY;
                NV12 as one (h*3/2, w) array with format="NV12", or the planes (Y (h, w), UV (h/2, w) or (h/2, w/2, 2));
                YUYV as (h, w, 2) or (h, 2w) with format="YUYV". Rows may be strided (camera pitch, crops); pixels are packed.
                NV21, I420 and YV12 as one (h*3/2, w) array, UYVY as YUYV, in host memory: they become NV12, whose colours are copied, and YUYV, a copy;
                any object with __dlpack__ in host memory, of the same shapes (a torch tensor, say); with CUDA kernels also on a
                GPU, or any with __cuda_array_interface__: read in place by gather() of _core.Cuda;
                a path, an open file, or the bytes of a picture file. Its EXIF orientation is applied;
                a PIL image, taken as it stands: L, RGB, RGBA as they are, other modes converted to RGB;
                a Frame, returned as it is.
            format: one of FORMATS or CONVERTED, any case; None: by the shape, as above.
            matrix, full_range: how NV12 and YUYV become RGB: "bt601" or "bt709"; luma 16..235, or 0..255 if full_range.
        Raises:
            InputError: wrong type, dtype, rank, layout, size, format; missing, damaged or oversized picture.
        """
        format = _known_format(format)
        if matrix not in MATRICES:
            raise InputError(f"[frame] got matrix={matrix!r}; known are {', '.join(MATRICES)}. Video of 720 rows and more is bt709.")
        if isinstance(data, Frame):
            _same_format(format, data.format, "a Frame")
            return data
        array, source = None, None
        if callable(getattr(data, "read", None)) and not hasattr(data, "__array_interface__"):
            data = picture.read_open(data)
        if isinstance(data, (str, os.PathLike)):
            data, source = picture.decode_file(data)
        elif isinstance(data, (bytes, bytearray)) or isinstance(data, memoryview) and data.ndim == 1:
            data, source = picture.decode_bytes(data)
        if isinstance(data, Image.Image):
            source = source or f"PIL image {data.mode}"
            array, carried = picture.pil_to_array(data, source)
            _same_format(format, carried, source)
            format = carried
        elif isinstance(data, (tuple, list)):
            if any(getattr(each, "ndim", 2) == 3 and each.shape[-1] in (3, 4) for each in data):
                raise InputError(f"[frame] got a {type(data).__name__} of {len(data)} frames; one frame is needed here. Ask about several with ask_frames() or look_many().")
            return cls._of_planes(data, format, matrix, bool(full_range))
        array = _host_array(data) if array is None else array
        _check_array(array, "array")
        if format in CONVERTED:
            format, height, width, planes = _converted(array, format)
        else:
            format, height, width, planes = _layout(array, format)
        source = source or f"array {array.shape}"
        return cls._checked(planes, height, width, format, source, matrix, bool(full_range))

    @classmethod
    def _of_planes(cls, data, format, matrix, full_range):
        if len(data) != 2 or format not in (None, "NV12"):
            raise InputError(f"[frame] got a {type(data).__name__} of {len(data)} with format={format}; only NV12 comes as two planes "
                             "(Y, UV). Pass one array, or one frame at a time.")
        luma, chroma = (_host_array(plane) for plane in data)
        _check_array(luma, "Y plane")
        _check_array(chroma, "UV plane")
        height, width = luma.shape[:2]
        if chroma.ndim == 3 and chroma.shape[2] == 2 and chroma.strides[1:] == (2, 1):
            chroma = _flat_rows(chroma)
        if luma.ndim != 2 or chroma.shape != (height // 2, width) or height % 2 or width % 2:
            raise InputError(f"[frame] got NV12 planes Y {luma.shape} and UV {chroma.shape}; needed are Y (h, w) and UV (h/2, w), h and w "
                             "even. Crop to even sizes.")
        return cls._checked([luma, chroma], height, width, "NV12", f"planes {luma.shape} {chroma.shape}", matrix, full_range)

    @classmethod
    def _checked(cls, planes, height, width, format, source, matrix, full_range):
        if max(height, width) > MAX_SIDE_PX or sum(p.shape[0] * p.strides[0] for p in planes) > MAX_BYTES:
            raise InputError(f"[frame] {source} is {height} x {width} pixels; a side has at most {MAX_SIDE_PX} pixels and a frame at most "
                             f"{MAX_BYTES} bytes. Cut it into parts or shrink it.")
        return cls(planes, height, width, format, source, matrix, full_range)

    @property
    def device(self):
        return self.core.device

    def cpu(self):
        """This frame in host memory: itself, or a copy of what lies on a GPU."""
        if self.device == "cpu":
            return self
        stream = _core.Cuda()
        planes = [stream.download(_of_device(plane)) for plane in self._planes]
        return type(self)(planes, self.height, self.width, self.format, self.source, self.matrix, self.full_range)

    def copied(self, copy):
        """This frame of copies of its planes. copy: a plane, packed rows of uint8 in host memory -> where the core reads it."""
        planes = [copy(np.ascontiguousarray(plane)) for plane in self._planes]
        return type(self)(planes, self.height, self.width, self.format, self.source, self.matrix, self.full_range)

    def without(self, top=0, left=0, bottom=0, right=0):
        """This frame without so many pixels at its edges, in the same memory; an even number, so one more of an odd one, where two pixels share colours (NV12, YUYV)."""
        edges = top, left, bottom, right
        if min(edges) >= 0 and self.format in ("NV12", "YUYV"):
            edges = top, left, bottom, right = [edge + edge % 2 for edge in edges]
        height, width = self.height - top - bottom, self.width - left - right
        if min(edges) < 0 or height < 1 or width < 1:
            raise InputError(f"[frame] {top} and {bottom} rows, {left} and {right} columns are to be left out of a frame of {self.height} x {self.width} pixels; at least one pixel must stay.")
        per_pixel = 2 if self.format == "YUYV" else 1
        planes = [self._planes[0][top:top + height, left * per_pixel:(left + width) * per_pixel]]
        planes += [plane[top // 2:(top + height) // 2, left:left + width] for plane in self._planes[1:]]
        return type(self)(planes, height, width, self.format, self.source, self.matrix, self.full_range)

    def picture(self):
        """PIL image, mode RGB, (h, w): a copy to draw on, made anew at each call."""
        if self.device != "cpu":
            return self.cpu().picture()
        first = self._planes[0]
        if self.format == "NV12":
            chroma = self._planes[1].reshape(self.height // 2, self.width // 2, 2)
            return picture.yuv_to_picture(first, chroma, self.matrix, self.full_range)
        if self.format == "YUYV":
            chroma = np.stack((first[:, 1::4], first[:, 3::4]), axis=-1)
            return picture.yuv_to_picture(first[:, ::2], chroma, self.matrix, self.full_range)
        if self.format == "GRAY":
            return Image.fromarray(np.ascontiguousarray(first)).convert("RGB")
        rgb = first[..., 2::-1] if self.format.startswith("BGR") else first[..., :3]
        return Image.fromarray(np.ascontiguousarray(rgb))

    def __repr__(self):
        return f"Frame({self.height} x {self.width} {self.format}, {self.source})"


def _known_format(format):
    if format is None:
        return None
    name = format.upper() if isinstance(format, str) else format
    if name not in FORMATS and name not in CONVERTED:
        raise InputError(f"[frame] got format={format!r}; known are {', '.join([*FORMATS, *CONVERTED])}. OpenCV's arrays are BGR; YUY2 is YUYV, IYUV is I420.")
    return name


def _same_format(asked, carried, what):
    if asked not in (None, carried):
        raise InputError(f"[frame] format={asked} was asked of {what}, which is {carried}; it carries its own format. Leave format out.")


def _host_array(data):
    """The numpy array that shares the memory of `data`."""
    if isinstance(data, np.ma.MaskedArray):
        raise InputError("[frame] the array is masked, and a mask has no meaning here. Pass array.filled(0), or array.data.")
    if isinstance(data, np.ndarray):
        return data
    if isinstance(data, memoryview):
        return np.asarray(data)
    if _core.build_info()["cuda"] and _core.is_on_device(data):
        return np.asarray(_Address(data))
    if hasattr(data, "__dlpack__"):
        try:
            device, index = map(int, data.__dlpack_device__())
            if device in _HOST_DEVICES:
                return np.from_dlpack(data)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"[frame] {type(data).__name__} gave no uint8 memory by DLPack: {error}; a plain uint8 tensor is needed. "
                             "Detach it and convert it to uint8.") from error
        raise InputError(f"[frame] the tensor is on {_DEVICES.get(device, f'device type {device}')} device {index}; frames are read in host "
                         "memory. Pass tensor.cpu() (or cupy.asnumpy(array)).")
    raise InputError(f"[frame] got {type(data).__name__}; a frame is a uint8 array, a tensor with DLPack, a PIL image, a path, or the bytes "
                     "of a picture file. Pass one of these.")


class _Address:
    """GPU memory as a numpy array of addresses: shapes and strides are worked out on it, its values are never read."""

    def __init__(self, data):
        try:
            self.memory = _core.view_device(data)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"[frame] {type(data).__name__} gave no memory of its GPU: {error}; a plain uint8 tensor is needed. Detach it and "
                             "convert it to uint8.") from error
        interface = self.memory.__cuda_array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], True)}


def _of_device(plane):
    """What the core reads: the plane itself, or the GPU memory its addresses stand for."""
    base = plane
    while base is not None and not isinstance(base, _Address):
        base = getattr(base, "base", None)
    if base is None:
        return plane
    offset = plane.__array_interface__["data"][0] - base.memory.data_ptr
    return base.memory.plane(offset, plane.shape, plane.strides)


def _check_array(array, what):
    """uint8, something in it, and rows of packed pixels that run forward."""
    if array.dtype != np.uint8:
        fix = ("Values 0..1: (array * 255).round().astype(numpy.uint8); values 0..255: array.round().astype(numpy.uint8)." if array.dtype.kind == "f" else
               "16 bits: (array >> 8).astype(numpy.uint8); of a camera of 12 bits >> 4." if array.dtype == np.uint16 else
               "array.astype(numpy.uint8) * 255 makes it black and white." if array.dtype == bool else "Convert with .astype(numpy.uint8), if its values are 0..255.")
        raise InputError(f"[frame] the {what} is {array.dtype}; pixels are uint8, 0..255. {fix}")
    if array.ndim not in (2, 3):
        fix = "Pass one frame at a time: array[0]." if array.ndim == 4 else "Reshape it."
        raise InputError(f"[frame] the {what} has shape {array.shape}; needed is (h, w), (h, w, 3) or (h, w, 4). {fix}")
    if array.size == 0:
        raise InputError(f"[frame] the {what} has shape {array.shape}, no pixel; at least 1 x 1 is needed. Check the camera or the crop.")


def _layout(array, format):
    """(format, height, width, [plane]) of one array, the plane's shape being what the core expects."""
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2:
        found = format or "GRAY"
        rows, columns = array.shape
        if format is None and rows % 3 == 0 and (rows // 3 * 2, columns) in CAMERA_SIZES:
            raise InputError(f"[frame] got shape {shape} without a format: NV12 of {rows // 3 * 2} x {columns} pixels, or grey of {rows} x {columns}. Pass format=\"NV12\" (or NV21, I420, "
                             "YV12), or format=\"GRAY\".")
        if found == "GRAY":
            return found, rows, columns, [_packed(array)]
        if found == "YUYV" and columns % 4 == 0:
            return found, rows, columns // 2, [_packed(array)]
        if found == "NV12" and rows % 3 == 0 and columns % 2 == 0:
            height = rows // 3 * 2
            plane = _packed(array)
            return found, height, columns, [plane[:height], plane[height:]]
    elif shape[2] == 2 and format == "YUYV" and shape[1] % 2 == 0:
        return format, shape[0], shape[1], [_flat_rows(_packed(array))]
    elif shape[2] in (3, 4):
        found = format or ("RGB" if shape[2] == 3 else "RGBA")
        if _CHANNELS.get(found) == shape[2]:
            return found, shape[0], shape[1], [_packed(array)]
    raise InputError(f"[frame] got shape {shape} with format={format}; {_needed(shape, format)}")


def _converted(array, format):
    """As _layout, of a format that the core does not read: colours, or all, are copied into one that it does."""
    if _of_device(array) is not array:
        raise InputError(f"[frame] got {format} on a GPU; there {CONVERTED[format]} is read in place. Convert it there, or pass it in host memory.")
    shape = array.shape
    if format == "UYVY":
        if not (array.ndim == 3 and shape[2] == 2 and shape[1] % 2 == 0 or array.ndim == 2 and shape[1] % 4 == 0):
            raise InputError(f"[frame] got shape {shape} with format={format}; UYVY is (h, w, 2) or (h, 2w), w even. Crop to an even width.")
        pairs = array.reshape(shape[0], -1, 2)
        return _layout(np.ascontiguousarray(pairs[:, :, ::-1]), "YUYV")
    if array.ndim != 2 or shape[0] % 3 or shape[1] % 2:
        raise InputError(f"[frame] got shape {shape} with format={format}; {format} is one (h*3/2, w) array with h and w even. Crop to even sizes.")
    height, width = shape[0] // 3 * 2, shape[1]
    luma, rest = array[:height], np.ascontiguousarray(array[height:])
    if format == "NV21":
        colours = rest.reshape(height // 2, width // 2, 2)[:, :, ::-1]
    else:
        first, second = rest.reshape(2, height // 2, width // 2)
        colours = np.stack((first, second) if format == "I420" else (second, first), axis=-1)
    return "NV12", height, width, [_packed(luma), np.ascontiguousarray(colours).reshape(height // 2, width)]


def _needed(shape, format):
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (2, 3, 4):
        return "channels come last, (h, w, 3). Use tensor.permute(1, 2, 0).contiguous(), or numpy.ascontiguousarray(array.transpose(1, 2, 0))."
    if format == "NV12":
        return "NV12 is one (h*3/2, w) array with h and w even, or the planes (Y, UV). Crop to even sizes."
    if format == "YUYV":
        return "YUYV is (h, w, 2) or (h, 2w), w even. Crop to an even width."
    if len(shape) == 3 and shape[2] == 2:
        return 'two bytes a pixel are YUYV, w even. Pass format="YUYV".'
    return ("needed is (h, w, 3) for RGB or BGR, (h, w, 4) for RGBA or BGRA, (h, w) for GRAY. "
            "Pass format= that fits the array, or leave it out.")


def _packed(array):
    """`array` itself, if its pixels are packed and its rows run forward; sides of 1 get their natural stride."""
    packed = [1]
    for length in array.shape[:0:-1]:
        packed.insert(0, packed[0] * length)
    strides = tuple(want if length == 1 else have for have, want, length in zip(array.strides, packed, array.shape))
    if min(strides) < 0:
        raise InputError(f"[frame] the array has negative strides {array.strides}; rows and pixels must run forward. For array[..., ::-1] pass "
                         'the array itself with format="BGR" (or "RGB"); for a flip pass numpy.ascontiguousarray(array).')
    if strides[1:] != tuple(packed[1:]) or strides[0] < packed[0]:
        raise InputError(f"[frame] the array of shape {array.shape} has strides {array.strides}; the pixels of a row must be packed. Pass the "
                         "whole array with its format=, or numpy.ascontiguousarray(array).")
    return np.lib.stride_tricks.as_strided(array, strides=strides, writeable=False) if strides != array.strides else array


def _flat_rows(array):
    """(h, w, 2) with packed rows seen as (h, 2w), no copy."""
    height, width, _ = array.shape
    return np.lib.stride_tricks.as_strided(array, (height, width * 2), (array.strides[0], 1), writeable=False)
