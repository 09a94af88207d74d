"""TorchXRayVision's dataset objects, read as ``CXRDataset``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from mxa.data import create_dataset, create_transform, from_xrv, make_loader
from mxa.labels import CHEXPERT
from mxa.utils.errors import InputError

from ..helpers import NAN, column

CFG = {"input_size": (3, 32, 32), "mean": (0.5,), "std": (0.5,)}


@pytest.fixture(scope="module")
def xrv():
    import warnings

    filters = warnings.filters[:]
    import torchxrayvision

    warnings.filters[:] = filters
    return torchxrayvision


def test_an_nih_dataset_agrees_with_our_source(xrv, made_nih):
    root = made_nih()
    theirs = xrv.datasets.NIH_Dataset(
        str(root / "images"),
        csvpath=str(root / "Data_Entry_2017.csv"),
        bbox_list_path="USE_INCLUDED_FILE",
        views=["PA", "AP"],
        unique_patients=False,
    )
    dataset = from_xrv(theirs, labels="nih")
    ours = create_dataset("nih", root)
    by_label = [name for name in ours.labels if name != "No Finding"]
    for name in by_label:
        np.testing.assert_array_equal(column(dataset, name), column(ours, name))
    assert np.isnan(column(dataset, "No Finding")).all()  # their datasets do not have it
    for i in (0, 5, 23):
        image, mine = dataset[i][0], ours[i][0]
        assert image.mode == "F"
        np.testing.assert_allclose(np.asarray(image), np.asarray(mine), atol=1e-3)
    assert dataset.records.views.tolist() == ours.records.views.tolist()
    assert len(set(dataset.records.patients)) == 8
    dataset.transform = ours.transform = create_transform(CFG)
    assert (dataset[3][0] - ours[3][0]).abs().mean() < 0.005  # ours is resized in 8 bits


def test_chexpert_merged_filtered_and_views(xrv, made_chexpert):
    root = made_chexpert()
    theirs = xrv.datasets.CheX_Dataset(
        str(root), csvpath=str(root / "train.csv"), views=["PA", "AP", "L"], unique_patients=False
    )
    dataset = from_xrv(theirs, labels="chexpert", views="all")
    assert len(dataset) == 24 and dataset.labels == CHEXPERT
    assert dataset.records.views[:3].tolist() == ["AP", "PA", "LATERAL"]
    assert len(from_xrv(theirs)) == 16
    raw = np.asarray(theirs.labels[:, list(theirs.pathologies).index("Effusion")], np.float32)
    np.testing.assert_array_equal(column(dataset, "Pleural Effusion"), raw)
    assert np.isnan(raw).any()
    merged = from_xrv(xrv.datasets.MergeDataset([theirs, theirs]), views="all")
    assert len(merged) == 48
    np.testing.assert_array_equal(merged.records.targets[24:], dataset_of(theirs).records.targets)
    np.testing.assert_array_equal(np.asarray(merged[30][0]), np.asarray(merged[6][0]))
    some = from_xrv(xrv.datasets.SubsetDataset(theirs, [1, 4, 7]), views="all")
    np.testing.assert_array_equal(some.records.targets, dataset_of(theirs).records.targets[[1, 4, 7]])
    batches = list(make_loader(dataset, create_transform(CFG), 5, workers=2))
    assert torch.cat([x for x, _ in batches]).shape == (24, 3, 32, 32)


def dataset_of(theirs):
    return from_xrv(theirs, views="all")


class Made:
    """The least that their datasets have."""

    def __init__(self, pathologies=("Edema", "", "Mass"), n=3):
        self.pathologies = list(pathologies)
        self.labels = np.array([[1, 0, NAN], [0, 1, 1], [1, 1, 0]])[:n]
        self.csv = pd.DataFrame({"x": range(3)}, index=[7, 8, 9])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if i == 2:
            raise OSError("truncated")
        return {"img": np.full((1, 4, 6), (-1024.0, 1024.0)[i], np.float32), "lab": self.labels[i]}


def test_range_names_and_bad_images():
    dataset = from_xrv(Made())
    assert dataset.labels == ("Edema", "Mass")  # "" marks a column without a meaning
    assert dataset.filenames() == ["Made-0", "Made-1", "Made-2"]
    assert np.asarray(dataset[0][0]).max() == 0 and np.asarray(dataset[1][0]).min() == 255
    assert dataset[0][0].size == (6, 4)
    with pytest.raises(InputError, match="Made-2 does not read: truncated"):
        dataset[2]
    assert dataset.bad.tolist() == [False, False, True]
    with pytest.raises(InputError, match="none of the labels Hernia; the collection has Edema, Mass"):
        from_xrv(Made(), labels="Hernia")
    with pytest.raises(InputError, match="Made: its csv, labels and pathologies differ in number"):
        from_xrv(Made(n=2))
    with pytest.raises(InputError, match="list is not a TorchXRayVision dataset"):
        from_xrv([1, 2])


def test_uncertain_is_masked_and_other_numbers_are_refused():
    made = Made()
    made.labels[0, 0], made.labels[1, 0] = -1, 0.5
    assert np.isnan(from_xrv(made).records.targets[0, 0]) and from_xrv(made).records.targets[1, 0] == 0.5
    made.labels[0, 0] = 2
    with pytest.raises(InputError, match="Made: a label is neither in 0 to 1, -1"):
        from_xrv(made)
