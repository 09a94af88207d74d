"""Describes a collection in a table and a picture: labels, views, sexes and ages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data import Records
from ..data.boxes import BoxedImage, boxed_images
from ..data.create import read_collection
from ..labels import align, resolve_labels
from ..utils.errors import InputError, require
from ..utils.files import alone_in, atomic_write, write_text
from ..utils.json_files import to_json
from ..utils.text import without_formulas
from .config import SummaryConfig

__all__ = ["SummaryConfig", "draw_summary", "summarize", "summary_lines"]

# Okabe and Ito's colours, which colour-blind readers tell apart, on grays.
_COLOURS = {"positive": "#0072b2", "uncertain": "#e69f00", "negative": "#b8b8b8", "blank": "#ececec"}
_BOX = "#e69f00"
_SEXES = {"F": "#d55e00", "M": "#56b4e9", "unknown": "#b8b8b8"}
_NUMBERS = 20  # labels up to which the cells of the heat map hold numbers, and whose boxes are drawn
_SAMPLES, _SIDE = 4, 256  # images of a finding that its boxes are drawn on, and pixels of their shorter side


def summarize(config: SummaryConfig) -> dict[str, Any]:
    """Counts what a collection's tables say, and writes ``summary.json`` and ``summary.png`` where asked.

    With ``boxes`` it also counts them, and draws some of them in ``boxes.png``.

    Label cells are counted as they are in the tables, before any policy. All counts are of images, except ``patients``,
    ``studies`` and ``patients_positive``. No patient, study or file is named.

    Returns:
        A dict for JSON: ``data``, ``split`` and ``view_filter`` as asked; ``images``, ``patients``, ``studies``, and
        ``without_patient``, the images that count as a patient of their own because theirs is unknown;
        ``splits``, ``views`` and ``sexes`` as counts; ``ages`` (years); ``labels``, ``{name: {positive, negative,
        uncertain, blank, share_uncertain, share_blank, prevalence, patients_positive}}``; and ``co_occurrence``,
        ``(L, L)`` lists of how many images are positive for both labels, in the order of ``labels``. The prevalence is
        among positive and negative cells, None where there are none. With boxes also ``boxes``, ``{name: {boxes,
        images}}``.

    Raises:
        InputError: as ``mxa.data.create_dataset`` and ``mxa.data.boxes.read_boxed``, a label that the collection lacks,
            no image in the selection, or matplotlib is missing.
    """
    if config.output is not None:  # fail before the work, not after it
        require("matplotlib", "explain")
        Path(config.output).mkdir(parents=True, exist_ok=True)
    config = config.resolved()
    labels = None if config.labels is None else resolve_labels(config.labels)
    records = read_collection(
        *(config.data, config.root, config.split, labels, config.columns),
        test_fraction=config.test_fraction,
        allow_pipe=config.allow_pipe,
    )
    if labels is not None:
        if lacking := [name for name, i in zip(labels, align(records.labels, labels), strict=True) if i is None]:
            raise InputError(f"the collection has no {', '.join(lacking)}; it has {', '.join(records.labels)}")
        records = records.with_labels(labels)
    records = records.subset(records.in_split(config.split) & records.in_views(config.views))
    if len(records) == 0:
        raise InputError(f"{config.where()}: split {config.split} has no image (views: {config.views}): give another")
    asked = {"data": config.data, "split": config.split, "view_filter": config.views}
    summary = {**asked, **_count(records)}
    boxed = []
    if config.boxes is not None:
        boxed = boxed_images(replace(records, split=config.split), config.data, config.root, config.boxes)
        summary["boxes"] = _count_boxes(boxed, records.labels)
    if config.output is not None:
        text = to_json(summary, 2) + "\n"
        with alone_in(Path(config.output), "mxa data summary"):
            write_text(Path(config.output) / "summary.json", text)
            draw_summary(summary, Path(config.output) / "summary.png")
            if boxed:
                draw_boxes(records, boxed, Path(config.output) / "boxes.png")
    return summary


def _count(records: Records) -> dict[str, Any]:
    patients = pd.factorize(records.patients.astype(object))[0]
    studies = pd.DataFrame({"patient": patients, "study": records.studies.astype(object)})  # unique within a patient
    positive = (records.targets == 1).astype(np.float64)  # (N, L)
    return {
        "images": len(records),
        "patients": int(patients.max()) + 1,
        "without_patient": records.without_patient(),
        "studies": len(studies.drop_duplicates()),
        "splits": _counts(records.splits, "none"),
        "views": _counts(records.views),
        "sexes": _counts(records.sexes),
        "ages": _ages(records.ages, records.sexes),
        "labels": {name: _label(records.targets[:, i], patients) for i, name in enumerate(records.labels)},
        "co_occurrence": (positive.T @ positive).astype(int).tolist(),
    }


def _count_boxes(images: Sequence[BoxedImage], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = {name: [len(image.boxes[name]) for image in images if name in image.boxes] for name in labels}
    return {name: {"boxes": sum(found), "images": len(found)} for name, found in counts.items() if found}


def _counts(values: np.ndarray, blank: str = "unknown") -> dict[str, int]:
    """Counts each text, the most frequent first; the empty one is last and called ``blank``."""
    names, counts = np.unique(values, return_counts=True)
    ordered = sorted(zip(names, counts.tolist(), strict=True), key=lambda pair: (not pair[0], -pair[1]))
    return {str(name) or blank: count for name, count in ordered}


def _label(cells: np.ndarray, patients: np.ndarray) -> dict[str, int | float | None]:
    kinds = {"positive": cells == 1, "negative": cells == 0, "uncertain": cells == -1, "blank": np.isnan(cells)}
    counts = {kind: int(rows.sum()) for kind, rows in kinds.items()}
    decided = counts["positive"] + counts["negative"]
    return {
        **counts,
        "share_uncertain": round(counts["uncertain"] / len(cells), 6),
        "share_blank": round(counts["blank"] / len(cells), 6),
        "prevalence": round(counts["positive"] / decided, 6) if decided else None,
        "patients_positive": len(np.unique(patients[kinds["positive"]])),
    }


def _ages(ages: np.ndarray, sexes: np.ndarray) -> dict[str, Any]:
    """Describes the images' ages (years); ``decades`` is ``{"60-69": {"F": 3, ...}}``, empty ones between included."""
    known = np.isfinite(ages)
    values = [None] * 5
    if known.any():
        values = [round(float(age), 2) for age in np.quantile(ages[known], (0, 0.25, 0.5, 0.75, 1))]
    decades = np.clip(ages[known] // 10, -1, 12).astype(int)  # a table may hold an age of 411
    by_sex = {name: decades[sexes[known] == name.replace("unknown", "")] for name in _SEXES}
    by_sex = {name: theirs for name, theirs in by_sex.items() if len(theirs)}
    span = range(decades.min(), decades.max() + 1) if known.any() else ()
    return {
        "known": int(known.sum()),
        "unknown": int((~known).sum()),
        **dict(zip(("min", "quartile_1", "median", "quartile_3", "max"), values, strict=True)),
        "decades": {_decade(d): {name: int((theirs == d).sum()) for name, theirs in by_sex.items()} for d in span},
    }


def _decade(number: int) -> str:
    return "<0" if number < 0 else "120+" if number == 12 else f"{10 * number}-{10 * number + 9}"


def summary_lines(summary: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Makes the table and lines that are printed of a summary.

    Returns:
        The columns and rows of the table of labels, and the lines below it.
    """
    total, ages = summary["images"], summary["ages"]
    columns = ("label", "positive", "negative", "uncertain", "blank", "prevalence", "patients positive")
    rows = [
        (
            name,
            *(f"{row[kind]:,}" for kind in ("positive", "negative")),
            *(_share(row[kind], total) for kind in ("uncertain", "blank")),
            "-" if row["prevalence"] is None else f"{row['prevalence']:.2%}",
            f"{row['patients_positive']:,}",
        )
        for name, row in summary["labels"].items()
    ]
    lines = [_headline(summary)]
    if unknown := summary["without_patient"]:
        lines.append(f"patients: unknown for {_share(unknown, total)} of the images, each counts as one of its own")
    for key in ("splits", "views", "sexes"):
        lines.append(f"{key}: " + ", ".join(f"{name} {_share(count, total)}" for name, count in summary[key].items()))
    age = "age: not in the tables"
    if ages["known"]:
        age = f"age: median {ages['median']:g} (quartiles {ages['quartile_1']:g} and {ages['quartile_3']:g})"
        age += f", {ages['min']:g} to {ages['max']:g}, unknown {ages['unknown']:,}"
    if "boxes" in summary:
        each = [f"{name} {row['boxes']:,} (images: {row['images']:,})" for name, row in summary["boxes"].items()]
        lines.append(f"boxes: {', '.join(each)}")
    note = "prevalence: positive among positive and negative; uncertain and blank cells are neither"
    return columns, rows, [*lines, age, note]


def _headline(summary: dict[str, Any]) -> str:
    images, patients, studies = (f"{summary[key]:,}" for key in ("images", "patients", "studies"))
    each = " (one image each)" if images == patients else ""
    where = f"{summary['data']}, split {summary['split']}, views {summary['view_filter']}"
    return f"{where}: {images} images of {patients} patients{each}, {studies} studies"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if count else "0"


def draw_summary(summary: dict[str, Any], path: Path) -> None:
    """Draws a summary as a PNG: labels, their co-occurrence, views, sexes and ages.

    Args:
        summary: From ``summarize``.
        path: The file to write.

    Raises:
        InputError: matplotlib is missing.
    """
    require("matplotlib", "explain")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [_short(name) for name in summary["labels"]]
    side = 0.32 * len(names)  # inches: a row is as high as a cell of the heat map is wide
    wide, high = max(side, 2), side + 0.09 * max(len(name) for name in names) + 1
    figure = Figure(figsize=(9 + wide, high + 3.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    figure.suptitle(_headline(summary), fontsize=12)
    top, bottom = figure.subfigures(2, 1, height_ratios=(high, 2.8))
    bars, heat = top.subplots(1, 2, width_ratios=(5, wide))
    _draw_labels(bars, summary, names)
    _draw_pairs(heat, summary, names)
    views, sexes, ages = bottom.subplots(1, 3, width_ratios=(1, 1, 1.6))
    _draw_counts(views, "views", summary["views"], {})
    _draw_counts(sexes, "sexes", summary["sexes"], _SEXES)
    _draw_ages(ages, summary["ages"])
    atomic_write(path, lambda file: without_formulas(figure).savefig(file, dpi=120, format="png"))


def draw_boxes(records: Records, images: Sequence[BoxedImage], path: Path) -> None:
    """Draws boxes on X-rays as a PNG: a row for each of the twenty findings that have the most.

    A row has four of the finding's images, which are spread evenly over the records.

    Args:
        records: The rows.
        images: Those with boxes.
        path: The file to write.

    Raises:
        InputError: matplotlib is missing, or an image does not read.
    """
    require("matplotlib", "explain")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    counts = sorted(_count_boxes(images, records.labels).items(), key=lambda item: -item[1]["boxes"])[:_NUMBERS]
    figure = Figure(figsize=(2 * _SAMPLES, 2.3 * len(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(counts), _SAMPLES, squeeze=False)
    for row, (name, count) in zip(grid, counts, strict=True):
        title = f"{_short(name)}: {count['boxes']:,} boxes (images: {count['images']:,})"
        row[0].set_title(title, loc="left", fontsize=9)
        chosen = [image for image in images if name in image.boxes]
        chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, _SAMPLES).round().astype(int))]
        for axes in row:
            axes.set_axis_off()
        for axes, image in zip(row, chosen, strict=False):
            pixels = records.image(image.index, (_SIDE, _SIDE))
            pixels.thumbnail((2 * _SIDE, 2 * _SIDE))
            axes.imshow(np.asarray(pixels), cmap="gray", vmin=0, vmax=255)
            for x1, y1, x2, y2 in image.boxes[name] * np.array([pixels.width, pixels.height] * 2) - 0.5:
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_BOX, linewidth=1.5))
    atomic_write(path, lambda file: without_formulas(figure).savefig(file, dpi=120, format="png"))


def _draw_labels(axes: Any, summary: dict[str, Any], names: list[str]) -> None:
    rows = list(summary["labels"].values())
    places, left = np.arange(len(rows)), np.zeros(len(rows))
    for kind, colour in _COLOURS.items():
        shares = np.array([row[kind] for row in rows]) / summary["images"]
        if shares.any():
            axes.barh(places, shares, left=left, height=0.8, color=colour, label=kind)
        left += shares
    for place, row in enumerate(rows):
        axes.text(1.01, place, f"{row['positive']:,}", va="center", fontsize=8, color=_COLOURS["positive"])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of the images (right: how many are positive)")
    axes.set_yticks(places, names, fontsize=9)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.spines[:].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=9, frameon=False)


def _draw_pairs(axes: Any, summary: dict[str, Any], names: list[str]) -> None:
    both = np.array(summary["co_occurrence"], dtype=float)
    share = np.divide(both, np.diag(both)[:, None], out=np.full_like(both, np.nan), where=np.diag(both)[:, None] > 0)
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor(_COLOURS["blank"])
    if len(both) <= _NUMBERS:
        for (row, column), value in np.ndenumerate(share):
            text, colour = ("-", "black") if np.isnan(value) else (f"{value:.2f}", "white" if value < 0.5 else "black")
            axes.text(column, row, text.removeprefix("0"), ha="center", va="center", fontsize=7, color=colour)
    else:
        axes.figure.colorbar(image, ax=axes, fraction=0.03)
    axes.set_xticks(range(len(both)), names, rotation=90, fontsize=9)
    axes.set_yticks(())
    axes.xaxis.tick_top()
    axes.set_xlabel("P(column | row), among images\npositive for the row's label")


def _draw_counts(axes: Any, title: str, counts: dict[str, int], colours: dict[str, str]) -> None:
    axes.set_title(title, fontsize=10)
    if set(counts) == {"unknown"}:
        return _draw_missing(axes)
    total = sum(counts.values())
    axes.barh(range(len(counts)), counts.values(), color=[colours.get(name, "#009e73") for name in counts])
    for place, count in enumerate(counts.values()):
        axes.text(count, place, f" {_share(count, total)}", va="center", fontsize=8)
    axes.set(xlim=(0, 1.6 * max(counts.values())), xticks=())
    middle, half = (len(counts) - 1) / 2, max(len(counts), 3) / 2
    axes.set_ylim(middle + half, middle - half)
    axes.set_yticks(range(len(counts)), counts, fontsize=9)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_ages(axes: Any, ages: dict[str, Any]) -> None:
    axes.set_title("age, years", fontsize=10)
    if not ages["known"]:
        return _draw_missing(axes)
    decades, below = ages["decades"], np.zeros(len(ages["decades"]))
    for name in next(iter(decades.values())):
        counts = np.array([row[name] for row in decades.values()])
        axes.bar(range(len(decades)), counts, bottom=below, width=0.9, color=_SEXES[name], label=name)
        below += counts
    axes.set_xticks(range(len(decades)), decades, fontsize=8, rotation=45)
    axes.set_ylim(0, 1.05 * below.max())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _draw_missing(axes: Any) -> None:
    axes.text(0.5, 0.5, "not in the tables", ha="center", va="center", color="#606060", transform=axes.transAxes)
    axes.set_axis_off()


def _short(name: str) -> str:
    text = name if len(name) <= 30 else f"{name[:29]}…"
    return text.replace("$", r"\$")  # else matplotlib reads a formula
