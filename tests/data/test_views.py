"""Views: what tables and DICOM files call them."""

from __future__ import annotations

import pytest

from mxa.data import create_dataset
from mxa.data.views import normal_view


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (
            "AP",
            ("AP", "ap", "AP_horizontal", "CHEST AP", "AP AXIAL", "anteroposterior", "Antero-posterior", "AP supine"),
        ),
        ("PA", ("PA", "pa", "posteroanterior", "CHEST PA", "PA ")),
        ("LATERAL", ("L", "LL", "RL", "LAT", "LLAT", "left lateral", "PA lateral", "XTABLE LATERAL", "SWIMMERS")),
        ("OTHER", ("AP LLD", "PA RLD", "AP OBLIQUE", "LAO", "RPO", "LEFT LATERAL DECUBITUS", "COSTAL", "EXCLUDE")),
        ("", ("", " ", "UNK", "Unknown", "NA", "N/A", "nan", "None", "Frontal", "FRONTAL")),
    ],
)
def test_views(view, words):
    assert {word: normal_view(word) for word in words} == dict.fromkeys(words, view)


def test_views_separated_by_commas(made_table):
    both = create_dataset("table", made_table(), "all", views="AP, PA")
    assert set(both.records.views) == {"AP", "PA"}
    assert len(create_dataset("table", made_table(), "all", views="AP,lateral")) == 16
