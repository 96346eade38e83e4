"""The summary as a picture."""
from __future__ import annotations

from ..atomic import replaced
from ..errors import InputError, RuntimeMissingError
from .summary import measured

COLOURS = {"exact_match": "#1f6fb4", "exact_match_low_res_only": "#c7c7c7", "choice_accuracy": "#3a9d6e", "choice_accuracy_low_res_only": "#dddddd"}


def pyplot():
    """matplotlib, drawing into memory. Raises RuntimeMissingError where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeMissingError("[evaluate] matplotlib is not installed, plots need it; figures are in the JSON all the same. pip install 'ps3_sdk[eval]'") from error
    return Figure


def plot(summary: dict, path) -> None:
    """Accuracy by domain and by height of the text, recall by budget, what is not there. Raises RuntimeMissingError, InputError."""
    figure = pyplot()(figsize=(12, 7), layout="constrained")
    domains, caps, recall, absent = figure.subplots(2, 2).ravel()
    names = [each for name in measured(summary) for each in (name, f"{name}_low_res_only")]
    rows = [("all", summary), *((name.replace("$", r"\$"), row) for name, row in summary["by_domain"].items())]        # between two of these it would be a formula
    _bars(domains, rows, names, f"{' and '.join(map(_spaced, measured(summary)))} by domain")
    _bars(caps, [(f"{band} px", row) for band, row in summary["by_cap_px"].items()], names, "by height of capitals at 3840x2160")
    for title, row in rows:
        budgets = [budget for budget, share in row["selection_recall"].items() if share is not None]
        if budgets:
            values = [row["selection_recall"][budget] for budget in budgets]
            ends = [row["selection_recall_interval"][budget] for budget in budgets]
            recall.errorbar(list(map(int, budgets)), values, _sides(values, ends), marker="o", capsize=3, label=f"{title} (n {row['selection_recall_n']})", lw=2 if row is summary else 1)
            if row is summary:
                recall.plot(list(map(int, budgets)), [row["selection_recall_bottom_up"][budget] for budget in budgets], "--", color="#e08a1e", label="all, picked by saliency instead")
            recall.legend(fontsize=8)
    recall.set(title="target box covered", xlabel="high-res patches", ylim=(0, 1.02))
    kinds = [("all", summary["unanswerable"]), *summary["unanswerable"]["by_kind"].items()]
    _bars(absent, kinds, ("answered", "answered_confidently"), f"not there: a value given; with confidence above {summary['unanswerable']['confident_above']}")
    figure.suptitle(f"{summary['set']}, {summary['bundle']['name']} {summary['bundle']['hash']}, {summary['machine']}", fontsize=9)
    save(figure, path)


def save(figure, path) -> None:
    try:
        with replaced(path) as beside:
            figure.savefig(beside, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"[evaluate] {path} cannot be written: {error.strerror or error}. Choose a writable place with room.") from error


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _bars(axes, rows, names, title: str) -> None:
    """rows: (title, figures) | names: which of the figures, side by side."""
    rows, width = [(name, row) for name, row in rows if row.get("n")], 0.8 / len(names)
    for k, name in enumerate(names):
        told = [(i, row[name], row[f"{name}_interval"]) for i, (_, row) in enumerate(rows) if row.get(name) is not None]
        if told:
            places, values, ends = zip(*told)
            axes.bar([place + width * (k - (len(names) - 1) / 2) for place in places], values, 0.95 * width, yerr=_sides(values, ends), capsize=3, label=_spaced(name), color=COLOURS.get(name))
            axes.legend(fontsize=8)
    axes.set_xticks(range(len(rows)), [f"{name}\nn {row['n']}" for name, row in rows], fontsize=8, rotation=30 if len(rows) > 6 else 0)
    axes.set(title=title, ylim=(0, 1.02))


def _sides(values, ends):
    """Lengths below and above, as error bars want them."""
    return [[max(0.0, value - low) for value, (low, _) in zip(values, ends)], [max(0.0, high - value) for value, (_, high) in zip(values, ends)]]
