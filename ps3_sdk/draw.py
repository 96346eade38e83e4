"""The overlay of an answer: where the model looked, what it found there, and a caption. Pillow only."""
import os

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from .answer import short
from .atomic import check_place, replaced
from .errors import InputError
from .frame import Frame

SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
SCALE_COLOURS = ("#3fd0ff", "#c6ff3d", "#ff63d0", "#ffffff", "#8f8bff")
HEAT = "#ff8a1e"
HEAT_ALPHA = 0.36           # at the best place of the map
UNSEEN_LIGHT = 0.66         # brightness left to what no high-res patch covers
STRIP, TEXT, FAINT, WARNING = "#12151a", "#f4f6f8", "#9aa4b0", "#ffc14d"
MIN_SIDE_PX = 480           # smaller frames are enlarged, or the caption could not be read


def save(answer, path, frame=None) -> None:
    """Draw and write atomically. Arguments and errors: Answer.save_overlay."""
    suffix = suffix_of(path)
    picture = overlay(answer, frame)
    options = {"JPEG": dict(quality=92, subsampling=0), "WEBP": dict(quality=90), "PNG": dict(compress_level=3)}.get(SUFFIXES[suffix], {})
    try:
        with replaced(path) as beside:
            picture.save(beside, format=SUFFIXES[suffix], **options)
    except (OSError, ValueError, SystemError, KeyError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"[overlay] {os.fspath(path)!r} cannot be written: {why}. Choose a writable folder with room, and .png for pictures "
                         "larger than the format allows.") from error


