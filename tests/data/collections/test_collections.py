"""MIMIC-CXR-JPG, PadChest, VinDr-CXR and image folders in small made layouts with the published column names."""

from __future__ import annotations

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mxa.data import create_dataset
from mxa.labels import CHEXPERT, PADCHEST, VINDR
from mxa.utils.errors import InputError

from ..helpers import NAN, column, counts, edit


def write(path: Path, header: str, rows: list[str], quoted: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *rows]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def draw(path: Path, dtype=np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    top = np.iinfo(dtype).max
    Image.fromarray(np.random.default_rng(0).integers(0, top, (20, 24)).astype(dtype)).save(path)


# MIMIC-CXR-JPG

MIMIC_LABELS = sorted(CHEXPERT)  # the published tables are in alphabetical order
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


@pytest.fixture
def mimic(tmp_path) -> Path:
    """Four studies of three patients, five images; one study without labels."""
    root = tmp_path / "mimic"
    images = [
        ("aa", "10000032", "50414267", "PA", "train"),
        ("bb", "10000032", "50414267", "LATERAL", "train"),
        ("cc", "10000032", "53189527", "AP", "train"),
        ("dd", "11000011", "51029426", "", "validate"),
        ("ee", "19999987", "55368167", "LL", "test"),
        ("ff", "19999987", "59999999", "AP", "test"),
    ]
    rows = [f"{d},{p},{s},CHEST,{v},2000,2500,21800506,213014.5,,," for d, p, s, v, _ in images]
    write(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, rows)
    rows = [f"{d},{s},{p},{split}" for d, p, s, _, split in images]
    write(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", rows)
    header = ",".join(("subject_id", "study_id", *MIMIC_LABELS))
    for labeler, edema in (("chexpert", "-1.0"), ("negbio", "0.0")):
        cells = {"50414267": {"Edema": edema, "No Finding": "1.0"}, "53189527": {"Fracture": "1.0", "Edema": "0.0"}}
        rows = []
        for patient, study in dict.fromkeys((p, s) for _, p, s, _, _ in images if s != "59999999"):
            found = cells.get(study, {})
            rows.append(",".join((patient, study, *(found.get(name, "") for name in MIMIC_LABELS))))
        write(root / f"mimic-cxr-2.0.0-{labeler}.csv.gz", header, rows)
    for dicom, patient, study, _, _ in images:
        draw(root / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{dicom}.jpg")
    return root


def test_mimic_rows(mimic):
    dataset = create_dataset("mimic", mimic, "all", views="all", blank="ignore")
    assert dataset.labels == CHEXPERT
    assert dataset.filenames(basename=True) == ["aa.jpg", "bb.jpg", "cc.jpg", "dd.jpg", "ee.jpg"]  # ff has no labels
    assert dataset.filename(2) == str(mimic / "files/p10/p10000032/s53189527/cc.jpg")
    assert dataset.records.views.tolist() == ["PA", "LATERAL", "AP", "", "LATERAL"]
    assert dataset.records.studies[:3].tolist() == ["50414267", "50414267", "53189527"]
    np.testing.assert_array_equal(
        column(dataset, "Edema"), [NAN, NAN, 0, NAN, NAN]
    )  # uncertain: masked outside training
    np.testing.assert_array_equal(column(dataset, "No Finding"), [1, 1, NAN, NAN, NAN])
    assert counts(dataset) == {"No Finding": 2, "Fracture": 1}
    assert all(dataset[i][0].size == (24, 20) for i in range(5))
    dataset.check()


def test_mimic_keeps_the_official_split(mimic):
    sizes = {"train": 2, "val": 1, None: 1, "test": 1}
    views = {"train": "frontal", "val": "frontal", "test": "all", None: "all"}
    splits = {s: create_dataset("mimic", mimic, s, views=views[s]).records for s in sizes}
    assert {s: len(split) for s, split in splits.items()} == sizes
    assert set(splits["val"].patients) == {"11000011"} and splits[None].split == "test"


def test_mimics_two_labelers_differ(mimic):
    chexpert, negbio = (create_dataset(name, mimic, "train") for name in ("mimic", "mimic-negbio"))
    assert column(chexpert, "Edema").tolist() == [1, 0] and column(negbio, "Edema").tolist() == [0, 0]


def test_mimic_errors(mimic):
    (mimic / "mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    with pytest.raises(InputError, match=r"no table .*mimic-cxr-\*-negbio\.csv"):
        create_dataset("mimic-negbio", mimic, "train")
    for name in ("split", "chexpert"):
        path = mimic / f"mimic-cxr-2.0.0-{name}.csv.gz"
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    edit(mimic / "mimic-cxr-2.0.0-split.csv", "validate", "holdout")
    with pytest.raises(InputError, match=r"split\.csv: unknown split holdout"):
        create_dataset("mimic", mimic, "train")
    edit(mimic / "mimic-cxr-2.0.0-split.csv", "holdout", "validate")
    edit(mimic / "mimic-cxr-2.0.0-chexpert.csv", "11000011,51029426", "10000032,50414267")
    with pytest.raises(InputError, match=r"chexpert\.csv has more than one row of a study"):
        create_dataset("mimic", mimic, "train")


# PadChest

PADCHEST_HEADER = (
    "",
    *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Report", "MethodLabel", "Labels"),
)


def padchest(tmp_path: Path, labels: list[str], nested: bool = True) -> Path:
    root = tmp_path / "padchest"
    root.mkdir()
    with (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PADCHEST_HEADER)
        for i, text in enumerate(labels):
            view = ("PA", "L", "AP_horizontal", "COSTAL", "UNK", "AP")[i % 6]
            row = (i, f"{i}.png", i % 2, 20150203, f"S{i // 2}", f"P{i // 2}", "1955.0", "FM"[i % 2])
            writer.writerow(
                (*row, "POSTEROANTERIOR", view, "Manual review of DICOM fields", "No", "r", "Physician", text)
            )
            draw(root / str(i % 2) / f"{i}.png" if nested else root / f"{i}.png", np.uint16)
    return root


def test_padchest_names_are_compared_whole(tmp_path):
    labels = [
        "['normal']",
        "['pseudonodule', ' subcutaneous emphysema', 'mediastinal mass']",
        "['nodule', ' emphysema ', 'pulmonary mass']",
        "['laminar atelectasis', '', ' air bronchogram']",
        "['hydropneumothorax', 'NSG tube', 'hiatal hernia']",
        "['apical pleural thickening', 'callus rib fracture', 'atypical pneumonia']",
    ]
    dataset = create_dataset("padchest", padchest(tmp_path, labels), "all", views="all")
    assert dataset.labels == PADCHEST
    found = [{n for n, on in zip(PADCHEST, row, strict=True) if on == 1} for row in dataset.records.targets]
    assert found == [
        {"No Finding"},
        set(),
        {"Nodule", "Emphysema", "Mass"},
        {"Atelectasis", "Consolidation", "Infiltration"},
        {"Pneumothorax", "Pleural Effusion", "Support Devices", "Hernia"},
        {"Pleural Thickening", "Fracture", "Pneumonia"},
    ]
    assert not np.isnan(dataset.records.targets).any()
    assert dataset.records.views.tolist() == ["PA", "LATERAL", "AP", "OTHER", "", "AP"]
    assert dataset.records.sexes.tolist() == ["F", "M"] * 3 and set(dataset.records.ages) == {60.0}
    assert len(create_dataset("padchest", tmp_path / "padchest", "all")) == 4  # AP, PA and unknown


def test_padchest_reports_that_say_nothing_are_masked(tmp_path):
    labels = [
        "['unchanged']",
        "[' exclude', '']",
        "nan",
        "['unchanged', 'nodule']",
        "['suboptimal study', 'unchanged']",
    ]
    root = padchest(tmp_path, labels)
    masked = np.isnan(create_dataset("padchest", root, "all", views="all").records.targets)
    assert masked.all(1).tolist() == [True, True, True, False, True] and not masked[3].any()
    negative = create_dataset("padchest", root, "all", views="all", blank="negative").records.targets
    assert negative.sum() == 1


def test_padchests_own_names_can_be_asked_for(tmp_path):
    root = padchest(tmp_path, ["['scoliosis', 'nodule']", "['aortic elongation']"])
    dataset = create_dataset("padchest", root, "all", labels="Scoliosis, Nodule, Aortic Elongation", views="all")
    assert dataset.labels == ("Scoliosis", "Nodule", "Aortic Elongation")
    assert dataset.records.targets.tolist() == [[1, 1, 0], [0, 0, 1]]
    with pytest.raises(InputError, match="unknown label kyphosis"):
        create_dataset("padchest", root, "all", labels="kyphosis")


@pytest.mark.parametrize("nested", [True, False])
def test_padchest_images_are_16_bit(tmp_path, nested):
    root = padchest(tmp_path, ["['normal']"] * 2, nested)
    dataset = create_dataset("padchest", root, "all", views="all")
    image, _ = dataset[0]
    assert image.mode == "F" and 200 < np.asarray(image).max() <= 255
    dataset.check()
    if not nested:
        (root / "images").mkdir()
        for path in root.glob("*.png"):
            shutil.move(path, root / "images")
        dataset = create_dataset("padchest", root, "all", views="all")
        assert dataset[0][0].mode == "F"
        dataset.check()


def test_padchest_has_a_test_part_of_whole_patients(tmp_path):
    root = padchest(tmp_path, ["['normal']"] * 80, nested=False)
    splits = {s: create_dataset("padchest", root, s, views="all").records for s in ("train", "val", "test", None)}
    assert [len(splits[s]) for s in ("train", "val", "test")] == [64, 8, 8]
    patients = [set(splits[s].patients) for s in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 40
    assert splits[None].split == "test"


# VinDr-CXR


def vindr_labels(*names: str) -> str:
    return ",".join("1" if name in names else "0" for name in VINDR)


@pytest.fixture
def vindr(tmp_path) -> Path:
    root = tmp_path / "vindr"
    reads = {
        "a1": [("No finding",)] * 3,
        "b2": [("Pleural effusion", "Cardiomegaly"), ("Pleural effusion",), ("No finding",)],
        "c3": [("Rib fracture",), ("Rib fracture",), ("Rib fracture", "Nodule/Mass")],
    }
    rows = [f"{name},R{i},{vindr_labels(*r)}" for name, readers in reads.items() for i, r in enumerate(readers)]
    write(root / "annotations/image_labels_train.csv", f"image_id,rad_id,{','.join(VINDR)}", rows)
    header = f"image_id,{','.join(VINDR)}".replace("Other disease", "Other diseases")
    write(root / "annotations/image_labels_test.csv", header, [f"t1,{vindr_labels('Tuberculosis', 'Other disease')}"])
    for name in reads:
        draw(root / "train" / f"{name}.png")
    draw(root / "test" / "t1.jpg")
    return root


def test_vindr_readers_vote(vindr):
    dataset = create_dataset("vindr", vindr, "train", uncertain="U-Ignore")
    everything = create_dataset("vindr", vindr, "all").records
    assert everything.labels == VINDR
    assert everything.patients.tolist() == ["a1", "b2", "c3", "t1"]
    by_name = dict(zip(everything.patients.tolist(), everything.targets, strict=True))
    found = {name: {label for label, on in zip(VINDR, row, strict=True) if on == 1} for name, row in by_name.items()}
    assert found == {
        "a1": {"No finding"},
        "b2": {"Pleural effusion"},
        "c3": {"Rib fracture"},
        "t1": {"Tuberculosis", "Other disease"},
    }
    disputed = {n: {v for v, on in zip(VINDR, row, strict=True) if np.isnan(on)} for n, row in by_name.items()}
    assert disputed == {"a1": set(), "b2": {"Cardiomegaly", "No finding"}, "c3": {"Nodule/Mass"}, "t1": set()}
    assert len(dataset) == 2  # of three, one validates
    assert create_dataset("vindr", vindr).filenames() == [str(vindr / "test/t1.jpg")]
    dataset.check()
    assert dataset[0][0].size == (24, 20)


def test_vindr_by_policy_is_any_reader_or_most(vindr):
    shutil.rmtree(vindr / "annotations")
    rows = ["a1,No finding,14,R1,,,,", "a1,Cardiomegaly,3,R2,1,2,3,4", "a1,Cardiomegaly,3,R3,1,2,3,4"]
    rows += ["a1,Cardiomegaly,3,R3,5,6,7,8"]  # two boxes of one reader are one vote
    rows += [f"{n},No finding,14,R{i},,,," for n in ("b2", "c3") for i in (1, 2, 3)]
    write(vindr / "train.csv", "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", rows)
    records = [create_dataset("vindr", vindr, "train", uncertain=u).records for u in ("U-Ones", "U-Zeros")]
    assert records[0].labels == ("Cardiomegaly", "No finding")
    rows = [dict(zip(r.patients.tolist(), r.targets.tolist(), strict=True)) for r in records]
    if "a1" in rows[0]:
        assert rows[0]["a1"] == [1, 1] and rows[1]["a1"] == [1, 0]
    everything = create_dataset("vindr", vindr, "all").records
    np.testing.assert_array_equal(everything.targets[0], [1, NAN])
    with pytest.raises(InputError, match="no test split: train with --test-fraction"):
        create_dataset("vindr", vindr, "test")


def test_vindr_in_chexperts_labels(vindr, caplog):
    plain = create_dataset("vindr", vindr, "all", labels="chexpert")
    assert np.isnan(column(plain, "Lung Lesion")).all() and np.isnan(column(plain, "Fracture")).all()
    with caplog.at_level("INFO", logger="mxa"):
        merged = create_dataset("vindr", vindr, "all", labels="chexpert", merge=True)
    assert "Fracture is merged from Rib fracture or Clavicle fracture" in caplog.text
    assert "Lung Lesion is merged from Nodule/Mass" in caplog.text
    np.testing.assert_array_equal(column(merged, "Fracture"), [0, 0, 1, 0])
    np.testing.assert_array_equal(column(merged, "Lung Lesion"), [0, 0, NAN, 0])
    assert np.isnan(column(merged, "Support Devices")).all()


def test_vindr_errors(vindr):
    edit(vindr / "annotations/image_labels_train.csv", "a1,R0,0", "a1,R0,7")
    with pytest.raises(InputError, match=r"column 'Aortic enlargement', row 1: a label cell is 1, 0, -1 or blank"):
        create_dataset("vindr", vindr, "train")
    shutil.rmtree(vindr / "annotations")
    with pytest.raises(InputError, match=r"no table .*train\.csv"):
        create_dataset("vindr", vindr, "train")
    write(vindr / "train.csv", "image_id,class_name,rad_id", ["a1,Scoliosis,R1"])
    with pytest.raises(InputError, match=r"unknown class Scoliosis"):
        create_dataset("vindr", vindr, "train")


# A folder of images


def test_a_folder_by_finding(tmp_path):
    for i, folder in enumerate(("NORMAL", "Edema", "Edema|Mass", "Edema/deeper")):
        draw(tmp_path / "set" / folder / f"{i}.png")
    with pytest.warns(UserWarning, match="images have no patient"):
        dataset = create_dataset("folder", tmp_path / "set", "all")
    assert dataset.labels == ("Edema", "Mass", "NORMAL")
    rows = dict(zip(dataset.filenames(basename=True), dataset.records.targets.tolist(), strict=True))
    assert rows == {"0.png": [0, 0, 1], "1.png": [1, 0, 0], "3.png": [1, 0, 0], "2.png": [1, 1, 0]}
    dataset.check()


@pytest.mark.filterwarnings("ignore:.*images have no patient")
@pytest.mark.parametrize(
    "parts", [("train", "Val", "test"), ("Training", "dev", "TESTING"), ("Train set", "validation_set", "hold_out")]
)
def test_a_folder_with_parts(tmp_path, parts):
    for split in parts:
        for i, folder in enumerate(("NORMAL", "PNEUMONIA")):
            draw(tmp_path / split / folder / f"{split}{i}.jpeg")
    (tmp_path / ".cache").mkdir()
    splits = {s: create_dataset("folder", tmp_path, s, labels="chexpert") for s in ("train", "val", "test", None)}
    assert {s: len(d) for s, d in splits.items()} == {"train": 2, "val": 2, "test": 2, None: 2}
    assert column(splits["train"], "Pneumonia").tolist() == [0, 1]
    assert column(splits["train"], "No Finding").tolist() == [1, 0]
    assert np.isnan(column(splits["train"], "Edema")).all()


@pytest.mark.parametrize("outer", [("internal", "external"), ("Fold 1",)])
@pytest.mark.parametrize("inner", [("NORMAL", "PNEUMONIA"), ("covid", "healthy")])
def test_folders_of_findings_in_unknown_splits(tmp_path, outer, inner):
    for split in outer:
        for name in inner:
            draw(tmp_path / split / name / "1.png")
    with pytest.raises(
        InputError, match=rf"lie in {inner[0]}, {inner[1]} within {', '.join(sorted(outer))}, which are not splits: ren"
    ):
        create_dataset("folder", tmp_path, "all")


@pytest.mark.filterwarnings("ignore:.*images have no patient")
def test_a_folder_beside_the_splits_is_warned_about(tmp_path):
    for split in ("train", "test", "external"):
        draw(tmp_path / split / "Edema" / "1.png")
    with pytest.warns(UserWarning, match="external holds findings too, but is no known split, and is left out"):
        assert len(create_dataset("folder", tmp_path, "test")) == 1


def test_folders_of_patients_in_findings(tmp_path):
    for name in ("NORMAL/p1", "NORMAL/p2", "Edema/p3", "Edema/p1"):
        draw(tmp_path / "patients" / name / "1.png")
    for name in ("COVID/images", "Normal/images"):
        draw(tmp_path / "kaggle" / name / "1.png")
    with pytest.warns(UserWarning, match="have no patient"):
        assert create_dataset("folder", tmp_path / "patients", "all").labels == ("Edema", "NORMAL")
        assert create_dataset("folder", tmp_path / "kaggle", "all").labels == ("COVID", "Normal")


def test_a_folder_without_findings_is_an_error(tmp_path):
    draw(tmp_path / "1.png")
    with pytest.raises(InputError, match="holds no image in a folder named for a finding"):
        create_dataset("folder", tmp_path, "all")


def test_a_folder_leaves_out_what_is_no_image_of_its(tmp_path):
    pixels = Image.fromarray(np.zeros((8, 8), np.uint8))
    for name in ("Edema/1.png", "Mass/2.png", "Edema/.ipynb_checkpoints/1.png", "__MACOSX/Edema/3.png", ".thumbs/4.png",
                 "Mass/__MACOSX/5.png", "Mass/._2.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels.save(tmp_path / name, format="PNG")
    with pytest.warns(UserWarning, match="images have no patient"):
        dataset = create_dataset("folder", tmp_path)
    assert dataset.labels == ("Edema", "Mass") and set(dataset.filenames(basename=True)) == {"1.png", "2.png"}
    pixels.save(tmp_path / "stray.png")
    with pytest.warns(UserWarning, match=r"1 images in no folder are left out, such as stray\.png"):
        create_dataset("folder", tmp_path)


def test_padchests_cut_is_the_same_whatever_labels_are_wanted(tmp_path):
    rng = np.random.default_rng(0)
    words = ("edema", "nodule", "kyphosis", "pneumonia")
    labels = [str([w for w in words if rng.random() < 0.3] or ["normal"]) for _ in range(120)]
    root = padchest(tmp_path, labels)
    for split in ("train", "val", "test"):
        plain, wanted = (
            create_dataset("padchest", root, split, labels=v, views="all") for v in (None, "kyphosis,Nodule")
        )
        assert plain.filenames() == wanted.filenames()
