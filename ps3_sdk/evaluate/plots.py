"""The summary as a picture."""
from __future__ import annotations

from ..atomic import replaced
from ..errors import InputError, RuntimeMissingError

COLOURS = {"exact_match": "#1f6fb4", "exact_match_low_res_only": "#c7c7c7", "choice_accuracy": "#1f6fb4", "choice_accuracy_low_res_only": "#c7c7c7"}


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
    name = "exact_match" if summary["exact_match_n"] else "choice_accuracy"
    _bars(domains, {"all": summary, **summary["by_domain"]}, (name, f"{name}_low_res_only"), f"{name.replace('_', ' ')} by domain")
    _bars(caps, {f"{band} px": row for band, row in summary["by_cap_px"].items()}, (name, f"{name}_low_res_only"), "by height of capitals at 3840x2160")
    for title, row in {"all": summary, **summary["by_domain"]}.items():
        budgets = [budget for budget, share in row["selection_recall"].items() if share is not None]
        if budgets:
            values = [row["selection_recall"][budget] for budget in budgets]
            ends = [row["selection_recall_interval"][budget] for budget in budgets]
            recall.errorbar(list(map(int, budgets)), values, _sides(values, ends), marker="o", capsize=3, label=f"{title} (n {row['selection_recall_n']})", lw=2 if title == "all" else 1)
            if title == "all":
                recall.plot(list(map(int, budgets)), [row["selection_recall_bottom_up"][budget] for budget in budgets], "--", color="#e08a1e", label="all, picked by saliency instead")
            recall.legend(fontsize=8)
    recall.set(title="target box covered", xlabel="high-res patches", ylim=(0, 1.02))
    kinds = {"all": summary["unanswerable"], **summary["unanswerable"]["by_kind"]}
    _bars(absent, kinds, ("answered", "answered_confidently"), f"not there: a value given; with confidence above {summary['unanswerable']['confident_above']}")
    figure.suptitle(f"{summary['set']}, {summary['bundle']['name']} {summary['bundle']['hash']}, {summary['machine']}", fontsize=9)
    save(figure, path)


def save(figure, path) -> None:
    try:
        with replaced(path) as beside:
            figure.savefig(beside, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"[evaluate] {path} cannot be written: {error.strerror or error}. Choose a writable place with room.") from error


def _bars(axes, rows: dict, names, title: str) -> None:
    rows = {name: row for name, row in rows.items() if row.get("n")}
    for k, name in enumerate(names):
        told = [(i, row[name], row[f"{name}_interval"]) for i, row in enumerate(rows.values()) if row.get(name) is not None]
        if told:
            places, values, ends = zip(*told)
            axes.bar([place + 0.4 * k - 0.2 for place in places], values, 0.38, yerr=_sides(values, ends), capsize=3, label=name.replace("_", " "), color=COLOURS.get(name))
            axes.legend(fontsize=8)
    axes.set_xticks(range(len(rows)), [f"{name}\nn {row['n']}" for name, row in rows.items()], fontsize=8, rotation=30 if len(rows) > 6 else 0)
    axes.set(title=title, ylim=(0, 1.02))


def _sides(values, ends):
    """Lengths below and above, as error bars want them."""
    return [[max(0.0, value - low) for value, (low, _) in zip(values, ends)], [max(0.0, high - value) for value, (_, high) in zip(values, ends)]]
