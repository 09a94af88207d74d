"""One page that needs nothing but itself: tables and pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ...metrics import OPERATING_POINTS
from ..predictions import Arm
from . import plots
from .rows import Table, group_rows, label_rows, paired_rows, point_rows, provenance, summary_rows

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; font-size: 13px; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: left; white-space: nowrap; }
td:not(:first-child) { font-variant-numeric: tabular-nums; }
td.text { white-space: normal; overflow-wrap: anywhere; }
img { max-width: 100%; } h2 { margin-top: 2.2rem; border-bottom: 2px solid #111; } .note { color: #333; }
@media print { body { max-width: none; } table { page-break-inside: avoid; } }
"""

_POINTS = {
    "youden": "Youden: the largest sensitivity + specificity",
    "specificity95": "the largest sensitivity at a specificity of 95 % or more",
    "f1": "the largest F1",
}


def page(result: dict[str, Any], arms: Sequence[Arm]) -> str:
    """Writes the report as HTML, pictures inline.

    Args:
        result: From ``numbers``, with ``notes``: what must be said beside the scores, a paragraph each.
        arms: What it was made of, for the curves.

    Returns:
        The page; it loads nothing from anywhere.
    """
    title = "Evaluation of " + ", ".join(model["name"] for model in result["models"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="note">{escape(note)}</p>' for note in result.get("notes", ())),
        _table(summary_rows(result)),
    ]
    if result["paired"]:
        parts += [
            "<h2>Differences on the same patients</h2>",
            _text(
                "Each replicate of the bootstrap scores both models on the same patients; an interval that holds 0 is "
                "no difference that this data shows."
            ),
            _table(paired_rows(result)),
        ]
    parts += ["<h2>ROC and precision-recall</h2>", _picture(plots.curves_figure(arms, "roc"), "ROC curves by label")]
    parts.append(
        _picture(
            plots.curves_figure(arms, "pr"), "Precision-recall curves by label; the thin line is the share of positives"
        )
    )
    if picture := plots.groups_figure(result):
        parts += ["<h2>Groups of patients</h2>", _picture(picture, "AUC by group")]
    for model, arm in zip(result["models"], arms, strict=True):
        parts += [
            f"<h2>{escape(model['name'])}</h2>",
            _table(provenance(model), text=True),
            "<h3>Labels</h3>",
            _table(label_rows(model)),
        ]
        if arm.val:
            for point in OPERATING_POINTS:
                parts += [f"<h3>Operating point: {_POINTS[point]}</h3>", _table(point_rows(model, point))]
            parts.append(_picture(plots.confusion_figure(model, "youden"), "Confusion at Youden's threshold"))
        parts += ["<h3>Calibration</h3>", _picture(plots.reliability_figure(arm, model), "Reliability by label")]
        if model["groups"]:
            parts += [
                "<h3>Groups</h3>",
                _text(
                    "TPR and FPR at Youden's threshold; means over the labels of which every group has 10 positives "
                    "and 10 negatives. Differences are to the largest group; a largest gap is above 0 by chance alone."
                ),
                _table(group_rows(model)),
            ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(table: Table, text: bool = False) -> str:
    head, rows = table
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    kind = ' class="text"' if text else ""
    lines = ["<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><thead><tr>{top}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"


def _picture(figure: Any, alt: str) -> str:
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{plots.encode(figure)}"></p>'
