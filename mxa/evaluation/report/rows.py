"""The numbers of an evaluation as rows: what the CSV, the Markdown, the page and the terminal show."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from ...utils.text import for_csv, for_markdown
from .numbers import ENOUGH

__all__ = ["card", "csv_text", "group_rows", "label_rows", "markdown", "paired_rows", "provenance", "summary_rows"]

_MEANS = {
    f"macro_auc_min{ENOUGH}": f"macro AUC, labels with {ENOUGH} positives or more",
    "macro_auc": "macro AUC, every label that is defined",
    "micro_auc": "micro AUC",
    "chexpert5_auc": "mean AUC of CheXpert's five labels",
    "macro_ap": "macro AUPRC",
    "micro_ap": "micro AUPRC",
    "loss": "cross-entropy",
    "accuracy": "accuracy at probability 0.5, mean over the labels",
    "f1": "F1 at probability 0.5, mean over the labels",
    "brier": "Brier score, mean over the labels",
    "brier_unscaled": "Brier score, labels with a temperature, before scaling",
    "brier_scaled": "Brier score, labels with a temperature, after scaling",
    "ece": "calibration error (ECE), mean over the labels",
    "ece_unscaled": "calibration error, labels with a temperature, before scaling",
    "ece_scaled": "calibration error, labels with a temperature, after scaling",
}

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def shown(numbers: dict[str, Any], name: str, digits: int = 3, signed: bool = False) -> str:
    """A value with its interval, ``0.712 (0.690 to 0.731)``; ``-`` where undefined."""
    value = numbers.get(name)
    if value is None:
        return "-"
    form = f"{{:{'+' if signed else ''}.{digits}f}}"
    low, high = numbers.get(f"{name}_interval") or (None, None)
    ends = "" if low is None else f" ({form.format(low)} to {form.format(high)})"
    return form.format(value) + ends


def summary_rows(result: dict[str, Any]) -> Table:
    """Means of every model, a row a mean."""
    models = result["models"]
    rows = [
        (text, *(shown(m, name) for m in models))
        for name, text in _MEANS.items()
        if any(m.get(name) is not None for m in models)
    ]
    return ("", *(m["name"] for m in models)), rows


def label_rows(model: dict[str, Any]) -> Table:
    """A row a label: ranking, calibration, counts."""
    scaled = any("ece_scaled" in row for row in model["labels"].values())
    names = ("auc", "ap", "accuracy", "f1", "brier", "ece", *(("ece_scaled",) if scaled else ()))
    head = (
        "label",
        "n+",
        "n-",
        "AUC",
        "AUPRC",
        "accuracy",
        "F1",
        "Brier",
        "ECE",
        *(("ECE, scaled",) if scaled else ()),
    )
    rows = [
        (
            name,
            str(row["n_pos"]),
            str(row["n_neg"]),
            shown(row, "auc"),
            shown(row, "ap"),
            *(shown({n: row[n]}, n) for n in names[2:]),
        )
        for name, row in model["labels"].items()
    ]
    return head, rows


def point_rows(model: dict[str, Any], point: str) -> Table:
    """A row a label: rates at one operating point."""
    rates = ("sensitivity", "specificity", "ppv", "npv", "f1")
    rows = []
    for name, row in model["labels"].items():
        numbers = row["operating_points"][point]
        thresholds = [t for t in numbers["threshold"] if t is not None]
        threshold = f"{sum(thresholds) / len(thresholds):.3f}" if thresholds else "-"
        counts = (str(row["val_pos"]), str(row["val_neg"]))
        rows.append((name, *counts, threshold, *(shown(numbers, rate) for rate in rates)))
    return (
        "label",
        "n+ chosen on",
        "n- chosen on",
        "threshold",
        "sensitivity",
        "specificity",
        "PPV",
        "NPV",
        "F1",
    ), rows


def group_rows(model: dict[str, Any]) -> Table:
    """A row a group: images, AUC, TPR and FPR, and the differences to the largest group; then the largest gap."""
    rows = []
    for by, grouping in model["groups"].items():
        of = f"{by} ({len(grouping['labels'])} labels)"
        for name, numbers in grouping["groups"].items():
            values = [shown(numbers, metric) for metric in ("auc", "tpr", "fpr")]
            mark = "reference" if name == grouping.get("reference") else None
            values += [mark or shown(numbers, f"{m}_difference", signed=True) for m in ("auc", "tpr", "fpr")]
            rows.append((of, name, str(numbers["images"]), *values))
        if grouping["gaps"]:
            gaps = [shown(grouping["gaps"], m) for m in ("auc", "tpr", "fpr")]
            rows.append((of, "largest gap", "", *gaps, "", "", ""))
    return ("by", "group", "images", "AUC", "TPR", "FPR", "AUC, difference", "TPR, difference", "FPR, difference"), rows


def paired_rows(result: dict[str, Any]) -> Table:
    """A row a mean or label: the difference of each model to the first, on the same patients."""
    pairs = result["paired"]
    names = [n for n in (f"macro_auc_min{ENOUGH}", "macro_auc", "micro_auc", "macro_ap") if any(n in p for p in pairs)]
    rows = [(_MEANS[name], *(shown(p, name, signed=True) for p in pairs)) for name in names]
    for label in dict.fromkeys(n for p in pairs for n in p["labels"]):
        rows.append((f"AUC of {label}", *(shown(p["labels"].get(label, {}), "auc", signed=True) for p in pairs)))
    return ("difference", *(f"{p['name']} minus {p['minus']}" for p in pairs)), rows


def provenance(model: dict[str, Any]) -> Table:
    """Where the numbers come from: one row a fact."""
    rows = [("images", f"{model['images']:,} of {model['patients']:,} patients")]
    keys = [key for key in dict.fromkeys(key for metadata in model["metadata"] for key in metadata) if key != "run"]
    for key in keys:
        values = list(dict.fromkeys(_fact(metadata.get(key)) for metadata in model["metadata"]))
        rows.append((key.replace("_", " "), "; ".join(values)))
    seeds = " and seeds" if len(model["metadata"]) > 1 else ""
    rows.append(
        (
            "intervals",
            f"95 %, patients{seeds} resampled {model['replicates']:,} times",
        )
    )
    if "chosen_on" in model:
        on = model["chosen_on"]
        rows.append(
            ("thresholds, temperatures", f"chosen on {on['images']:,} images of {on['patients']:,} validation patients")
        )
    if model["undefined"]:
        rows.append(("undefined, out of every mean", ", ".join(model["undefined"])))
    if model["not_in_collection"]:
        rows.append(("labels that the collection lacks", ", ".join(model["not_in_collection"])))
    return ("", model["name"]), rows


def _fact(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def markdown(table: Table) -> str:
    """A table in Markdown."""
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(for_markdown, line)) + " |" for line in lines) + "\n"


def card(result: dict[str, Any]) -> str:
    """The section of a model card: means, labels, groups, differences, and where they come from."""
    notes = [f"{for_markdown(note)}\n" for note in result.get("notes", ())]
    parts = ["## Evaluation\n", *notes, markdown(summary_rows(result))]
    for model in result["models"]:
        parts += [f"### {for_markdown(model['name'])}\n", markdown(provenance(model)), markdown(label_rows(model))]
        if model["groups"]:
            parts += ["By group:\n", markdown(group_rows(model))]
    if result["paired"]:
        parts += ["### Paired differences\n", markdown(paired_rows(result))]
    return "\n".join(parts)


def csv_text(result: dict[str, Any]) -> str:
    """Every number of a label as CSV: a row a model and label."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ("auc", "ap", "accuracy", "f1", "brier", "ece", "brier_scaled", "ece_scaled")
    rates = ("sensitivity", "specificity", "ppv", "npv")
    points = ("youden", "specificity95", "f1")
    head = ["model", "label", "n_pos", "n_neg"]
    head += [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    head += [f"{point}_{rate}{end}" for point in points for rate in rates for end in ("", "_low", "_high")]
    writer.writerow(head)
    for model in result["models"]:
        for label, row in model["labels"].items():
            cells = [model["name"], label, row["n_pos"], row["n_neg"]]
            for numbers, name in [(row, n) for n in names] + [
                (row.get("operating_points", {}).get(p, {}), r) for p in points for r in rates
            ]:
                cells += [numbers.get(name), *(numbers.get(f"{name}_interval") or (None, None))]
            writer.writerow(map(for_csv, cells))
    return stream.getvalue()
