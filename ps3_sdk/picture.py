"""Pictures by Pillow: files and bytes to arrays for Frame, and YUV pixels to RGB for drawing."""
import io
import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError

MAX_PIXELS = 1_000_000_000
# Formats whose decoders only decode. Pillow knows others (EPS starts Ghostscript) that a camera never writes.
FILE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
_BAND_ROWS = 256


def decode_file(path):
    """(PIL image, text that names it) of the picture file `path`, turned upright by its EXIF orientation.

    Raises: InputError, naming the path, when it is missing, unreadable, not a picture, damaged or too large.
    """
    return _opened(path, decode), f"file {os.fspath(path)}"


def size_of_file(path) -> tuple[int, int]:
    """(height, width) of a picture file, upright as decode_file turns it; only its header is read. Raises as decode_file does, but for damage behind the header."""
    return _opened(path, lambda file, source: decode(file, source, upright_size))


def upright_size(image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112) in (5, 6, 7, 8)        # orientations that lie on their side
    turned = turned and getattr(image, "_tile_size", image.size) == image.size      # of TIFF, newer Pillows have turned the size already
    return (image.width, image.height) if turned else (image.height, image.width)


def upright(image):
    image.load()
    return ImageOps.exif_transpose(image)


def _opened(path, read):
    """read(file, text that names it) of an open file."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            return read(file, f"file {name}")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", None) or error
        raise InputError(f"[frame] cannot open {name!r}: {why}; a frame is a readable picture file. "
                         "Check the path and its permissions.") from error


def decode_bytes(data):
    """(PIL image, text that names it) of an encoded picture in memory, upright as in decode_file."""
    data = bytes(data)
    if not data:
        raise InputError("[frame] got 0 bytes; bytes must hold an encoded picture (JPEG, PNG, WebP). "
                         "Check that the download or the camera returned something.")
    source = f"{len(data)} bytes"
    return decode(io.BytesIO(data), source), source


def read_open(file) -> bytes:
    """What an open binary file holds from where it stands."""
    try:
        data = file.read()
    except (OSError, ValueError) as error:
        raise InputError(f"[frame] the open {type(file).__name__} cannot be read: {error}; a frame is a picture file, opened to be read. Open it with \"rb\".") from error
    if not isinstance(data, (bytes, bytearray)):
        raise InputError(f"[frame] the open {type(file).__name__} gave {type(data).__name__}; bytes of a picture file are needed. Open it with \"rb\".")
    return data


def decode(file, source, taken=upright):
    """Decode one picture from a binary file object; the first frame when it is animated. taken: what of the open PIL image."""
    Image.init()
    try:
        with Image.open(file, formats=[name for name in FILE_FORMATS if name in Image.OPEN]) as image:
            check_pixels(image.width, image.height, source)
            return taken(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"[frame] {source}: {error}; Pillow's own limit guards against pictures made to fill the memory. "
                         "If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS, or pass the decoded array.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"[frame] {source} is not a picture this reads; known are {', '.join(FILE_FORMATS)}. "
                         "For raw camera bytes pass a numpy array and format=.") from error
    except MemoryError:
        raise
    except Exception as error:  # a decoder fed damaged bytes raises nearly anything: OSError, SyntaxError, struct.error ...
        raise InputError(f"[frame] {source} is damaged: {error}; a whole picture is needed. "
                         "Copy or record it again.") from error


def check_pixels(width, height, source):
    """Refuse, before any pixel is decoded, a picture that declares more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise InputError(f"[frame] {source} declares {width} x {height} = {width * height} pixels; at most {MAX_PIXELS} are "
                         "read. Crop or shrink it first.")


def pil_to_array(image, source):
    """(uint8 array, format) of a PIL image: L, RGB and RGBA as they are, 16-bit grey by its high byte, the rest by convert("RGB")."""
    check_pixels(image.width, image.height, source)
    try:
        if image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255 instead of scaling.
            return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8), "GRAY"
        if image.mode in ("I", "F"):
            raise InputError(f"[frame] {source} has mode {image.mode!r}, 32-bit values without a defined white; a frame is 8-bit. "
                             "Scale it to 0..255 and pass it as a uint8 array.")
        if image.mode in ("La", "RGBa"):        # Pillow converts premultiplied alpha in two steps only
            image = image.convert(image.mode.upper())
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGB")
        return np.asarray(image), "GRAY" if image.mode == "L" else image.mode
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"[frame] {source} (mode {image.mode}) cannot be read: {error}; RGB pixels are needed. "
                         'Convert it first, e.g. image.convert("RGB").') from error


def yuv_to_picture(luma, chroma, matrix, full_range):
    """PIL RGB image for drawing of luma (h, w) u8 and chroma (rows, columns, 2) u8, each chroma shared by its luma block.

    Rounded floating point: within one step of what the core computes in integers.
    """
    height, width = luma.shape
    red, blue = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
    green = 1 - red - blue
    black, luma_gain, chroma_gain = (0, 1.0, 1.0) if full_range else (16, 255 / 219, 255 / 224)
    rows_each, columns_each = height // chroma.shape[0], width // chroma.shape[1]
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND_ROWS):
        bottom = min(top + _BAND_ROWS, height)
        y = (luma[top:bottom].astype(np.float32) - black) * luma_gain
        uv = chroma[top // rows_each:-(-bottom // rows_each)].astype(np.float32) - 128
        uv = (uv * chroma_gain).repeat(rows_each, 0).repeat(columns_each, 1)
        u, v = uv[..., 0], uv[..., 1]
        rgb = np.stack((y + 2 * (1 - red) * v,
                        y - 2 * (blue * (1 - blue) * u + red * (1 - red) * v) / green,
                        y + 2 * (1 - blue) * u), axis=-1)
        out[top:bottom] = np.clip(np.rint(rgb), 0, 255)
    return Image.fromarray(out)