def suffix_of(path) -> str:
    """The suffix of a picture to write. Raises InputError: none that is known, or it cannot be written there."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"[overlay] the place to write to is {type(path).__name__}; a path is needed, as \"seen.png\".")
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise InputError(f"[overlay] {os.fspath(path)!r} ends in {suffix or 'no suffix'!r}; known are {' '.join(SUFFIXES)}. "
                         "Name the file accordingly.")
    check_place(path, "overlay")
    return suffix


def overlay(answer, frame=None) -> Image.Image:
    """The picture itself, mode RGB: the frame with the marks, and a caption strip below it, so that nothing is hidden."""
    frame = answer.frame if frame is None else Frame.of(frame)
    if frame is None:
        raise InputError("[overlay] this answer kept no frame; a picture to draw on is needed. Pass save_overlay(path, frame).")
    if (frame.height, frame.width) != tuple(answer.frame_size):
        raise InputError(f"[overlay] the frame is {frame.height} x {frame.width}, the answer is about {answer.frame_size[0]} x "
                         f"{answer.frame_size[1]}. Pass the frame that was asked about.")
    picture = frame.picture()
    enlarge = max(1, MIN_SIDE_PX // max(picture.size))
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.NEAREST)
    unit = max(1, round((picture.width * picture.height) ** 0.5 / 720))     # 1 at 640x480, 4 at 3840x2160
    grids = _grids(answer)
    if answer.part_px is None:
        picture = _marked(picture, answer, grids, unit)
    else:
        part = tuple(v * enlarge for v in answer.part_px)
        marked = _marked(picture.crop(part), answer, grids, unit)
        picture = _dimmed(picture)
        picture.paste(marked, part[:2])
    _regions(ImageDraw.Draw(picture), picture.size, answer.regions, enlarge, unit)
    return _with_caption(picture, answer, grids, unit)


def _marked(picture, answer, grids, unit):
    """The picture that picked and prob are of, with what they say drawn on it."""
    picture = _heat(_spotlight(picture, grids, unit), answer.prob)
    pen = ImageDraw.Draw(picture)
    for index, mask in enumerate(grids.values()):
        inset = (len(grids) - 1 - index) * (unit + 1)       # the finest patches are the smallest: no room for an inset there
        _outline(pen, picture.size, mask, SCALE_COLOURS[index % len(SCALE_COLOURS)], unit, inset)
    return picture


def _grids(answer):
    """{scale px: (n, n) bool, True where picked}"""
    grids = {}
    for px, ids in sorted(answer.picked.items()):
        n = px // answer.patch_px
        mask = np.zeros(n * n, bool)
        mask[np.asarray(ids, np.int64)] = True
        grids[px] = mask.reshape(n, n)
    return grids


def _spotlight(picture, grids, unit):
    """Dim and grey what no high-res patch covers."""
    if not any(mask.any() for mask in grids.values()):
        return picture
    seen = Image.new("L", picture.size)
    for mask in grids.values():
        part = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.NEAREST)
        seen.paste(255, mask=part)
    return Image.composite(picture, _dimmed(picture), seen.filter(ImageFilter.BoxBlur(unit)))


def _dimmed(picture):
    return ImageEnhance.Brightness(ImageEnhance.Color(picture).enhance(0.6)).enhance(UNSEEN_LIGHT)


def _heat(picture, prob):
    """Tint by the map, stretched between its lowest and highest value; a flat map tints nothing."""
    low, high = float(prob.min()), float(prob.max())
    if not high > low:
        return picture
    alpha = ((prob - low) / (high - low)) ** 1.6 * (HEAT_ALPHA * 255)
    alpha = Image.fromarray(np.rint(alpha).astype(np.uint8)).resize(picture.size, Image.BICUBIC)
    return Image.composite(Image.new("RGB", picture.size, HEAT), picture, alpha)


def _outline(pen, size, mask, colour, thick, inset):
    """Lines inside the edge of the union of picked patches; scales differ in inset, so that none covers another."""
    for axis in (0, 1):                                 # 0: horizontal lines (tops and bottoms), 1: vertical ones
        grid = mask if axis == 0 else mask.T
        along, across = (size[0], size[1]) if axis == 0 else (size[1], size[0])
        n = len(grid)
        padded = np.pad(grid, 1)
        for side in (-1, 1):
            edge = grid & ~padded[1 + side:n + 1 + side, 1:-1]
            step = np.diff(np.pad(edge.astype(np.int8), ((0, 0), (1, 1))))
            for (row, first), (_, last) in zip(np.argwhere(step == 1), np.argwhere(step == -1)):
                # An end where the union goes on is an inner corner: the line runs on to meet the one around it.
                start = first * along // n + (-inset - thick if padded[row + 1, first] else inset)
                stop = last * along // n - (-inset - thick if padded[row + 1, last + 1] else inset)
                near = row * across // n + inset if side < 0 else (row + 1) * across // n - inset - thick
                box = (start, near, max(stop, start + 1) - 1, near + thick - 1)
                pen.rectangle(box if axis == 0 else (box[1], box[0], box[3], box[2]), fill=colour)


def _regions(pen, size, regions, enlarge, unit):
    font = ImageFont.load_default(max(12, 9 * unit + 3))
    taken = []
    for rank, region in reversed(list(enumerate(regions, 1))):      # the best one is drawn last, on top
        x0, y0, x1, y1 = (v * enlarge for v in region.box_px)
        x0, y0, x1, y1 = x0 - 2 * unit, y0 - 2 * unit, x1 + 2 * unit, y1 + 2 * unit     # around the outlines, not over them
        pen.rectangle((x0 - unit, y0 - unit, x1 + unit - 1, y1 + unit - 1), outline="#000000", width=unit)
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline="#ffffff", width=unit)
        text = f"{rank}   {region.prob:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        width, height = right - left + 6 * unit + 4, bottom - top + 5 * unit + 4
        spots = [(x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1), (x1, y0), (x0 - width, y0)]
        inside = [(x, y) for x, y in spots if 0 <= x <= size[0] - width and 0 <= y <= size[1] - height]
        free = [spot for spot in inside if not any(_overlap((*spot, width, height), other) for other in taken)]
        x, y = (free or inside or [(min(max(x0, 0), max(size[0] - width, 0)), max(y0, 0))])[0]
        taken.append((x, y, width, height))
        best = rank == 1
        paper, ink = ("#ffffff", "#000000") if best else ("#000000", "#ffffff")
        pen.rounded_rectangle((x, y, x + width - 1, y + height - 1), 2 * unit, fill=paper, outline="#ffffff", width=max(1, unit // 2))
        pen.text((x + 3 * unit + 2 - left, y + (height - (bottom - top)) / 2 - top), text, font=font, fill=ink)


def _overlap(one, two):
    return one[0] < two[0] + two[2] and two[0] < one[0] + one[2] and one[1] < two[1] + two[3] and two[1] < one[1] + one[3]


def _with_caption(picture, answer, grids, unit):
    """The picture over a dark strip: prompt, answer, patches per scale in their colours, time, notes."""
    width = max(picture.width, MIN_SIDE_PX)
    body = max(12, 11 * unit + 1)
    large, small = ImageFont.load_default(round(body * 1.35)), ImageFont.load_default(body)
    margin, step = body, round(body * 1.55)
    room = width - 2 * margin
    rows = [(large, TEXT, [(None, f'"{short(answer.prompt, 300)}"' if answer.prompt.strip() else "no prompt" + ": by saliency" * answer.by_saliency)])]
    if said := answer.said():
        rows.append((large, WARNING, [(None, said)]))
    looked = [(SCALE_COLOURS[i % len(SCALE_COLOURS)], f"{px} px  {int(mask.sum())}") for i, (px, mask) in enumerate(grids.items())]
    looked.append((None, f"{sum(int(mask.sum()) for mask in grids.values())} patches"))
    looked.append((None, f"{answer.timing.total_ms:.0f} ms"))
    rows.append((small, FAINT, looked))
    if answer.is_random:
        rows.append((small, WARNING, [(None, "random weights: what it picked means nothing")]))
    rows += [(small, FAINT, [(None, note)]) for note in answer.notes[:3] if "random" not in note]
    height = 2 * margin + sum(step if font is small else round(step * 1.35) for font, *_ in rows) - (step - body)
    canvas = Image.new("RGB", (width, picture.height + height), STRIP)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    y = picture.height + margin
    for font, colour, parts in rows:
        x = margin
        for swatch, text in parts:
            if swatch:
                side = round(body * 0.75)
                top = y + round(body * 0.2)
                pen.rectangle((x, top, x + side, top + side), fill=ImageColor.getrgb(swatch))
                x += side + round(body * 0.45)
            text = _fitted(text, font, room + margin - x)
            pen.text((x, y), text, font=font, fill=colour)
            x += round(font.getlength(text)) + round(body * 1.3)
        y += step if font is small else round(step * 1.35)
    return canvas


def _fitted(text, font, room):
    """The text, cut with "..." to `room` pixels."""
    if font.getlength(text) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "...") <= room else (low, middle - 1)
    return text[:low].rstrip() + "..." if low else ""
