"""Label spaces, alignment by name, merges and policies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from mxa.labels import (
    CHEXPERT,
    LABEL_SPACES,
    MERGES,
    NIH,
    PADCHEST,
    VINDR,
    XRV,
    align,
    apply_policies,
    canonical,
    check_known,
    merge,
    resolve_labels,
)
from mxa.utils.errors import InputError

NAN = float("nan")


@pytest.mark.parametrize(
    ("space", "size", "first", "last"),
    [
        (CHEXPERT, 14, "No Finding", "Support Devices"),
        (NIH, 15, "Atelectasis", "No Finding"),
        (XRV, 18, "Atelectasis", "Enlarged Cardiomediastinum"),
        (PADCHEST, 17, "No Finding", "Support Devices"),
        (VINDR, 28, "Aortic enlargement", "No finding"),
    ],
    ids=["chexpert", "nih", "xrv", "padchest", "vindr"],
)
def test_label_spaces(space, size, first, last):
    assert len(space) == size
    assert (space[0], space[-1]) == (first, last)
    assert len({canonical(name) for name in space}) == size


def test_spaces_by_name():
    named = {"chexpert": CHEXPERT, "mimic": CHEXPERT, "nih": NIH, "padchest": PADCHEST, "vindr": VINDR, "xrv": XRV}
    assert named == LABEL_SPACES


def test_xrv_is_torchxrayvisions():
    with warnings.catch_warnings():  # importing it silences every warning of the process
        import torchxrayvision.datasets
    assert tuple(torchxrayvision.datasets.default_pathologies) == XRV


def test_the_14_findings_of_nih_are_the_first_14_of_xrv():
    assert set(NIH[:-1]) == set(XRV[:14])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Edema", "edema"),
        ("  Lung   Lesion ", "lung lesion"),
        ("Pleural_Thickening", "pleural thickening"),
        ("Effusion", "pleural effusion"),
        ("PLEURAL_EFFUSION", "pleural effusion"),
        ("Normal", "no finding"),
        ("No_Finding", "no finding"),
        ("", ""),
    ],
)
def test_canonical(name, key):
    assert canonical(name) == key
    assert canonical(key) == key


def test_distinct_findings_stay_distinct():
    assert len({canonical(name) for name in (*CHEXPERT, *NIH, *XRV)}) == 21


def test_align_finds_names_not_places():
    index = align(XRV, CHEXPERT)
    found = {CHEXPERT[s]: XRV[t] for s, t in enumerate(index) if t is not None}
    assert found.pop("Pleural Effusion") == "Effusion"
    assert len(found) == 10
    assert all(s == t for s, t in found.items())
    assert [CHEXPERT[s] for s, t in enumerate(index) if t is None] == ["No Finding", "Pleural Other", "Support Devices"]


@pytest.mark.parametrize("space", LABEL_SPACES.values(), ids=LABEL_SPACES)
def test_align_with_itself_is_the_identity(space):
    assert align(space, space) == tuple(range(len(space)))
    assert align(space, space[::-1]) == tuple(reversed(range(len(space))))


def test_align_skips_columns_without_a_meaning():
    assert align(["", "Edema", ""], ["Edema", "", "Mass"]) == (1, None, None)
    assert align([], ["Edema"]) == (None,)
    assert align(["Edema"], []) == ()


@pytest.mark.parametrize("source", [("Edema", "edema"), ("Effusion", "Mass", "Pleural Effusion")])
def test_align_refuses_two_columns_of_one_meaning(source):
    with pytest.raises(ValueError, match="mean the same") as error:
        align(source, ("Mass",))
    assert repr(source[0]) in str(error.value)
    assert repr(source[-1]) in str(error.value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("chexpert", CHEXPERT),
        ("NIH", NIH),
        ("xrv", XRV),
        ("Edema, Mass", ("Edema", "Mass")),
        ("A finding of ours,", ("A finding of ours",)),
        ("Edema", ("Edema",)),
        ("Scoliosis", ("Scoliosis",)),
        ("pleural_effusion", ("pleural_effusion",)),
        (["Mass", "Edema"], ("Mass", "Edema")),
        (("Edema",), ("Edema",)),
    ],
)
def test_resolve_labels(labels, names):
    assert resolve_labels(labels) == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", "empty"),
        (",", "empty"),
        ([], "empty"),
        ("Edema,edema", "mean the same"),
        (("Effusion", "Pleural Effusion"), "mean the same"),
    ],
)
def test_resolve_labels_refuses(labels, message):
    with pytest.raises(ValueError, match=message):
        resolve_labels(labels)


def test_check_known():
    check_known(("edema", "Effusion", "Normal", "Hernia"))
    check_known(("Edema", "scoliosis"), known=("Scoliosis",))
    with pytest.raises(ValueError, match=r"unknown label chexprt, Scoliosis: .*chexpert"):
        check_known(("Edema", "chexprt", "Scoliosis"))
    with pytest.raises(ValueError, match="from Kyphosis"):
        check_known(("Scoliosis",), known=("Kyphosis",))


SHARED = {
    (
        "chexpert",
        "nih",
    ): "Atelectasis Cardiomegaly Consolidation Edema No_Finding Pleural_Effusion Pneumonia Pneumothorax",
    ("chexpert", "padchest"): (
        "Atelectasis Cardiomegaly Consolidation Edema Fracture No_Finding Pleural_Effusion Pneumonia Pneumothorax "
        "Support_Devices"
    ),
    ("chexpert", "vindr"): (
        "Atelectasis Cardiomegaly Consolidation Edema Lung_Opacity No_Finding Pleural_Effusion Pneumonia Pneumothorax"
    ),
    ("nih", "padchest"): (
        "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Hernia Infiltration Mass No_Finding "
        "Nodule Pleural_Thickening Pneumonia Pneumothorax"
    ),
    ("nih", "vindr"): (
        "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Infiltration No_Finding "
        "Pleural_Thickening Pneumonia Pneumothorax"
    ),
    ("xrv", "vindr"): (
        "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Infiltration Lung_Opacity "
        "Pleural_Thickening Pneumonia Pneumothorax"
    ),
    ("xrv", "padchest"): (
        "Atelectasis Cardiomegaly Consolidation Edema Effusion Emphysema Fibrosis Fracture Hernia Infiltration Mass "
        "Nodule Pleural_Thickening Pneumonia Pneumothorax"
    ),
}


@pytest.mark.parametrize(("spaces", "names"), SHARED.items(), ids=["-".join(pair) for pair in SHARED])
def test_maps_between_collections(spaces, names):
    one, other = (LABEL_SPACES[space] for space in spaces)
    shared = {canonical(name) for name, i in zip(one, align(other, one), strict=True) if i is not None}
    assert shared == {canonical(name) for name in names.split()}


def test_merges_are_made_of_known_findings_and_never_of_synonyms():
    known = {canonical(name) for space in LABEL_SPACES.values() for name in space}
    for name, alternatives in MERGES.items():
        for parts in alternatives:
            assert {canonical(part) for part in parts} <= known
            assert canonical(name) not in {canonical(part) for part in parts}


@pytest.mark.parametrize(
    ("nodule", "mass", "expected"),
    [
        *((1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 0, 0), (1, -1, 1), (0, -1, -1), (-1, -1, -1)),
        *((NAN, 1, 1), (NAN, -1, -1), (NAN, 0, NAN), (NAN, NAN, NAN)),
    ],
)
def test_a_merge_is_positive_by_any_and_negative_by_all(nodule, mass, expected):
    cells, made, halves = merge(np.float32([[nodule, mass]]), ("Nodule", "Mass"), ("Lung Lesion",))
    np.testing.assert_array_equal(cells, [[expected]])
    assert made == {"Lung Lesion": ("Nodule", "Mass")} and halves == []


def test_half_a_merge_says_yes_but_never_no():
    cells, made, halves = merge(np.float32([[1], [0], [-1]]), ("Mass",), ("Lung Lesion",))
    np.testing.assert_array_equal(cells, [[1], [NAN], [-1]])
    assert made == {"Lung Lesion": ("Mass",)} and halves == ["Lung Lesion"]


def test_what_is_there_is_not_merged():
    cells, made, _ = merge(np.zeros((2, 3), np.float32), ("Nodule", "Mass", "Lung_Lesion"), ("Lung Lesion", "Edema"))
    assert cells.shape == (2, 0) and made == {}
    cells, made, _ = merge(np.float32([[1]]), ("Nodule/Mass",), ("Lung Lesion",))
    assert made == {"Lung Lesion": ("Nodule/Mass",)} and cells == [[1]]


def test_policies_for_uncertain_and_blank_cells():
    cells = np.array([[1, 0, -1], [-1, NAN, 0], [NAN, -1, 1]], dtype=np.float32)
    labels = ("Edema", "Mass", "Effusion")

    def targets(**kwargs) -> list:
        result = apply_policies(cells, labels, **kwargs)
        assert result.dtype == np.float32
        return [[None if np.isnan(x) else float(x) for x in row] for row in result]

    assert targets() == [[1, 0, 1], [1, 0, 0], [0, 1, 1]]
    assert targets(uncertain="U-Zeros") == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert targets(uncertain="U-Ignore") == [[1, 0, None], [None, 0, 0], [0, None, 1]]
    assert targets(uncertain="U-Ignore", blank="ignore") == [[1, 0, None], [None, None, 0], [None, None, 1]]
    override = {"default": "U-Zeros", "Pleural Effusion": "U-Ones"}  # by name, whatever its spelling
    assert targets(uncertain=override) == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert targets(uncertain="U-Ones: Pleural Effusion, edema; U-Zeros") == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]
    assert targets(blank="ignore: Mass; negative") == [[1, 0, 1], [1, None, 0], [0, 1, 1]]
    assert targets(uncertain={"mass": "U-Ignore"}) == [[1, 0, 1], [1, 0, 0], [0, None, 1]]


def test_lsr_smooths_uncertain_cells_only_and_is_seeded():
    cells = np.tile(np.array([1, 0, -1, NAN], dtype=np.float32), (500, 1))
    labels = ("a", "b", "c", "d")
    targets = apply_policies(cells, labels, "LSR")
    np.testing.assert_array_equal(targets[:, [0, 1, 3]], np.tile(np.float32([1, 0, 0]), (500, 1)))
    smooth = targets[:, 2]
    assert smooth.min() >= 0.55 and smooth.max() <= 0.85
    assert smooth.min() < 0.57 and smooth.max() > 0.83 and len(np.unique(smooth)) > 400
    np.testing.assert_array_equal(targets, apply_policies(cells, labels, "LSR"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"uncertain": "U-Twos"}, "unknown policy U-Twos.*U-Ones, U-Zeros, U-Ignore, LSR"),
        ({"uncertain": {"Edema": "U-Twos"}}, "unknown policy U-Twos"),
        ({"uncertain": {"Odema": "U-Ones"}}, "unknown label 'Odema'; known: Edema"),
        ({"uncertain": "U-Ones: Odema; U-Zeros"}, "unknown label 'Odema'"),
        ({"uncertain": "U-Ones: Edema"}, "says nothing for the rest: end it with one of U-Ones"),
        ({"uncertain": "U-Ones; U-Zeros"}, "two policies for the rest, U-Ones and U-Zeros"),
        ({"uncertain": ""}, "says nothing for the rest"),
        ({"blank": "zero"}, "unknown policy zero for blank labels: give one of negative, ignore"),
    ],
)
def test_unknown_policies_are_named(kwargs, message):
    with pytest.raises(InputError, match=message):
        apply_policies(np.zeros((1, 1)), ("Edema",), **kwargs)


def test_hyphens_space_and_accents_are_one_spelling():
    for one, other in (
        ("Pleural-Effusion", "pleural effusion"),
        ("Nodule / Mass", "Nodule/Mass"),
        ("Ne\u0301o", "N\u00e9o"),
    ):
        assert canonical(one) == canonical(other)


def test_names_with_commas_are_quoted():
    assert resolve_labels('"Effusion, left",Edema') == ("Effusion, left", "Edema")
    assert resolve_labels(' Edema , "A ""B"", C" ,') == ("Edema", 'A "B", C')
    with pytest.raises(InputError, match="put a whole name in double quotes"):
        resolve_labels('Edema,"Effusion, left')
    cells = np.float32([[-1, -1, -1]])
    labels = ("Effusion, left", "Edema", "Mass; small")
    policy = 'U-Zeros: "Effusion, left", "Mass; small"; U-Ones'
    assert apply_policies(cells, labels, policy).tolist() == [[0, 1, 0]]
