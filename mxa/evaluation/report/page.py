"""One page that needs nothing but itself: tables and pictures of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from ...metrics import OPERATING_POINTS
from ...metrics.operating import ENOUGH, LEAST
from ...utils.text import printable
from ..predictions import Arm
from . import plots
from .rows import Table, group_rows, label_rows, paired_rows, point_rows, provenance, shown, summary_rows

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
p { max-width: 50rem; } p.summary { font-size: 17px; }
p.note { color: #444; border-left: 3px solid #bbb; padding-left: .8rem; }
h2 { margin-top: 2.4rem; border-bottom: 2px solid #111; } h3 { margin: 1.6rem 0 0; }
div.table { overflow-x: auto; margin: .6rem 0 1.4rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #777; vertical-align: bottom; } tbody tr:hover { background: #f4f4f4; }
td span { white-space: nowrap; color: #555; }
img { max-width: 100%; }
@media print { body { max-width: none; } table, img { page-break-inside: avoid; } }
"""

_CAVEAT = (
    "These numbers are of these images alone: other hospitals, scanners and patients give other numbers. "
    "For research; not for diagnosis."
)
_OF_SPLIT = {
    "all": "Every image was scored, and a model may have been trained on some of them.",
    "train": "These are images to train on: the numbers say little about others.",
    "val": "Validation patients serve to choose a model: their numbers are too good to report.",
}

_CHOSEN = (
    f"Nothing is chosen for a label with fewer than {LEAST} positives or negatives among the validation patients. With "
    f"fewer than {ENOUGH} of either, a threshold and a temperature are uncertain."
)

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
        f"<h1>{_shown(title)}</h1>",
        f'<p class="summary">{_shown(" ".join(_summary(result)))}</p>',
        *(f'<p class="note">{_shown(note)}</p>' for note in (*result.get("notes", ()), _caveat(result))),
        _table(summary_rows(result)),
    ]
    if result["paired"]:
        parts += [
            "<h2>Differences on the same patients</h2>",
            _text(
                "Each replicate of the bootstrap scores both models on the same patients. Where an interval holds 0, "
                "these patients show no difference."
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
            f"<h2>{_shown(model['name'])}</h2>",
            _table(provenance(model)),
            "<h3>Labels</h3>",
            _table(label_rows(model)),
        ]
        if arm.val:
            parts.append(_text(_CHOSEN))
            for point in OPERATING_POINTS:
                parts += [f"<h3>Operating point: {_POINTS[point]}</h3>", _table(point_rows(model, point))]
            parts.append(_picture(plots.confusion_figure(model), "Confusion at Youden's threshold"))
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
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_shown(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _summary(result: dict[str, Any]) -> tuple[str, str]:
    """Says in two sentences what was scored on what, and the headline number of each model."""
    models, first = result["models"], result["models"][0]
    facts = first["metadata"][0]
    where = [f"{key}: {facts[key]}" for key in ("data", "split", "views") if key in facts]
    scored = f"{_listed([m['name'] for m in models])} {'was' if len(models) == 1 else 'were'} scored on "
    scored += f"{first['images']:,} images of {first['patients']:,} patients"
    scored += f" ({', '.join(where)})." if where else "."
    name = f"macro_auc_min{ENOUGH}"
    if all(m[name] is None for m in models):
        return scored, f"No label has {ENOUGH} positives and {ENOUGH} negatives: there is no mean AUC to report."
    values = [shown(m, name) + (f" for {m['name']}" if len(models) > 1 else "") for m in models]
    values[0] = values[0].replace("(", "(95 % interval ", 1)
    count = len(first["labels_in_headline"])
    labels = f"{count} label{'s' * (count != 1)} with at least {ENOUGH} positives and {ENOUGH} negatives"
    return scored, f"The mean AUC of the {labels} is {_listed(values)}."


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _caveat(result: dict[str, Any]) -> str:
    """Says what the numbers do not show."""
    split = result["models"][0]["metadata"][0].get("split")
    return f"{_OF_SPLIT.get(split, '')} {_CAVEAT}".strip()


def _shown(text: str) -> str:
    return escape(printable(text))


def _text(text: str) -> str:
    return f"<p>{_shown(text)}</p>"


def _table(table: Table) -> str:
    head, rows = table
    top = "".join(f"<th>{_shown(cell)}</th>" for cell in head)
    lines = ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(cell: str) -> str:
    """A cell that may break between its words, but not where it is short and not within an interval."""
    if len(cell) <= 20:
        return _shown(cell).replace(" ", "&nbsp;")
    return re.sub(r"\([-+.\d]+ to [-+.\d]+\)", r"<span>\g<0></span>", _shown(cell))


def _picture(figure: Any, alt: str) -> str:
    return f'<div><img alt="{_shown(alt)}" src="data:image/png;base64,{plots.encode(figure)}"></div>'
