"""Pictures of an evaluation: curves, reliability, confusion, groups; models differ in style as well as in colour."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...metrics import sigmoid
from ...metrics.operating import count_calls
from ...utils.errors import require
from ...utils.text import without_formulas
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
MARKERS = "osD^vP"
_COLUMNS = 5


def encode(figure: Figure) -> str:
    """A figure as the text of a PNG, for a page that needs no other file.

    Lines and flat colours need few colours, with which the picture is a quarter of the size.
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    without_formulas(figure).savefig(drawn, dpi=100, format="png")
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(32, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.putpalette([255 if value > 250 else value for value in few.getpalette()])  # white stays white
    few.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _grid(names: Sequence[str], title: str, draw: Callable[[Axes, int], None], square: bool = True) -> Figure:
    """A small picture a label."""
    figure_type = require("matplotlib.figure", "train").Figure
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = figure_type(figsize=(2.15 * columns, 2.15 * rows + 0.8), layout="constrained")
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
        figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(texts)), fontsize=8, frameon=False)
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
    """Share of positives against mean probability in ten equal bins of images, before and after temperature scaling."""
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


def confusion_figure(model: dict[str, Any]) -> Figure:
    """The four counts at Youden's threshold, as shares of the positives and of the negatives, a picture a label."""
    labels = list(model["labels"])

    def draw(ax: Axes, i: int) -> None:
        row = model["labels"][labels[i]]
        numbers = row["operating_points"]["youden"]
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
                x, y, f"{count}\n{share:.0%}", ha="center", va="center", fontsize=8, color="w" if share > 0.65 else "k"
            )

    return _grid(labels, f"{model['name']}: calls at Youden's threshold (across) and labels (down)", draw, square=False)


def groups_figure(result: dict[str, Any]) -> Figure | None:
    """AUC of every group with its interval, a line a model; None where nothing is grouped."""
    models = result["models"]
    groupings = models[0]["groups"].items()
    names = [
        (by, name) for by, grouping in groupings for name, numbers in grouping["groups"].items() if "auc" in numbers
    ]
    if not names:
        return None
    height = len(names) * (0.18 * len(models) + 0.15) + 1.1
    figure = require("matplotlib.figure", "train").Figure(figsize=(8, height), layout="constrained")
    ax = figure.subplots()
    for number, model in enumerate(models):
        style = {"color": COLOURS[number % 6], "marker": MARKERS[number % 6], "markersize": 5, "linewidth": 1.3}
        for y, (by, name) in enumerate(names):
            numbers = model["groups"].get(by, {}).get("groups", {}).get(name, {})
            if numbers.get("auc") is None:
                continue
            at = y + (number - (len(models) - 1) / 2) * 0.7 / len(models)
            ax.plot(numbers["auc_interval"], (at, at), **{**style, "marker": "|"})
            ax.plot(numbers["auc"], at, **style)
        ax.plot([], [], label=model["name"], **style)
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color="0.85", linewidth=0.8)
    ax.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    ax.set_xlabel("macro AUC and 95 % interval, over the labels that every group has", fontsize=9)
    ax.set_yticklabels([f"{by}: {name}" for by, name in names], fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.axvline(0.5, color="0.6", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
