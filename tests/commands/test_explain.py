"""``mxa explain``: files in, pictures and boxes out, in the coordinates of the original image."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mxa import set_label_names
from mxa.commands import explain as job
from mxa.commands.explain import ExplainConfig, explain
from mxa.commands.predict.command import PredictConfig, predict
from mxa.data import create_transform
from mxa.data.image_io import read_image
from mxa.explain import predict_rois
from mxa.models import save_pretrained
from mxa.models.load import load_model
from mxa.utils.errors import InputError

LABELS = ("Edema", "Mass", "Pleural Effusion", "Hernia")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Small run folders with and without MXA, and one of another network."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, size in (("efficientvit_ml_m0_mxa", 64), ("efficientvit_ml_m0", 96), ("resnet10t", 64)):
        options = {"img_size": size} if "vit" in name else {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
        model = timm.create_model(name, num_classes=4, **options)
        for module in model.modules():
            if hasattr(module, "score"):  # boxes that differ from the first one
                torch.nn.init.normal_(module.score[-1].weight, std=3.0)
        set_label_names(model, LABELS)
        save_pretrained(model, folder / name)
    return folder


@pytest.fixture
def no_panels(monkeypatch):
    """Leaves the pictures empty: drawing them takes most of the time of a test of something else."""
    monkeypatch.setattr(job, "draw_panel", lambda image, rois, maps, labels, picture, *rest: picture.touch())


@pytest.fixture
def files(tmp_path):
    """A wide image in two folders under one name, a deep one, and DICOM."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    for sub in ("a", "b"):
        (folder / sub).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (100, 300), dtype=np.uint8)).save(folder / sub / "one.png")
    Image.fromarray(rng.integers(0, 65536, (90, 70), dtype=np.uint16)).save(folder / "deep.png")
    return folder


def run(runs, tmp_path, files, model="efficientvit_ml_m0_mxa", **fields):
    files = files if isinstance(files, tuple) else (files,)
    return explain(ExplainConfig(files=files, model=str(runs / model), output=tmp_path / "out", **fields))


def test_files_names_and_contents(runs, files, tmp_path):
    rows = run(runs, tmp_path, files, labels="effusion,Mass")
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    names = ["deep", "gallery", "one", "one-2"]
    assert written == sorted([f"{n}.png" for n in names] + [f"{n}.json" for n in names if n != "gallery"])
    assert [row["file"] for row in rows] == ["a/one.png", "b/one.png", "deep.png"]  # no path of this machine
    assert [row["picture"] for row in rows] == ["one.png", "one-2.png", "deep.png"]
    for row in rows:
        kept = json.loads((tmp_path / "out" / row["picture"]).with_suffix(".json").read_text())
        assert kept == row
        assert set(row) == {"file", "warning", "size", "boxes", "attention", "gate", "labels", "picture"}
        assert row["warning"].startswith("the picture is noise")
        assert list(row["labels"]) == ["Pleural Effusion", "Mass"]
        assert len(row["boxes"]) == len(row["attention"]) == len(row["gate"]) == 6
        width, height = row["size"]
        inside = [box for box in row["boxes"].values()]
        for found in (*row["attention"].values(), *row["gate"].values()):
            inside += [found["box"], found["peak"] * 2] if found else []
        for metadata in row["labels"].values():
            assert 0 < metadata["probability"] < 1
            for method in ("grad_cam", "integrated_gradients"):
                inside += [metadata[method]["box"]] if metadata[method] else []
        for x1, y1, x2, y2 in inside:
            assert 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height
    assert rows[0]["size"] == [300, 100] and rows[2]["size"] == [70, 90]
    expected = predict(PredictConfig(files=(files,), model=str(runs / "efficientvit_ml_m0_mxa")))
    for row, other in zip(rows, expected, strict=True):
        for label, metadata in row["labels"].items():
            assert metadata["probability"] == pytest.approx(other["probabilities"][label], abs=1e-5)


def test_boxes_and_peaks_are_in_original_pixels(no_panels, runs, files, tmp_path, monkeypatch):
    """A map of the 64 x 64 input with one hot square: its place in the image of 300 x 100 is worked out by hand."""
    heat = torch.zeros(1, 1, 64, 64)
    heat[..., 16:32, 48:56] = 1.0
    heat[..., 20, 50] = 2.1
    monkeypatch.setattr(job, "grad_cam", lambda model, x, labels: heat.expand(1, len(labels), 64, 64))
    row = run(runs, tmp_path, files / "a", labels="Mass")[0]
    found = row["labels"]["Mass"]["grad_cam"]
    assert found["peak"] == pytest.approx([50.5 / 64 * 300, 20.5 / 64 * 100], abs=0.01)
    assert found["box"] == pytest.approx([50 / 64 * 300, 20 / 64 * 100, 51 / 64 * 300, 21 / 64 * 100], abs=0.01)
    heat[..., 20, 50] = 1.5
    found = run(runs, tmp_path, files / "a", labels="Mass")[0]["labels"]["Mass"]["grad_cam"]
    assert found["box"] == pytest.approx([48 / 64 * 300, 16 / 64 * 100, 56 / 64 * 300, 32 / 64 * 100], abs=0.01)
    model = load_model(runs / "efficientvit_ml_m0_mxa")
    boxes = predict_rois(model, create_transform(model)(read_image(files / "a" / "one.png"))[None])
    for name, box in boxes.items():
        expected = (box[0] * torch.tensor([300.0, 100, 300, 100])).tolist()
        assert row["boxes"][name] == pytest.approx(expected, abs=0.01)


