"""Collections as they are downloaded: archives in several folders, other labelers, other suffixes, damaged lists."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mxa.data import create_dataset
from mxa.utils.errors import InputError

from ...conftest import CHEXPERT_HEADER
from ..helpers import boxes_of, counts, edit
from .test_chexpert import plus  # noqa: F401
from .test_collections import gzip, mimic, padchest, vindr  # noqa: F401

FOLDERS = [f"CheXpert-v1.0 batch {n}" for n in ("1 (validate & csv)", "2 (train 1)", "3 (train 2)", "4 (train 3)")]


@pytest.fixture
def archives(made_chexpert, tmp_path):
    """CheXpert v1.0 as its four archives unpack: the tables in the first folder, the images in all."""
    made, root = made_chexpert(), tmp_path / "u20210408"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    shutil.move(made / "valid", root / FOLDERS[0] / "valid")
    for i, patient in enumerate(sorted((made / "train").iterdir())):
        shutil.move(patient, root / FOLDERS[1 + i % 3] / patient.name)
    for name in ("train.csv", "valid.csv"):
        edit(made / name, "CheXpert-v1.0-small/", "CheXpert-v1.0/")
        shutil.move(made / name, root / FOLDERS[0] / name)
    return root


@pytest.mark.parametrize("folder", ["", FOLDERS[0]])
@pytest.mark.parametrize("split", ["train", "val", "valid", "all", None])
def test_chexperts_four_archives(archives, folder, split):
    dataset = create_dataset("chexpert", archives / folder, split, views="all")
    for i in range(len(dataset)):
        dataset[i]
    dataset.check()
    assert len(dataset) == {"train": 21, "val": 3, "valid": 6, "all": 24, None: 6}[split]


@pytest.mark.parametrize(
    "name", ["batch{}", "chexpert_batch{}", "CheXpert-v1.0 Batch {} (x)", "CheXpert-v1.0_batch_{}"]
)
def test_chexperts_four_archives_under_other_names(archives, name):
    for i, folder in enumerate(FOLDERS, 1):
        shutil.move(archives / folder, archives / name.format(i))
    for root in (archives, archives / name.format(1)):
        for split in ("all", "valid"):
            dataset = create_dataset("chexpert", root, split, views="all")
            assert all(dataset[i] for i in range(len(dataset)))
    for table in ("train.csv", "valid.csv"):
        shutil.move(archives / name.format(1) / table, archives / table)
    dataset = create_dataset("chexpert", archives, "all", views="all")
    assert all(dataset[i] for i in range(len(dataset)))


def test_chexperts_archives_from_within(archives, monkeypatch):
    monkeypatch.chdir(archives / FOLDERS[0])
    create_dataset("chexpert", ".", "valid")[0]
    assert create_dataset("chexpert", ".", "train")[0]
    (archives / FOLDERS[1] / "patient00001/study1/view1_frontal.jpg").unlink()
    dataset = create_dataset("chexpert", archives, "all")
    with pytest.raises(InputError, match=r"no image .*2 \(train 1\)/patient00001/study1/view1_frontal\.jpg"):
        dataset[0]
    assert dataset[1] and dataset[2]


@pytest.mark.parametrize("beside", [True, False])
def test_chexperts_other_labelers(archives, beside):
    with (archives / FOLDERS[0] / "train.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for name, cell in (("cheXbert", "1.0"), ("visualCheXbert", "0.0")):
        with (archives / ("" if beside else FOLDERS[0]) / f"train_{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([CHEXPERT_HEADER, *([*row[:5], *[cell] * 14] for row in rows[1:])])
    for root in (archives, archives / FOLDERS[0]):
        one, other = (create_dataset(f"chexpert-{name}", root, "train") for name in ("chexbert", "visualchexbert"))
        assert (one.records.targets == 1).all() and (other.records.targets == 0).all()
        assert len(create_dataset("chexpert-chexbert", root, "valid")) == 4
        one[0]


def test_chexpert_below_the_root_and_as_png(made_chexpert):
    root = made_chexpert()
    expected = create_dataset("chexpert", root, "train").filenames()
    assert create_dataset("chexpert", root.parent, "train").filenames() == expected
    for path in root.rglob("*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    assert create_dataset("chexpert", root.parent, "valid")[0][0].size == (44, 40)


def test_plus_labels_that_are_damaged_or_missing(plus):  # noqa: F811
    path = plus / "chexbert_labels" / "impression_fixed.json"
    lines = path.read_text().splitlines()
    cut = json.loads(lines[0]) | {"Edema": ["x"]}
    for damage in ("[1]", "{", "[" * 100_000, "\x00", '{"path_to_image": 3}', lines[0][:-9]):
        path.write_text("\n".join([lines[1], damage, *lines[2:]]))
        with pytest.raises(
            InputError, match=r"impression_fixed\.json: CheXpert Plus' labels .* do not read: line 2 is"
        ):
            create_dataset("chexpert", plus, "train")
    path.write_text("\n".join([*lines[1:], json.dumps(cut)]))
    with pytest.raises(InputError, match=r"impression_fixed\.json.*'Edema', row 8: a label cell is"):
        create_dataset("chexpert", plus, "train")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"impression_fixed\.json: CheXpert Plus' labels .* do not read"):
        create_dataset("chexpert", plus, "train")
    path.write_text("\n".join(lines[2:]))  # the file's lines are in reverse order
    with pytest.warns(UserWarning, match="1 images have no labels and are left out"):
        assert len(create_dataset("chexpert", plus, "all", views="all")) == 6


@pytest.mark.parametrize("suffix", [".png", ".tif", "mixed"])
def test_mimic_with_another_suffix(mimic, suffix):  # noqa: F811
    expected = create_dataset("mimic", mimic, "all", views="all").filenames(basename=True)
    for i, path in enumerate(sorted(mimic.rglob("*.jpg"))):
        if suffix != "mixed" or i % 2:
            Image.open(path).save(path.with_suffix(".png" if suffix == "mixed" else suffix))
            path.unlink()
    dataset = create_dataset("mimic", mimic, "all", views="all")
    assert [name.partition(".")[0] for name in dataset.filenames(basename=True)] == [
        n.partition(".")[0] for n in expected
    ]
    for i in range(len(dataset)):
        dataset[i]
    assert len(create_dataset("mimic", mimic.parent, "train")) == 2  # the folder around it


def test_mimic_as_dicom(mimic):  # noqa: F811
    from ..dicom_files import DEEP, dataset, save

    for path in mimic.rglob("*.jpg"):
        save(path.with_suffix(".dcm"), dataset(DEEP))
        path.unlink()
    assert create_dataset("mimic", mimic, "train")[1][0].mode == "F"


@pytest.mark.parametrize("table", ["sample_labels.csv", "sample/sample_labels.csv"])
def test_kaggles_sample_of_nih(made_nih, table):
    root = made_nih()
    expected = create_dataset("nih", root)
    (root / "sample").mkdir()
    shutil.move(root / "images", root / "sample" / "images")
    shutil.move(root / "Data_Entry_2017.csv", root / table)
    dataset = create_dataset("nih", root)
    assert counts(dataset) == counts(expected) and len(dataset) == 24
    dataset[0]


def test_ages_as_dicom_writes_them(made_nih):
    table = made_nih() / "Data_Entry_2017.csv"
    lines = table.read_text().splitlines()
    for i, age in enumerate(("018M", "073D", " 7", "015Y", "?"), 1):
        lines[i] = lines[i].replace(",60,", f",{age},")
    table.write_text("\n".join(lines) + "\n")
    ages = create_dataset("nih", table.parent).records.ages
    np.testing.assert_allclose(ages[:6], [1.5, 0.2, 7, 15, np.nan, 60], atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"00000006_000.png\n00000006_001.p", "name 2 is not the name of an image"),
        (b"00000006_000.png 00000006_001.png\n", "name 1 is not the name of an image"),
        (b"00000006_000.png,1\n", "name 1 is not the name of an image"),
        (b"00000006_000.png\n\xff\xfe.png\n", "line 2 is not UTF-8"),
        (b"00000006_000.png\n\0\n", "line 2 holds a NUL byte"),
    ],
)
def test_damaged_lists(made_nih, content, message):
    root = made_nih(lists=True)
    (root / "test_list.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"test_list\.txt.*{message}"):
        create_dataset("nih", root)


def test_a_list_in_utf_16(made_nih):
    root = made_nih(lists=True)
    expected = create_dataset("nih", root, "test").filenames()
    (root / "test_list.txt").write_bytes((root / "test_list.txt").read_text().encode("utf-16"))
    assert create_dataset("nih", root, "test").filenames() == expected


BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@pytest.mark.parametrize("bad", [",0,9,9", "a,0,9,9", "1e9,0,9,9", "-5000,0,9,9", "0,0,nan,9", "0,0,0,9", "0,0,9,-9",
                                 "1000,0,99,9", "inf,0,9,9", "0,0,1e-400,9"])  # fmt: skip
def test_boxes_that_are_none(tmp_path, bad):
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text(f"{BOX_HEADER}\n1.png,Mass,0,0,9,9\n2.png,Mass,{bad}\n")
    with pytest.raises(
        InputError,
        match=r"BBox_List_2017\.csv: box 2 of 2 \(2\.png\): a box (needs four numbers|lies outside its image)",
    ):
        boxes_of(tmp_path)


def test_a_box_a_pixel_over_the_edge_is_cut(tmp_path):
    (tmp_path / "BBox_List_2017.csv").write_text(f"{BOX_HEADER}\n1.png,Mass,-0.5,512,512.5,513\n")
    np.testing.assert_array_equal(boxes_of(tmp_path)["1.png"]["Mass"], [[0, 0.5, 0.5, 1]])


def test_vindr_in_mixed_suffixes(vindr):  # noqa: F811
    Image.open(vindr / "train/b2.png").save(vindr / "train/b2.jpg")
    (vindr / "train/b2.png").unlink()
    dataset = create_dataset("vindr", vindr, "all")
    assert dataset.filenames(basename=True) == ["a1.png", "b2.jpg", "c3.png", "t1.jpg"]


def test_a_missing_image_is_not_taken_from_a_sibling(made_chexpert, tmp_path):
    made = made_chexpert()
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        shutil.copytree(made, tmp_path / "both" / name)
    root = tmp_path / "both" / "CheXpert-v1.0"
    (root / "train/patient00001/study1/view1_frontal.jpg").unlink()
    assert create_dataset("chexpert", root, "all").filename(0) == str(
        root / "train/patient00001/study1/view1_frontal.jpg"
    )


def test_paths_that_are_too_long_for_a_file(tmp_path):
    """The system refuses to look for them."""
    long = "A" * 5000
    root = padchest(tmp_path, ["['nodule']"], nested=False)
    edit(next(root.glob("*.csv")), "0.png,0,", f"0.png,{long},")
    assert create_dataset("padchest", root, "all", views="all").records.paths.tolist() == ["0.png"]
    table = tmp_path / "table.csv"
    table.write_text(f"path,patient,Edema\nfilms\\{long}.png,1,0\n")
    assert create_dataset("table", table, "all").records.paths.tolist() == [f"films/{long}.png"]
