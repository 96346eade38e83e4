"""What there is to ask about. A kind is a visual class: one outline, one pictogram, any of its colours, so that a 378 px view of the
frame is enough to tell it from the others. Only its text needs 4K."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from . import driving, gaming, household, ui
from .draw import ALL_COLOURS, PAINT


@dataclass(frozen=True)
class Kind:
    """nouns: how prompts call it; {c} stands where a colour goes. asks: prompts of its own; {d} is the noun, place and colour.
    values: type of text -> weight. draw(rng, colour name, line, unit) -> Plate; unit is frame pixels per pixel at 3840x2160."""
    name: str
    domain: str
    shape: str
    nouns: tuple[str, ...]
    values: dict[str, float]
    draw: Callable
    asks: tuple[str, ...] = ()
    colours: tuple[str, ...] = PAINT


KINDS = (
    Kind("speed sign", "driving", "disc", ("{c} speed sign", "{c} speed limit sign", "{c} round sign"), {"speed": 1}, driving.speed_sign,
         ("what is the speed on the {d}?", "how fast does the {d} allow?")),
    Kind("exit sign", "driving", "rectangle", ("{c} exit sign", "{c} arrow sign"), {"exit": 3, "word": 2}, driving.exit_sign, ("where does the {d} lead?",)),
    Kind("diamond sign", "driving", "diamond", ("{c} diamond sign", "{c} warning sign"), {"word": 3, "number": 1, "code": 1}, driving.diamond_sign,
         ("what does the {d} warn of?",)),
    Kind("car", "driving", "car", ("plate of the {c} car", "licence plate of the {c} car", "number plate on the {c} car"), {"plate": 1}, driving.car, colours=ALL_COLOURS),
    Kind("traffic light", "driving", "tall rectangle", ("{c} traffic light", "{c} signal light"), {"seconds": 1}, driving.traffic_light,
         ("how many seconds are on the {d}?",), ("red", "yellow", "green")),
    Kind("bus", "driving", "bus", ("{c} bus",), {"exit": 2, "word": 2}, driving.bus, ("which line is the {d}?",), ALL_COLOURS),
    Kind("octagon sign", "driving", "octagon", ("{c} octagon sign", "{c} eight-sided sign"), {"word": 2, "code": 1}, driving.octagon_sign),

    Kind("price tag", "household", "tag", ("{c} price tag", "{c} tag"), {"price": 3, "percent": 1}, household.price_tag,
         ("how much is it on the {d}?", "what is the price on the {d}?")),
    Kind("bottle", "household", "bottle", ("label of the {c} bottle", "label on the {c} bottle"), {"word": 2, "code": 1}, household.bottle),
    Kind("clock", "household", "wide rectangle", ("{c} clock", "{c} alarm clock", "{c} digital clock"), {"time": 1}, household.clock,
         ("what time is it on the {d}?", "what time does the {d} show?")),
    Kind("thermostat", "household", "disc", ("{c} thermostat", "{c} round thermostat", "{c} dial"), {"temperature": 1}, household.thermostat,
         ("how warm is it by the {d}?", "what temperature does the {d} show?")),
    Kind("book", "household", "tall rectangle", ("{c} book",), {"word": 2, "code": 1}, household.book, ("what is the title of the {d}?",), ALL_COLOURS),
    Kind("calendar", "household", "square", ("{c} calendar",), {"date": 2, "number": 1}, household.calendar, ("what date is on the {d}?",)),
    Kind("mug", "household", "mug", ("{c} mug", "{c} cup"), {"word": 2, "number": 1}, household.mug, colours=ALL_COLOURS),
    Kind("washing machine", "household", "square", ("{c} washing machine", "{c} washer"), {"time": 2, "code": 1, "percent": 1}, household.washing_machine,
         ("what is on the display of the {d}?",)),

    Kind("heart counter", "gaming", "heart", ("{c} heart", "{c} heart counter"), {"ratio": 1, "number": 1, "percent": 1}, gaming.heart,
         ("what health is next to the {d}?", "how much health has the {d}?")),
    Kind("ammo counter", "gaming", "bullets", ("{c} bullets", "{c} ammo counter"), {"ratio": 2, "number": 1}, gaming.ammo, ("how much ammo is by the {d}?",)),
    Kind("coin counter", "gaming", "coin", ("{c} coin", "{c} coin counter"), {"score": 2, "number": 1, "price": 1}, gaming.coin, ("what is the score next to the {d}?",)),
    Kind("shield", "gaming", "shield", ("{c} shield", "{c} armour shield"), {"percent": 2, "number": 1, "change": 1}, gaming.shield, ("how much armour has the {d}?",)),
    Kind("minimap", "gaming", "square", ("{c} minimap", "{c} map"), {"word": 2, "code": 1}, gaming.minimap, ("what place is on the {d}?",)),
    Kind("gem", "gaming", "gem", ("{c} gem", "{c} crystal"), {"number": 2, "score": 1, "change": 1}, gaming.gem, ("how many are next to the {d}?",)),
    Kind("player", "gaming", "figure", ("name tag of the {c} player", "tag over the {c} player"), {"word": 3, "code": 1}, gaming.player),
    Kind("hourglass", "gaming", "hourglass", ("{c} hourglass", "{c} hourglass timer"), {"time": 1}, gaming.hourglass, ("how much time is by the {d}?",)),
    Kind("energy bar", "gaming", "bar", ("{c} energy bar", "{c} striped bar"), {"percent": 1, "ratio": 1, "word": 1}, gaming.energy_bar),

    Kind("button", "ui", "rounded rectangle", ("{c} button",), {"word": 3, "number": 1}, ui.button, ("what is the label of the {d}?",)),
    Kind("gauge", "ui", "half ring", ("{c} gauge", "{c} half-round gauge"), {"percent": 1, "number": 1, "temperature": 1}, ui.gauge, ("what is the reading of the {d}?",)),
    Kind("search field", "ui", "wide rectangle", ("{c} search field", "{c} search box"), {"word": 2, "code": 2}, ui.search_field),
    Kind("table", "ui", "table", ("marked row of the {c} table", "highlighted row in the {c} table"), {"price": 1, "number": 1, "word": 1, "percent": 1, "change": 1}, ui.table),
    Kind("donut chart", "ui", "ring", ("{c} donut chart", "{c} ring chart"), {"percent": 1, "number": 1, "price": 1}, ui.donut, ("what is inside the {d}?",)),
    Kind("progress bar", "ui", "bar", ("{c} progress bar",), {"percent": 2, "ratio": 1, "time": 1}, ui.progress_bar, ("how far is the {d}?",)),
    Kind("bar chart", "ui", "bars", ("{c} bar chart",), {"number": 1, "change": 1, "price": 1, "word": 1}, ui.bar_chart),
    Kind("window", "ui", "window", ("{c} window", "{c} dialog"), {"word": 2, "code": 2, "date": 1}, ui.window),
)
DOMAINS = ("driving", "household", "gaming", "ui")


def kinds_of(domain: str) -> list[Kind]:
    return [kind for kind in KINDS if kind.domain == domain]
