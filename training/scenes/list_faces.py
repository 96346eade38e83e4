"""Makes faces.txt from the fonts installed on this machine: every face that can write CHARS in a style signs are set in."""
from __future__ import annotations

import re

from PIL import ImageFont

from .fonts import CHARS, Face, installed_files

UNWANTED = re.compile(r"math|symbol|emoji|icon|script|thin|hairline|extralight|ultralight|small ?cap|initials|keyboard|swash|awesome|"
                      r"chancery|Z003|D050000L|outline|stencil|shadow|upright italic|integrals|NonUnicode|STIXSize|STIXVariants|SignWriting|Music|"
                      r"abogado|wasn't me|penguin|monoisome|barcode|dingbat|wasy|cmsy|cmex|cmmi|msam|msbm|esint|stmary|rsfs|eufm|eurm|unslanted|fraktur|gotisch|gothic ?m|Tamil", re.I)
LOOK_ALIKES = {"Arimo": "Liberation", "Tinos": "Liberation", "Cousine": "Liberation", "Aerial": "Liberation", "Tymes": "Liberation", "Inter Display": "Inter",
               "Carlito": "Lato", "FreeSans": "Nimbus", "FreeSerif": "Nimbus", "FreeMono": "Nimbus", "Karmilla": "Karla", "Noto Mono": "Noto", "Open Sans": "Noto",
               "TeX Gyre Heros": "Nimbus", "TeX Gyre Termes": "Nimbus", "TeX Gyre Cursor": "Nimbus", "TeX Gyre Adventor": "URW Gothic", "Hack": "DejaVu",
               "TeX Gyre Pagella": "P052", "TeX Gyre Schola": "C059", "TeX Gyre Bonum": "URW Bookman", "Veranda": "DejaVu", "STIXGeneral": "STIX", "sans": "Ricty",
               "Overpass": "Roadgeek", "Verana": "DejaVu", "Linux Biolinum": "Linux Libertine", "Latin Modern": "CMU", "LM": "CMU", "BIZ UDPGothic": "BIZ UDGothic",
               "BIZ UDPMincho": "BIZ UDMincho", "Droid": "Noto", "OCRABold": "OCRA",
               "OCRACondensed": "OCRA", "M PLUS": "Mplus", "unifur": "monofur", "IBM 3270": "IBM 3270", "TeX Gyre Chorus": "Chorus", "Doulos SIL": "Charis"}
ONE_FAMILY = ("IBM 3270", "Mplus", "M PLUS", "Mekanus", "Liberation", "Nimbus", "Noto", "Roadgeek", "Roboto", "Verana", "Clear Sans", "Go ", "Tiresias", "DejaVu", "PT ", "Quicksand", "Linux Libertine", "Romande",
              "Accanthis", "Gillius", "Ikarius", "CMU", "LM", "Latin Modern", "Courier Prime", "Charis", "Gentium", "Andika", "Averia", "STIX", "Karla", "Fanwood",
              "Monoid", "Ricty", "OpenDyslexic", "Inter", "Compagnon", "GFS", "B612", "League Mono", "Routed Gothic", "M+", "mplus", "Anonymous", "Oxygen", "Hack",
              "EB Garamond", "Eurofurence", "eurofurence", "Millimetre", "Fira", "Dustismo", "Okolaks", "Beteckna", "Lobster", "Libertinus", "Berenis", "Switzera")


def group_of(family: str) -> str:
    """The name that decides a face's split: its family, or the one it is a look-alike of."""
    for start, group in LOOK_ALIKES.items():
        if family == start or family.startswith(start + " "):
            return group
    for start in ONE_FAMILY:
        if family.startswith(start):
            return start.strip()
    return family


def is_usable(path: str) -> bool:
    """Whether every character of CHARS has ink of its own and capitals stand as high as digits, more or less."""
    try:
        font = ImageFont.truetype(path, 60, layout_engine=ImageFont.Layout.BASIC)
        missing = bytes(font.getmask("\U000F1234"))
        seen = set()
        for char in CHARS:
            mask = font.getmask(char)
            ink = bytes(mask)
            if not ink or not any(ink) or ink == missing or (mask.size, ink) in seen:
                return False
            seen.add((mask.size, ink))
        heights = [font.getbbox(char, anchor="ls") for char in "HE08"]
        tops = [-box[1] for box in heights]
        thin = sum(bytes(font.getmask("I"))) / 255 / (heights[0][3] - heights[0][1]) < 60 * 0.045
        return min(tops) > 25 and max(tops) < 1.5 * min(tops) and max(b[3] for b in heights) < 14 and not thin
    except (OSError, ValueError, ZeroDivisionError):
        return False


def is_legible(face: Face, cap_px=(10, 28)) -> bool:
    """Whether no character fades away at any size and capitals have the height that is asked for."""
    for step in range(2 * cap_px[0], 2 * cap_px[1] + 1):
        glyphs = face.glyphs(step / 2)
        if any(glyphs.glyph(char)[0].max(initial=0) <= 110 for char in CHARS) or abs(len(glyphs.glyph("H")[0]) - step / 2) > 2:
            return False
    return True


def list_faces() -> list[tuple[str, str, str]]:
    """(group, family, file name) of every usable face, sorted"""
    rows = []
    for name, path in installed_files().items():
        if "aenigma" in path:
            continue
        try:
            family, style = ImageFont.truetype(path, 20).getname()
        except OSError:
            continue
        latin_noto = re.fullmatch(r"Noto (Sans|Serif)( Display| Mono)?|Noto Mono", family or "")
        if not family or not family.isprintable() or UNWANTED.search(f"{family} {style}") or (family.startswith("Noto") and not latin_noto) or "Italic" in (style or "") and "Bold" not in style:
            continue
        if is_usable(path) and is_legible(Face(path, family)):
            rows.append((group_of(family), family, name))
    return sorted(rows)
