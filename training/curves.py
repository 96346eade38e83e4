"""Draw how a training went: python -m ps3_sdk.training.curves RUN -o curves.png (needs matplotlib: pip install 'ps3_sdk[eval]')."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from ps3_sdk.evaluate.plots import pyplot, save

STAGES = {"read": "0 read", "look": "1 spell and look", "answer": "2 answer", "answer_on": "2 goes on", "look_on": "1 looks on", "answer_last": "2 again",
          "answer_gpu": "2 on a GPU", "answer_gpu_on": "2 on a GPU, on", "answer_around": "2 around one place", "answer_mean": "2 on, means of steps",
          "answer_captions": "2 on, captions of boxes", "view": "a wider view", "answer_kinds": "2 on, from the wider view",
          "view_on": "the view, on", "score": "3 score", "score_on": "3 score, on", "answer_things": "2 on, things in close looks",
          "answer_things_on": "2 on, smaller steps", "answer_deeper": "2 on, deeper", "answer_rows": "2 on, rows labelled",
          "answer_small": "2 on, more small print"}
ACROSS = 4          # stages in a row of the picture
NAMES = ("slot", "dense_slot", "spelt", "exact", "refused", "hit", "recall4", "recall6", "told", "kind")       # each has a colour
SHARES = ("val_slot", *(f"{held_out}{name}" for held_out in ("", "val_") for name in NAMES[1:]))


def curves(log: Path) -> dict[str, tuple[list[float], list[float]]]:
    """log.jsonl of a stage -> share -> minutes and values; val_ on held-out data. A step logged twice counts once, the later."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for line in log.read_text("utf-8").splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            if key in SHARES and value == value:
                found.setdefault(key, {})[entry["step"]] = (entry["seconds"] / 60, value)
    if "dense_slot" in found:           # then what is called slot is a loss
        found.pop("val_slot", None)
    return {key: tuple(map(list, zip(*(points[step] for step in sorted(points))))) for key, points in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("curves.png"))
    options = parser.parse_args()
    stages = {title: curves(options.run / name / "log.jsonl") for name, title in STAGES.items() if (options.run / name / "log.jsonl").exists()}
    if not stages:
        parser.error(f"{options.run} holds no log.jsonl of {', '.join(STAGES)}; give the RUN folder of a training.")
    across = min(ACROSS, len(stages))
    down = -(-len(stages) // across)
    figure = pyplot()(figsize=(4.2 * across, 3.6 * down), layout="constrained")
    axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axis in axes[len(stages):]:
        axis.set_visible(False)
    for axis, (title, shares) in zip(axes, stages.items()):
        for key, (minutes, values) in sorted(shares.items()):
            held_out = key.startswith("val_")
            name = key.removeprefix("val_")
            axis.plot(minutes, values, "-o" if held_out else "-", color=f"C{NAMES.index(name)}", markersize=3, linewidth=1.6 if held_out else 0.7,
                      alpha=1 if held_out else 0.4, label=name if held_out else None)
        axis.set(title=title, xlabel="minutes", ylim=(0, 1))
        axis.grid(alpha=0.3)
    named = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="outside right center", fontsize=8, title="held out; thin:\nin training", title_fontsize=8)
    save(figure, options.output)


if __name__ == "__main__":
    main()
