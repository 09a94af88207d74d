import json
import subprocess
import sys

import pytest

from mxa.labels import CHEXPERT, LABEL_SPACES, NIH, XRV, align, canonical, check_known, resolve_labels


@pytest.mark.parametrize(
    ("space", "size", "first", "last"),
    [
        (CHEXPERT, 14, "No Finding", "Support Devices"),
        (NIH, 15, "Atelectasis", "No Finding"),
        (XRV, 18, "Atelectasis", "Enlarged Cardiomediastinum"),
    ],
    ids=["chexpert", "nih", "xrv"],
)
def test_label_spaces(space, size, first, last):
    assert len(space) == size
    assert (space[0], space[-1]) == (first, last)
    assert len({canonical(name) for name in space}) == size


def test_spaces_by_name():
    assert LABEL_SPACES == {"chexpert": CHEXPERT, "nih": NIH, "xrv": XRV}


def test_xrv_is_torchxrayvisions():
    code = "import json, torchxrayvision.datasets as d; print(json.dumps(d.default_pathologies))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert tuple(json.loads(done.stdout.splitlines()[-1])) == XRV


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
