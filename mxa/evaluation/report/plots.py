"""Pictures of an evaluation: curves, reliability, confusion, groups; told apart by line style and hatch."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...metrics import sigmoid
from ...metrics.operating import count_calls
from ...utils.errors import require
from ..predictions import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "HATCHES",
    "STYLES",
    "confusion_figure",
    "curves_figure",
    "encode",
    "groups_figure",
    "reliability_figure",
]

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")
_COLUMNS = 4


def encode(figure: Figure) -> str:
    """A figure as the text of a PNG, for a page that needs no other file."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, format="png", metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode()


def _grid(names: Sequence[str], title: str, draw: Callable[[Axes, int], None], square: bool = True) -> Figure:
    """A small picture a label."""
    figure_type = require("matplotlib.figure", "train").Figure
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = figure_type(figsize=(2.6 * columns, 2.6 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, ax in enumerate(axes.ravel()):
        if i >= len(names):
            ax.set_axis_off()
            continue
        ax.set_title(names[i], fontsize=9)
        ax.tick_params(labelsize=7)
        if square:
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        draw(ax, i)
    figure.suptitle(title, fontsize=11)
    handles, texts = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, texts, loc="outside lower center", ncols=min(3, len(texts)), fontsize=8, frameon=False)
    return figure


def curves_figure(arms: Sequence[Arm], kind: str) -> Figure:
    """ROC (``kind="roc"``) or precision-recall (``"pr"``) curves, a picture a label, a line a model's first seed."""
    labels = arms[0].labels

    def draw(ax: Axes, i: int) -> None:
        for number, arm in enumerate(arms):
            if labels[i] not in arm.labels:
                continue
            column = arm.labels.index(labels[i])
            _, tp, fp = count_calls(arm.scored[0].logits[:, column], arm.targets[:, column])
            tp, fp = np.r_[0, tp], np.r_[0, fp]  # from none called to all
            positives, negatives = tp[-1], fp[-1]
            if not positives or not negatives:
                ax.text(0.5, 0.5, "undefined", ha="center", va="center", fontsize=8)
                continue
            style = {
                "color": COLOURS[number % 6],
                "linestyle": STYLES[number % 6],
                "linewidth": 1.3,
                "label": arm.name,
            }
            if kind == "roc":
                ax.plot(fp / negatives, tp / positives, **style)
            else:
                ax.step(tp[1:] / positives, tp[1:] / (tp + fp)[1:], where="pre", **style)
                ax.axhline(positives / (positives + negatives), color="0.6", linewidth=0.6)
        if kind == "roc":
            ax.plot((0, 1), (0, 1), color="0.6", linewidth=0.6)

    title = {
        "roc": "ROC: false positive rate (across), true positive rate (up)",
        "pr": "Precision-recall: recall (across), precision (up)",
    }[kind]
    return _grid(labels, title + ("; first seed" if any(len(arm.scored) > 1 for arm in arms) else ""), draw)


def reliability_figure(arm: Arm, model: dict[str, Any], bins: int = 10) -> Figure:
    """Share of positives against mean probability, in bins of as many images; before and after temperature scaling."""
    one = arm.scored[0]
    temperatures = [row.get("temperature", [None])[0] for row in model["labels"].values()]

    def draw(ax: Axes, i: int) -> None:
        known = ~np.isnan(one.targets[:, i])
        ax.plot((0, 1), (0, 1), color="0.6", linewidth=0.6)
        highest = 0.0
        for number, (name, temperature) in enumerate(
            (("as the model gives them", 1.0), ("after temperature scaling", temperatures[i]))
        ):
            if temperature is None or known.sum() < bins:
                continue
            p = sigmoid(one.logits[known, i] / temperature)
            groups = np.array_split(np.argsort(p, kind="stable"), bins)
            x, y = [p[g].mean() for g in groups], [one.targets[known, i][g].mean() for g in groups]
            highest = max(highest, *x, *y)
            ax.plot(
                x,
                y,
                marker="ox"[number],
                markersize=3.5,
                color=COLOURS[number],
                linestyle=STYLES[number],
                linewidth=1,
                label=name,
            )
        end = min(1.0, max(0.05, 1.1 * highest))
        ax.set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, end), aspect="equal")
        ax.locator_params(nbins=4)

    return _grid(
        arm.labels,
        f"{arm.name}: mean probability (across) and share of positives (up), tenths of the images",
        draw,
        square=False,
    )


def confusion_figure(model: dict[str, Any], point: str) -> Figure:
    """The four counts at an operating point, as shares of the positives and of the negatives, a picture a label."""
    labels = list(model["labels"])

    def draw(ax: Axes, i: int) -> None:
        row = model["labels"][labels[i]]
        numbers = row["operating_points"][point]
        ax.set(xticks=(0, 1), yticks=(0, 1), xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal")
        ax.set_xticklabels(("called -", "called +"))
        ax.set_yticklabels(("is -", "is +"), rotation=90, va="center")
        if numbers["sensitivity"] is None or numbers["specificity"] is None:
            ax.text(0.5, 0.5, "undefined", ha="center", va="center", fontsize=8)
            return
        shares = np.array(
            [[numbers["specificity"], 1 - numbers["specificity"]], [1 - numbers["sensitivity"], numbers["sensitivity"]]]
        )
        ax.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        for (y, x), share in np.ndenumerate(shares):
            count = round(share * row["n_pos" if y else "n_neg"])
            ax.text(
                x, y, f"{count}\n{share:.0%}", ha="center", va="center", fontsize=8, color="w" if share > 0.5 else "k"
            )

    return _grid(
        labels, f"{model['name']}: called at the threshold of {point} (across), by the label (up)", draw, square=False
    )


def groups_figure(result: dict[str, Any]) -> Figure | None:
    """AUC of every group with its interval, a bar a model from 0.5 on; None where nothing is grouped."""
    groupings = {
        by: [n for n, g in grouping["groups"].items() if "auc" in g]
        for by, grouping in result["models"][0]["groups"].items()
    }
    names = [(by, name) for by, groups in groupings.items() for name in groups]
    if not names:
        return None
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(7.5, 0.34 * len(names) * len(result["models"]) + 1.4), layout="constrained"
    )
    ax = figure.subplots()
    models, height, ends = result["models"], 0.8 / len(result["models"]), {0.5}
    for number, model in enumerate(models):
        for y, (by, name) in enumerate(names):
            numbers = model["groups"].get(by, {}).get("groups", {}).get(name, {})
            if numbers.get("auc") is None:
                continue
            low, high = numbers["auc_interval"]
            ends.update((low, high))
            at = y + (number - (len(models) - 1) / 2) * height
            shade = str(0.75 - 0.35 * number / max(1, len(models) - 1))
            style = {"color": shade, "edgecolor": "k", "hatch": HATCHES[number % 6], "linewidth": 0.6}
            ax.barh(at, numbers["auc"] - 0.5, height, left=0.5, label=model["name"] if y == 0 else None, **style)
            ax.plot((low, high), (at, at), color="k", linewidth=1, marker="|", markersize=5)
    ax.set(yticks=range(len(names)), xlabel="macro AUC and 95 % interval, over the labels that every group has")
    ax.set_xlim(min(ends) - 0.02, max(ends) + 0.02)
    ax.set_yticklabels([f"{by}: {name}" for by, name in names], fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0.5, color="k", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
