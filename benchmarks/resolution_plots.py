"""The picture of resolution.py, from its JSON: python benchmarks/resolution_plots.py docs/results/resolution.json PICTURE.png"""
from __future__ import annotations

import json
import sys

from ps3_sdk.evaluate.plots import pyplot, save

COLOURS = {"all patches": "#5b4ea3", "top-down": "#1f6fb4", "bottom-up": "#e08a1e", "random": "#8c8c8c", "AnyRes": "#b03a6f", "S2": "#4c9a3f"}


def draw(result: dict):
    figure = pyplot()(figsize=(17, 10), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    points = result["points"]
    of = lambda *figures: [point for point in points if point["figure"] in figures]
    _curves(axes[0], of("all"), "resolution_px", "all patches up to a resolution")
    _curves(axes[1], of("constant"), "resolution_px", "the same number of patches, scales up to a resolution")
    _curves(axes[2], of("patches"), "patches", "patches at full resolution")
    _curves(axes[3], [point for point in of("patches", "tiles") if point["series"] in ("top-down", "AnyRes", "S2")], "patches", "against tiles, not trained with them")
    _curves(axes[4], of("patches", "tiles", "all"), "seconds", "accuracy against time")
    _minimum(axes[5], result.get("minimum_resolution"))
    machine = result["machine"]
    notes = "".join(f"; {note}" for note in result["notes"])
    figure.suptitle(f"held-out scenes, {result['bundle']['name']} {result['bundle']['hash']}, {machine['cpu']}, {machine['cores']} cores{notes}", fontsize=10)
    return figure


def _curves(axes, points, x: str, title: str) -> None:
    for series in dict.fromkeys(point["series"] for point in points):
        own = sorted((point for point in points if point["series"] == series), key=lambda point: point[x])
        places = [max(point[x], 1e-3) for point in own]
        values = [point["accuracy"] for point in own]
        sides = [[max(0.0, p["accuracy"] - p["interval"][0]) for p in own], [max(0.0, p["interval"][1] - p["accuracy"]) for p in own]]
        axes.errorbar(places, values, sides, marker="o", ms=4, capsize=2, lw=1.5, label=series, color=COLOURS.get(series))
        if x == "seconds" or not (series in ("top-down", "AnyRes", "S2") or series.endswith("patches")):
            continue
        above = series not in ("AnyRes", "S2")
        for place, point in zip(places, own):
            text = f"{point['patches']:.0f} patches, " * (x == "resolution_px") + f"{point['rows']:.0f} rows, {point['seconds']:.2f} s"
            axes.annotate(text, (place, point["accuracy"]), fontsize=6, rotation=60, xytext=(-1, 9 if above else -9), textcoords="offset points",
                          ha="left" if above else "right", va="bottom" if above else "top", color=COLOURS.get(series))
    if points:
        axes.set_xscale("log")
        ticks = sorted({point[x] for point in points}) if x == "resolution_px" else None
        if ticks:
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
        elif x == "seconds":
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.legend(fontsize=8, loc="lower left" if x == "resolution_px" else "best")
    axes.set(title=title, xlabel={"resolution_px": "resolution, px", "patches": "patches encoded beside the low-res pass", "seconds": "seconds a question"}[x], ylabel="exact match", ylim=(-0.4, 1.4), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.grid(alpha=0.25)


def _minimum(axes, found) -> None:
    axes.set(title="minimum recognisable resolution, by height of capitals", xlabel="lowest scale from which on the reader is right, px", ylabel="questions")
    if found is None:
        return
    names, below = list(found["all"]), [0] * len(found["all"])
    for band, counts in found["by_cap_px"].items():
        axes.bar(names, list(counts.values()), 0.7, below, label=f"{band} px")
        below = [low + count for low, count in zip(below, counts.values())]
    axes.legend(fontsize=8)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        save(draw(json.load(file)), sys.argv[2])
