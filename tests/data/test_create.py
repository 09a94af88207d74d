"""What every collection has in common: labels by name, splits by patient, views, errors."""

from __future__ import annotations

import numpy as np
import pytest

from mxa.data import create_dataset
from mxa.labels import CHEXPERT
from mxa.utils.errors import InputError

from .helpers import column, counts


def test_labels_are_aligned_by_name_and_masked_where_missing(made_nih):
    own = create_dataset("nih", made_nih())
    dataset = create_dataset("nih", made_nih(), labels="chexpert")
    assert dataset.labels == CHEXPERT
    np.testing.assert_array_equal(column(dataset, "Pleural Effusion"), column(own, "Effusion"))
    np.testing.assert_array_equal(column(dataset, "No Finding"), column(own, "No Finding"))
    masked = [name for name in CHEXPERT if np.isnan(column(dataset, name)).all()]
    lacking = ["Enlarged Cardiomediastinum", "Lung Opacity", "Lung Lesion", "Pleural Other", "Fracture"]
    assert masked == [*lacking, "Support Devices"]
    assert not np.isnan(column(dataset, "Edema")).any()
    few = create_dataset("nih", made_nih(), labels="Edema, pleural effusion")
    assert few.labels == ("Edema", "pleural effusion")
    assert counts(few) == {"Edema": 5, "pleural effusion": 10}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"collection": "mnist"}, "unknown collection 'mnist': give one of phantom, nih, nih-google, chexpert"),
        ({"split": "valid"}, "unknown split 'valid': give one of train, val, test, all"),
        ({"labels": "Nonsense"}, "unknown label Nonsense: give names of chexpert, mimic, nih"),
        ({"labels": "Edema, Nonsense"}, "unknown label Nonsense"),
        ({"labels": ["Edema", "edema"]}, "'Edema' and 'edema' mean the same"),
        ({"labels": []}, "list of labels is empty"),
        ({"labels": ["Scoliosis", "Rickets"]}, "none of the labels Scoliosis, Rickets; the collection has At"),
        ({"views": "lateral"}, r"nih .*has no image \(views: lateral\)"),
        ({"root": None}, "collection 'nih' needs --root"),
    ],
)
def test_unknown_names_are_named(made_nih, kwargs, message):
    with pytest.raises(InputError, match=message):
        create_dataset(**{"collection": "nih", "root": made_nih(), **kwargs})


def test_records_say_which_split_they_are(made_nih, made_chexpert, made_table):
    for collection, root, default in (
        ("nih", made_nih(lists=True), "test"),
        ("chexpert", made_chexpert(), "valid"),
        ("table", made_table(), "test"),
        ("phantom", None, "test"),
    ):
        for split in ("train", "val", "all", None):
            assert create_dataset(collection, root, split).records.split == (split or default)
    (made_nih() / "test_list.txt").unlink()
    assert create_dataset("nih", made_nih()).records.split == "all"
