"""The files that boxes come in: every published layout, a table of one's own, names of images, bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from mxa.data.box_files import match_boxes, read_box_table
from mxa.labels import CHEXPERT, NIH, VINDR
from mxa.utils.errors import InputError

from .helpers import boxes_of

OWN = "path,label,x1,y1,x2,y2"


def unasked(number: int) -> tuple[int, int]:
    pytest.fail("the size of an image is asked, although the file says it")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def own(tmp_path: Path, *rows: str, header: str = OWN) -> Path:
    return write(tmp_path / "boxes.csv", header, *rows)


def dump(tmp_path: Path, content: object) -> Path:
    return write(tmp_path / "boxes.json", json.dumps(content))


def check(found: dict, expected: dict) -> None:
    """Compares boxes by image and label with numbers to six places."""
    assert {k: set(v) for k, v in found.items()} == {k: set(v) for k, v in expected.items()}
    for image, boxes in expected.items():
        for label, corners in boxes.items():
            assert found[image][label].dtype == np.float32
            np.testing.assert_allclose(found[image][label], corners, atol=1e-6)


# Published layouts


def test_nih(tmp_path):
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    path = write(tmp_path / "BBox_List_2017.csv", header, "1.png,Infiltrate,256,0,512,1024,,,", "1.png,Mass,0,0,8,8,,,")
    check(boxes_of(path), {"1.png": {"Infiltration": [[0.25, 0, 0.75, 1]], "Mass": [[0, 0, 1 / 128, 1 / 128]]}})


@pytest.mark.parametrize(
    ("header", "ends"),
    [
        ("image_id,rad_id,class_name,x_min,y_min,x_max,y_max", ""),  # PhysioNet, training
        ("image_id,class_name,x_min,y_min,x_max,y_max", ""),  # PhysioNet, test
        ("image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", ""),  # Kaggle
        ("image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max,width,height", ",2000,1000"),
    ],
)
def test_vindr_with_several_readers(tmp_path, header, ends):
    def row(reader: str, name: str, box: str) -> str:
        cells = {"image_id": "a1", "rad_id": reader, "class_name": name, "class_id": "3"}
        return ",".join(cells[k] for k in header.split(",") if k in cells) + f",{box}{ends}"

    rows = [
        row("R9", "Cardiomegaly", "500,250.5,1500,750"),
        row("R10", "Cardiomegaly", "520,260,1480,760"),
        row("R8", "Cardiomegaly", "500,250.5,1500,750"),
        row("R8", "Nodule/Mass", "0,0,200,100"),
        row("R10", "No finding", ",,,"),
    ]
    asked = []
    found = match_boxes(
        read_box_table(write(tmp_path / "train.csv", header, *rows)),
        ["train/a1.dicom"],
        VINDR,
        unasked if ends else lambda i: asked.append(i) or (2000, 1000),
    )
    assert len(asked) < 2  # an image is opened once, whatever the number of its boxes
    one = [0.25, 0.2505, 0.75, 0.75]
    check(found, {0: {"Cardiomegaly": [one, [0.26, 0.26, 0.74, 0.76], one], "Nodule/Mass": [[0, 0, 0.1, 0.1]]}})


def test_rsna(tmp_path):
    rows = ["a-b,,,,,0", "c-d,256.0,512.0,128.0,256.0,1", "c-d,0.0,0.0,512.0,512.0,1"]
    path = write(tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", *rows)
    found = match_boxes(read_box_table(path), ["x/a-b.dcm", "x/c-d.dcm"], CHEXPERT, unasked)
    boxes = [[0.25, 0.5, 0.375, 0.75], [0, 0, 0.5, 0.5]]
    check(found, {1: {"Pneumonia": boxes, "Lung Opacity": boxes}})
    write(path, "patientId,x,y,width,height,Target", rows[0])
    with pytest.raises(InputError, match=r"stage_2_train_labels\.csv holds no box$"):
        read_box_table(path)


def test_chestx_det_with_boxes_and_with_polygons_alone(tmp_path):
    star = [[[512, 0], [1024, 256], [600, 512.5]], [[0, 0], [10, 0], [0, 20]]]
    content = [
        {"file_name": "1.png", "syms": [], "boxes": [], "polygons": []},
        {"file_name": "2.png", "syms": ["Effusion"], "boxes": [[256, 512, 512, 768]], "polygons": star[:1]},
        {"file_name": "3.png", "syms": ["Nodule", "Mass"], "boxes": [], "polygons": star},
        {"file_name": "4.png", "syms": ["Nodule", "Nodule"], "boxes": [[0, 0, 256, 256], [0, 512, 256, 1024]]},
        {"file_name": "5.png", "syms": [], "boxes": []},  # ChestX-Det10 has no polygons
    ]
    expected = {
        "2.png": {"Effusion": [[0.25, 0.5, 0.5, 0.75]]},
        "3.png": {"Nodule": [[0.5, 0, 1, 512.5 / 1024]], "Mass": [[0, 0, 10 / 1024, 20 / 1024]]},
        "4.png": {"Nodule": [[0, 0, 0.25, 0.25], [0, 0.5, 0.25, 1]]},
    }
    check(boxes_of(dump(tmp_path, content)), expected)


def test_ms_cxr_as_a_table_and_as_coco(tmp_path):
    images = ["files/p10/p10000032/s50414267/a-b.dcm", "files/p11/p11000032/s5/c-d.dcm"]
    header = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
    rows = [
        'a-b,Pleural Effusion,"left, small",files/p10/p10000032/s50414267/a-b.jpg,1000,1500,500,1000,2000,3000,train',
        'a-b,Pleural Effusion,"right",files/p10/p10000032/s50414267/a-b.jpg,0,1500,500,1500,2000,3000,train',
        "c-d,Pneumothorax,apical,files/p11/p11000032/s5/c-d.jpg,0,0,100,100,1000,1000,test",
    ]
    content = {
        "info": {"version": "1.1.0"},
        "categories": [{"id": 3, "name": "Pleural Effusion"}, {"id": 7, "name": "Pneumothorax"}],
        "images": [
            {"id": 1, "file_name": "a-b.jpg", "path": images[0], "width": 2000, "height": 3000, "num_annotations": 2},
            {"id": 2, "file_name": "c-d.jpg", "path": images[1], "width": 1000, "height": 1000, "num_annotations": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1000, 1500, 500, 1000], "label_text": ["left, small"]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 1500, 500, 1500], "label_text": ["right"]},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 100, 100], "label_text": ["apical"]},
        ],
    }
    effusion = [[0.5, 0.5, 0.75, 2.5 / 3], [0, 0.5, 0.25, 1]]
    expected = {0: {"Pleural Effusion": effusion}, 1: {"Pneumothorax": [[0, 0, 0.1, 0.1]]}}
    table = read_box_table(write(tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv", header, *rows))
    check(match_boxes(table, images, CHEXPERT, unasked), expected)
    jpegs = [name.replace(".dcm", ".jpg") for name in images]
    check(match_boxes(read_box_table(dump(tmp_path, content)), jpegs, CHEXPERT, unasked), expected)


# One's own table


@pytest.mark.parametrize(
    ("header", "rows", "size", "said"),
    [
        (OWN, ("1.png,Mass,0.25,0,0.5,1.0", "1.png,Mass,0,0.5,0.1,0.75"), None, "are read as fractions"),
        (OWN, ("1.png,Mass,100,0,200,800", "1.png,Mass,0,400,40,600"), (400, 800), "are read as pixels of the images"),
        (f"{OWN},width,height", ("1.png,Mass,10,0,20,8,40,8", "1.png,Mass,0,2,4,3,40,4"), None, None),
        ("label;path;x1;y1;x2;y2", ("Mass;1.png;0,25;0;0,5;1", "Mass;1.png;0;0,5;0,1;0,75"), None, "fractions"),
    ],
)
def test_a_table_of_ones_own(tmp_path, caplog, header, rows, size, said):
    caplog.set_level(logging.INFO)
    table = read_box_table(own(tmp_path, *rows, header=header))
    found = match_boxes(table, ["1.png"], NIH, unasked if size is None else lambda i: size)
    check(found, {0: {"Mass": [[0.25, 0, 0.5, 1], [0, 0.5, 0.1, 0.75]]}})
    assert said in caplog.text if said else "read as" not in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("1.png,Mass,0.2,0.2,0.4,0.4", "2.png,Mass,5,0.2,9,0.4"), r"box 1 of 2 \(1\.png\).*: a box lies within one"),
        (("1.png,Mass,0.2,0.2,0.4,0.4", "2.png,Mass,0.4,0,0.2,1"), r"box 2 of 2 \(2\.png\): a box needs four numbers"),
        (("1.png,Mass,0.2,0.4,0.4,0.4",), "x1 below x2 and y1 below y2"),
        (("1.png,Mass,a,0,1,1",), "four numbers"),
        (("1.png,Mass,,,,",), "four numbers"),
        (("1.png,Mass,-5,0,1,1",), "outside its image"),
        (("1.png,Mass,0,0,1e308,1e309",), "four numbers"),
        (("1.png,Mass,0.5,0,0.50000000001,1",), r"a box of 1\.png is too small"),
        (("1.png,Mass,4,0,9,1", "2.png,Mass,4,0,401,1"), r"a box of 2\.png lies outside its 400 x 800 pixels"),
        (("1.png,Mass,0,0,9,9", "2.png,Mass,9,0,4,9", "3.png,Mass,9,0,4,9"), r"3 \(2\.png\), and of 1 more boxes: "),
        ((",Mass,0,0,1,1",), r"box 1 of 1 \(\): it names no image"),
        ((), "has no rows"),
    ],
)
def test_boxes_that_are_none(tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as raised:
        match_boxes(read_box_table(own(tmp_path, *rows)), ["1.png", "2.png"], NIH, lambda i: (400, 800))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", ["300,800", "0,0", "-400,800", ",", "400,", "x,800", "inf,800", "nan,800"])
def test_pixels_of_another_size_than_said(tmp_path, size):
    rows = ("2.png,Mass,0,0,9,9,40,80", f"1.png,Mass,300,0,390,80,{size}")
    why = "outside its image, or is in pixels of another size" if size == "300,800" else "not two numbers of pixels"
    with pytest.raises(InputError, match=rf"boxes\.csv: box 2 of 2 \(1\.png\): .*{why}"):
        read_box_table(own(tmp_path, *rows, header=f"{OWN},width,height"))


def test_a_box_just_over_the_edge_is_cut(tmp_path):
    path = own(tmp_path, "1.png,Mass,-0.001,0,0.5,1.001")
    check(match_boxes(read_box_table(path), ["1.png"], NIH, unasked), {0: {"Mass": [[0, 0, 0.5, 1]]}})


# Names of images


@pytest.mark.parametrize(
    ("name", "paths", "found"),
    [
        ("a/1.png", ["a/1.png", "b/1.png"], 0),  # the path
        ("1.png", ["b/2.png", "b/1.png"], 1),  # the file name
        ("1.2.3", ["b/1.2.3.dcm", "b/1.2.dcm"], 0),  # without its suffix
        ("a/1", ["b/1.png", "x/a/1.png"], 1),
        ("/data/nih/images/1.png", ["images/1.png", "others/1.png"], 0),  # the longer one
        (r"D:\nih\images\1.png", ["others/1.png", "images/1.png"], 1),
        ("1.png", ["x/1.png", "1.png"], 1),  # a whole path goes before the end of one
        ("p2/view1.jpg", ["p1/view1.jpg"], None),  # another patient's
        ("p2/view1.jpg", ["up2/view1.jpg"], None),
        ("1.jpg", ["1.png"], None),
    ],
)
def test_which_image_is_meant(tmp_path, caplog, name, paths, found):
    caplog.set_level(logging.INFO)
    path = own(tmp_path, f"{name},Mass,0,0,1,1", f"{name},Nodule,0,0,1,1")
    assert list(match_boxes(read_box_table(path), paths, NIH, unasked)) == ([] if found is None else [found])
    assert ("2 boxes are of 1 other images: " in caplog.text) == (found is None)


def test_a_name_of_several_images(tmp_path):
    table = read_box_table(own(tmp_path, "view1,Mass,0,0,1,1", "p1/view1.jpg,Mass,0,0,1,1"))
    with pytest.raises(InputError, match=r"boxes\.csv: view1 is the name of 3 images: give their paths"):
        match_boxes(table, ["p1/view1.jpg", "p2/view1.jpg", "p2/view1.png"], NIH, unasked)
    table = read_box_table(own(tmp_path, "view1,Other,0,0,1,1", "p1/view1.jpg,Mass,0,0,1,1"))
    assert list(match_boxes(table, ["p1/view1.jpg", "p2/view1.jpg"], NIH, unasked)) == [0]  # what is not used


def test_labels_by_any_of_their_names_and_others_counted(tmp_path, caplog):
    path = own(tmp_path, *(f"1.png,{name},0,0,1,1" for name in ("pleural effusion", "EFFUSION", "Scar", "Scar", "ILD")))
    (boxes,) = match_boxes(read_box_table(path), ["1.png"], NIH, unasked).values()
    assert {k: len(v) for k, v in boxes.items()} == {"Effusion": 2}
    assert "boxes.csv: boxes of labels that are not used: ILD (1), Scar (2)" in caplog.text
    with pytest.raises(InputError, match=r"no box is of one of the labels Edema, Mass: there are EFFUSION \(1\), ILD"):
        match_boxes(read_box_table(path), ["1.png"], ("Edema", "Mass"), unasked)


# Files of another kind


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.csv", "path,label\n1.png,Mass\n", "no table of boxes that is known; it has the columns label, path"),
        ("b.csv", "", "has no header"),
        ("b.csv", f"{OWN}\n1.png,Mass,0,0,1\n", r"line 2: 5 cells where the header has 6"),
        ("b.png", "\x89PNG", "is no(t a CSV| )table"),
        ("b.xls", "x", "is not read as a table"),
        ("b.json", "", "b.json is not JSON"),
        ("b.json", '[{"file_name": "1.png"', "is not JSON"),
        ("b.json", "3", "must hold a JSON object, and holds a int"),
        ("b.json", "[" * 100_000, "(nested too deeply|not JSON)"),
        ("b.json", "[]", r"b\.json holds no box"),
        ("b.json", '{"images": [], "categories": [], "annotations": []}', "holds no box"),
        ("b.json", "{}", r"is not a JSON of boxes: .* \(KeyError: 'images'\)"),
        ("b.json", '{"images": 3, "categories": [], "annotations": []}', "not a JSON of boxes"),
        ("b.json", '{"images": [{"id": []}], "categories": [], "annotations": []}', "not a JSON of boxes"),
        ("b.json", "[1]", "not a JSON of boxes"),
        ("b.json", '["x"]', "not a JSON of boxes"),
        ("b.json", '[{"file_name": 3, "syms": ["Mass"], "boxes": [[1, 2, 3, 4]]}]', "a name is not text"),
        ("b.json", '[{"file_name": "1", "syms": [null], "boxes": [[1, 2, 3, 4]]}]', "a name is not text"),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "boxes": [[1, 2, 3]]}]', "4 numbers are needed"),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "boxes": ["1234"]}]', "4 numbers are needed"),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "boxes": [[1, 2, 3, null]]}]', "4 numbers are needed"),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "boxes": [[1, 2, 3, 1e999]]}]', "not JSON"),
        ("b.json", f'[{{"file_name": "1", "syms": ["Mass"], "boxes": [[1, 2, 3, {10**290}]]}}]', "outside its image"),
        (
            "b.json",
            '[{"file_name": "1", "syms": ["Mass"], "boxes": [[0, 0, 9, 9], [0, 0, 9, 9]]}]',
            "not a JSON of box",
        ),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "polygons": [[]]}]', "not a JSON of boxes"),
        ("b.json", '[{"file_name": "1", "syms": ["Mass"], "polygons": [[[1, 2], [3]]]}]', "not a JSON of boxes"),
    ],
)
def test_files_that_are_no_boxes(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        read_box_table(tmp_path / name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("width", [None, "400", 0, -1, [400], 0.5])
def test_coco_with_a_size_that_is_none(tmp_path, width):
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": width, "height": 300}],
        "categories": [{"id": 1, "name": "Mass"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    with pytest.raises(InputError, match=r"2 numbers are needed|not two numbers of pixels"):
        read_box_table(dump(tmp_path, content))


def test_no_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match=f"no file of boxes {path}"):
            read_box_table(path)
