"""The files of a report: JSON, CSV, Markdown, and one page that loads nothing."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mxa.evaluation.report import numbers, plots
from mxa.evaluation.report.page import page
from mxa.evaluation.report.rows import (
    card,
    csv_text,
    group_rows,
    label_rows,
    markdown,
    paired_rows,
    point_rows,
    summary_rows,
)


@pytest.fixture(scope="module")
def made(request):
    from mxa.evaluation.predictions import Arm

    from .conftest import predictions

    arms = [
        Arm(n, (predictions(seed=s),), (predictions(120, s + 50, 7, 1.0, "val"),)) for s, n in enumerate(("a<b", "b|c"))
    ]
    return arms, numbers(arms, 30)


def test_csv_has_every_number_of_a_label(made):
    _, result = made
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [(r["model"], r["label"]) for r in rows[:5]] == [
        ("a<b", n) for n in ("Edema", "Mass", "Fracture", "Hernia")
    ] + [("b|c", "Edema")]
    edema = result["models"][0]["labels"]["Edema"]
    assert float(rows[0]["auc"]) == edema["auc"] and float(rows[0]["auc_low"]) == edema["auc_interval"][0]
    assert float(rows[0]["youden_ppv_high"]) == edema["operating_points"]["youden"]["ppv_interval"][1]
    assert rows[2]["auc"] == rows[2]["auc_low"] == ""


def test_tables_say_undefined_and_give_intervals(made):
    _, result = made
    model = result["models"][0]
    head, rows = label_rows(model)
    edema = dict(zip(head, rows[0], strict=True))
    low, high = model["labels"]["Edema"]["auc_interval"]
    assert edema["AUC"] == f"{model['labels']['Edema']['auc']:.3f} ({low:.3f} to {high:.3f})"
    assert dict(zip(head, rows[2], strict=True))["AUC"] == "-"
    for table in (
        label_rows(model),
        point_rows(model, "youden"),
        group_rows(model),
        summary_rows(result),
        paired_rows(result),
    ):
        assert all(len(row) == len(table[0]) for row in table[1]) and table[1]
    assert re.search(r"^[+-]0\.\d{3} \([+-]", paired_rows(result)[1][0][1])


def test_markdown_is_a_table(made):
    lines = markdown((("a|b", "c"), [("1", "2")])).splitlines()
    assert lines == ["| a\\|b | c |", "| --- | --- |", "| 1 | 2 |"]
    text = card(made[1])
    assert (
        text.startswith("## Evaluation") and "### Paired differences" in text and "chosen on 120 images of 60" in text
    )


class Checker(HTMLParser):
    """Every tag is closed, nothing is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.pictures = [], []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href"):
                assert value.startswith("data:image/png;base64,")
                self.pictures.append(value.partition(",")[2])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(made):
    arms, result = made
    text = page({**result, "notes": ["labels are <mined> from reports"]}, arms)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and len(checker.pictures) == 7
    for picture in checker.pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) > 200
    assert "a&lt;b" in text and "<b" not in text.replace("<body", "") and "labels are &lt;mined&gt;" in text
    assert "http" not in text and "url(" not in text
    json.dumps(result, allow_nan=False)


def test_the_page_opens_with_what_was_scored_the_headline_and_the_caveat(made):
    arms, result = made
    first, second = (m["macro_auc_min20"] for m in result["models"])
    (low, high), (low2, high2) = (m["macro_auc_min20_interval"] for m in result["models"])
    text = page({**result, "notes": ["labels are mined from reports"]}, arms).partition("</h1>")[2]
    scored = "a&lt;b and b|c were scored on 240 images of 120 patients (split: test). "
    headline = (
        f"The mean AUC of the 1 label with at least 20 positives and 20 negatives is {first:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}) for a&lt;b and {second:.3f} ({low2:.3f} to {high2:.3f}) for b|c."
    )
    note = '<p class="note">labels are mined from reports</p>\n<p class="note">These numbers are of these images alone'
    assert text.startswith(f'\n<p class="summary">{scored}{headline}</p>\n{note}')
    assert "not for diagnosis" in text[: text.index("<table")]
    model = {**result["models"][0], "macro_auc_min20": None}
    text = page({**result, "models": [model], "paired": []}, arms[:1])
    assert "a&lt;b was scored on" in text and "No label has 20 positives and 20 negatives" in text


def test_no_cell_widens_the_page(made):
    """Short cells and intervals alone do not wrap, and nothing breaks within a word."""
    arms, result = made
    long = "a name of a model that is much longer than any column of a table should be"
    models = [{**m, "name": long} for m in result["models"]]
    text = page({**result, "models": models}, arms)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "overflow-wrap" not in style and "word-break" not in style
    assert [rule.split("{")[0].split()[-2:] for rule in style.split("}") if "nowrap" in rule] == [["td", "span"]]
    for part in re.findall(r"<td>(.*?)</td>", text):
        assert all(re.fullmatch(r"\([-+.\d]+ to [-+.\d]+\)", span) for span in re.findall("<span>(.*?)</span>", part))
        assert "&nbsp;" not in part or len(unescape(part)) <= 20
    assert f"<th>{long}</th>" in text


def test_the_page_without_validation_groups_or_pairs(made):
    from mxa.evaluation.predictions import Arm

    from .conftest import predictions

    one = predictions()
    one = type(one)(one.labels, one.logits, one.targets, one.cases.assign(view="", sex="", age=np.nan), one.metadata)
    arms = [Arm("alone", (one,))]
    text = page(numbers(arms, 5), arms)
    assert "Operating point" not in text and "Groups" not in text and "Differences" not in text


def test_curves_go_where_they_should(made):
    arms, _ = made
    figure = plots.curves_figure(arms, "roc")
    line = figure.axes[0].lines[0].get_xydata()
    np.testing.assert_array_equal(line[[0, -1]], [[0, 0], [1, 1]])
    area = np.trapezoid(line[:, 1], line[:, 0])
    assert area == pytest.approx(made[1]["models"][0]["labels"]["Edema"]["auc"], abs=1e-5)
    assert [t.get_text() for t in figure.axes[2].texts] == ["undefined"] * 2
