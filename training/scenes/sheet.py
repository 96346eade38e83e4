"""A picture of samples: small frames with their boxes, a cut of one thing at full size, and what is asked."""
from __future__ import annotations

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAME_PX, CUT_PX, TEXT_PX = (270, 480), (100, 480), 118


def draw_cell(scene) -> Image.Image:
    """One scene: the frame shrunk with boxes (green asked, grey not), two of its things in frame pixels, its questions"""
    h, w = scene.frame.shape[:2]
    (fh, fw), (ch, cw) = FRAME_PX, CUT_PX
    cell = Image.new("RGB", (fw, fh + ch + TEXT_PX), "white")
    cell.paste(Image.fromarray(scene.frame).resize((fw, fh), Image.Resampling.BOX), (0, 0))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(11)
    asked = {q.item: n for n, q in enumerate(scene.questions) if q.item is not None}
    for k, item in enumerate(scene.items):
        x0, y0, x1, y1 = np.array(item.box_px) * np.array([fw / w, fh / h, fw / w, fh / h])
        pen.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline=(0, 230, 90) if k in asked else (170, 170, 170))
        if k in asked:
            pen.text((x0, y0 - 15), str(asked[k] + 1), (0, 0, 0), font, stroke_width=2, stroke_fill=(0, 255, 120))
    for n, question in enumerate([q for q in scene.questions if q.item is not None][:2]):
        x0, y0, x1, y1 = scene.items[question.item].text_box_px
        left = int(np.clip((x0 + x1 - cw / 2) / 2, 0, w - cw // 2))
        top = int(np.clip((y0 + y1 - ch) / 2, 0, h - ch))
        cell.paste(Image.fromarray(scene.frame[top:top + ch, left:left + cw // 2]), (n * cw // 2, fh))
    lines = [f"{n + 1}. {q.prompt}  {q.answer or '(not there)'}" for n, q in enumerate(scene.questions)]
    pen.multiline_text((4, fh + ch + 3), "\n".join(textwrap.shorten(line, 82) for line in lines), (20, 20, 20), font, spacing=1)
    return cell


def draw_sheet(scenes, first: int = 0, count: int = 12, columns: int = 3) -> Image.Image:
    """Frames first, first + 65, ...: one of each domain in turn, each with backgrounds of its own"""
    cells = [draw_cell(scenes[first + 65 * k]) for k in range(count)]
    w, h = cells[0].size
    sheet = Image.new("RGB", (columns * (w + 6), -(-count // columns) * (h + 6)), (90, 90, 90))
    for k, cell in enumerate(cells):
        sheet.paste(cell, (k % columns * (w + 6), k // columns * (h + 6)))
    return sheet