def test_the_three_most_probable_by_default_and_a_second_model(runs, files, tmp_path):
    path = files / "deep.png"
    [row] = run(runs, tmp_path, path, against=str(runs / "efficientvit_ml_m0"))
    [expected] = predict(PredictConfig(files=(path,), model=str(runs / "efficientvit_ml_m0_mxa")))
    best = sorted(LABELS, key=lambda name: -expected["probabilities"][name])[:3]
    assert list(row["labels"]) == best
    with Image.open(tmp_path / "out" / "deep.png") as picture:
        high = picture.height
    run(runs, tmp_path, path)
    with Image.open(tmp_path / "out" / "deep.png") as picture:
        assert picture.height < 0.9 * high
    assert not (tmp_path / "out" / "gallery.png").exists()  # one image
    with pytest.raises(InputError, match=r"--against.*efficientvit"):
        run(runs, tmp_path, path, against=str(runs / "resnet10t"))


def test_no_finding_has_no_map(no_panels, runs, files, tmp_path, caplog):
    model = load_model(runs / "resnet10t")
    names = ("No Finding", "Mass", "Edema", "Hernia")
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([9.0, 2.0, 1.0, 0.0]))
    set_label_names(model, names)
    save_pretrained(model, tmp_path / "runs" / "model")
    path = files / "deep.png"
    caplog.set_level("INFO", logger="mxa")
    [row] = run(tmp_path / "runs", tmp_path, path, model="model")
    assert set(row["labels"]) == set(names[1:]) and "No Finding gets no map" in caplog.text
    [row] = run(tmp_path / "runs", tmp_path, path, model="model", labels="no_finding,Mass")
    assert list(row["labels"]) == ["Mass"]
    with pytest.raises(InputError, match="No Finding has no place in an image: name a finding in --labels"):
        run(tmp_path / "runs", tmp_path, path, model="model", labels="No Finding")


@pytest.mark.parametrize(("model", "attends"), [("efficientvit_ml_m0", True), ("resnet10t", False)])
def test_models_without_mxa(no_panels, runs, files, tmp_path, model, attends):
    rows = run(runs, tmp_path, (files / "deep.png", files / "a"), model=model, labels="Mass")
    assert all(row["boxes"] == row["gate"] == {} and bool(row["attention"]) is attends for row in rows)
    assert not (tmp_path / "out" / "gallery.png").exists()


def test_a_model_without_maps_has_no_grad_cam(no_panels, runs, files, tmp_path, caplog):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=4, img_size=64)
    set_label_names(vit, LABELS)
    save_pretrained(vit, tmp_path / "vit")
    [row] = run(tmp_path, tmp_path, files / "deep.png", model="vit", labels="Mass", skip_bad=True)
    assert set(row["labels"]["Mass"]) == {"probability", "integrated_gradients"}
    assert "no Grad-CAM: the layer blocks.11" in caplog.text


def test_dicom_says_nothing_of_the_patient(runs, tmp_path, caplog):
    pydicom = pytest.importorskip("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Secret^Name", "SECRET-ID", "19330101"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "KNEE", "PA"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 40, 48, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.random.default_rng(0).integers(0, 4096, (40, 48)).astype("<u2").tobytes()
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with caplog.at_level("WARNING", logger="mxa"):
        [row] = run(runs, tmp_path, tmp_path / "a.dcm")
    assert row["size"] == [48, 40] and "body part KNEE" in row["warning"]
    assert f"{tmp_path / 'a.dcm'}: body part KNEE" in caplog.text
    written = (tmp_path / "out" / "a.json").read_text() + (tmp_path / "out" / "a.png").read_bytes().decode("latin-1")
    for secret in ("Secret", "SECRET", "19330101", "1.2.3.4"):
        assert secret not in written + caplog.text


def test_bad_input(no_panels, runs, files, tmp_path):
    with pytest.raises(InputError, match="--labels: the model does not know Fracture; it knows Edema, Mass"):
        run(runs, tmp_path, files, labels="Mass,Fracture")
    with pytest.raises(InputError, match=r"no such file"):
        run(runs, tmp_path, tmp_path / "none.png")
    image = files / "deep.png"
    with pytest.raises(InputError, match=r"--output .* is a file"):
        explain(ExplainConfig((image,), model=str(runs / "resnet10t"), output=image))
    before = image.read_bytes()
    with pytest.raises(InputError, match=r"deep\.png is one of the images"):
        explain(ExplainConfig((image,), model=str(runs / "resnet10t"), output=files))
    assert image.read_bytes() == before
    (files / "bad.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"bad\.png does not decode"):
        run(runs, tmp_path, (image, files / "bad.png"), labels="Mass")
    rows = run(runs, tmp_path, (files / "bad.png", image), labels="Mass", skip_bad=True)
    assert "does not decode" in rows[0]["error"] and rows[1]["picture"] == "deep.png"
    with pytest.raises(InputError, match="none of the 1 images reads"):
        run(runs, tmp_path, files / "bad.png", skip_bad=True)


def test_an_image_called_gallery(no_panels, runs, files, tmp_path):
    (files / "deep.png").rename(files / "gallery.png")
    rows = run(runs, tmp_path, (files / "a", files / "gallery.png"), labels="Mass")
    assert rows[1]["picture"] == "gallery-2.png"
    assert (tmp_path / "out" / "gallery.png").is_file()
