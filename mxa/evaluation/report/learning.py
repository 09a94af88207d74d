"""Pictures of training runs: validation scores by epoch, and how they spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ...utils.errors import require
from .plots import COLOURS, HATCHES, STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["boxes_figure", "learning_figure"]

#: Scores by epoch ``(runs, epochs)`` of each row.
Curves = Mapping[str, np.ndarray]


def learning_figure(curves: Mapping[str, Curves], unit: str) -> Figure:
    """Validation scores by epoch: the mean over a row's runs, and their range as a band (the paper's figures 2, Q.1).

    Args:
        curves: For each metric the scores of each row, ``(runs, epochs)``; NaN after a run has ended.
        unit: What the runs of a row differ in, for the title.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(5.2 * len(curves), 3.8), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for ax, (metric, rows) in zip(axes, curves.items(), strict=True):
        for number, (name, scores) in enumerate(rows.items()):
            scores = scores[:, ~np.isnan(scores).all(0)]
            epochs = np.arange(1, scores.shape[1] + 1)
            one = len(epochs) == 1  # a line without a marker and a band without an edge would not be seen
            style = {"color": COLOURS[number % 6], "linestyle": STYLES[(number + number // 6) % 6]}
            style["marker"] = "o" if one else ""
            ax.plot(epochs, np.nanmean(scores, 0), label=f"{name} ({len(scores)})", linewidth=1.5, **style)
            low, high = np.nanmin(scores, 0), np.nanmax(scores, 0)
            ax.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=2 if one else 0)
        ax.set(xlabel="epoch", ylabel=f"{metric}, validation patients")
        ax.locator_params(axis="x", integer=True)
        if ax.dataLim.width == 0:
            ax.set_xlim(0, 2)
        ax.grid(linewidth=0.3)
    figure.suptitle(f"Mean and range over {unit} (their number in brackets)", fontsize=10)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def boxes_figure(finals: Mapping[str, Curves], spread: Curves, metric: str, split: str = "test") -> Figure:
    """Final scores of every run, and the spread of validation scores by epoch (the paper's figures J.1b and Q.2).

    Args:
        finals: For each metric the scores of each row on the split that is reported, ``(runs,)``.
        spread: Validation scores of each row, ``(runs, epochs)``.
        metric: Name of the metric of ``spread``.
        split: Name of the split that is reported.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(10.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    names = list(spread)
    for m, (name, rows) in enumerate(finals.items()):
        at = np.arange(len(names)) + (m - (len(finals) - 1) / 2) * 0.3
        for x, row in zip(at, names, strict=True):
            points = rows[row]
            left.plot(np.full(len(points), x), points, "os^"[m], color=COLOURS[m], markersize=4, fillstyle="none")
            left.plot((x - 0.1, x + 0.1), (points.mean(),) * 2, color=COLOURS[m], linewidth=2)
        left.plot([], [], "os^"[m], color=COLOURS[m], fillstyle="none", label=name)
    left.set(xticks=range(len(names)), ylabel=f"{split} images")
    left.set_xticklabels(names, fontsize=8)
    left.set_title("Each run, and the mean", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        scores = spread[name]
        boxes = [column[~np.isnan(column)] for column in scores.T]
        at = np.arange(1, len(boxes) + 1) + (number - (len(names) - 1) / 2) * width
        drawn = right.boxplot(boxes, positions=at, widths=0.9 * width, patch_artist=True, manage_ticks=False)
        face = {"facecolor": str(0.95 - 0.5 * number / max(1, len(names) - 1)), "hatch": HATCHES[number % 6]}
        for box, median in zip(drawn["boxes"], drawn["medians"], strict=True):
            box.set(**face)
            median.set(color="k", linewidth=2)
        right.bar(0, 0, label=name, edgecolor="k", **face)
    every = np.concatenate([s[~np.isnan(s)] for s in spread.values()])
    right.set(xlabel="epoch", ylabel=f"{metric}, validation patients", xlim=(0.4, scores.shape[1] + 0.6))
    right.locator_params(axis="x", integer=True)
    right.set_ylim(every.min() - 0.01, every.max() + 0.01)
    right.set_title("Spread over the runs, by epoch", fontsize=9)
    right.legend(fontsize=8, frameon=False)
    return figure
