"""The table of a localization as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...metrics.froc import RATES
from ...metrics.localization_table import HITS, MACRO, METRICS
from ...utils.files import write_text
from ...utils.text import for_csv
from .rows import markdown

__all__ = ["localization_markdown", "write_csv"]


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a table's rows, each with its ``model``: one line a model, method and finding."""
    columns = ["model", "method", "finding", "n", "patients"]
    columns += [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        ends = {}
        for metric in METRICS:
            ends[f"{metric}_low"], ends[f"{metric}_high"] = row[f"{metric}_interval"] or (None, None)
        writer.writerow({k: for_csv(v) for k, v in {**row, **ends}.items()})
    write_text(path, stream.getvalue())


def localization_markdown(rows: Sequence[dict[str, Any]], froc: Sequence[dict[str, Any]] = ()) -> str:
    """Writes a table's rows, each with its ``model``, as Markdown: all findings first, then each metric by finding.

    A cell is the mean and, in brackets, its interval. The head of a column has the number of cases of the method that
    has most.
    """
    heads = ("pointing", "energy", "IoU", *(f"IoU > {t}" for t in HITS))
    body = [(r["model"], r["method"], *(_cell(r, m) for m in METRICS)) for r in rows if r["finding"] == MACRO]
    parts = [markdown((("model", "method", *heads), body))]
    findings: dict[str, int] = {}
    for row in rows:
        if row["finding"] != MACRO:
            findings[row["finding"]] = max(row["n"], findings.get(row["finding"], 0))
    every = {(r["model"], r["method"], r["finding"]): r for r in rows}
    methods = dict.fromkeys(key[:2] for key in every)
    for metric, head in ((METRICS[0], heads[0]), (METRICS[1], heads[1]), (METRICS[3], heads[3])):
        columns = ("model", "method", *(f"{name} ({n})" for name, n in findings.items()))
        body = [(*key, *(_cell(every.get((*key, name)), metric) for name in findings)) for key in methods]
        parts += [f"{head[0].upper()}{head[1:]} by finding (cases):\n", markdown((columns, body))]
    if froc:
        columns = ("model", "finding", "cases", "images", *(f"{rate} an image" for rate in RATES))
        body = [
            (r["model"], r["finding"], r["n"], r["images"], *(_cell(r, f"froc_{rate}") for rate in RATES)) for r in froc
        ]
        parts += ["Sensitivity of the boxes at so many false boxes an image:\n", markdown((columns, body))]
    return "\n".join(parts)


def _cell(row: dict[str, Any] | None, metric: str) -> str:
    if row is None or row[metric] is None:
        return "-"
    low, high = row[f"{metric}_interval"] or (math.nan, math.nan)
    return f"{row[metric]:.3f} ({low:.3f}-{high:.3f})"
