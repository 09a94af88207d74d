import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, TiffImagePlugin
from safetensors.torch import load_file, save_file

from mxa import cli
from mxa.commands.predict.command import PredictConfig, predict
from mxa.data import create_transform
from mxa.data.image_io import read_image
from mxa.explain import predict_rois
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained
from mxa.utils.errors import InputError


def test_file_and_folder(run, table):
    folder = predict(PredictConfig(files=(table.parent,), model=str(run), batch_size=7))
    assert [r["file"] for r in folder] == sorted(r["file"] for r in folder)
    assert len(folder) == 48
    one = predict(PredictConfig(files=(table.parent / "3.png",), model=str(run)))
    model = load_model(run)
    expected = model(create_transform(model)(read_image(table.parent / "3.png"))[None]).sigmoid()[0]
    assert list(one[0]["probabilities"]) == ["Edema", "Mass", "Bright"]
    assert list(one[0]["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    same = next(r for r in folder if r["file"].endswith("/3.png"))
    assert list(same["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_rois_picture(run, table, tmp_path):
    predict(PredictConfig(files=(table.parent / "3.png",), model=str(run), rois=tmp_path / "rois.png"))
    with Image.open(tmp_path / "rois.png") as picture:
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").resize((100, 100)).getcolors(10_000)) > 20


def test_bad_input(run, table, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        predict(PredictConfig(files=(tmp_path / "none.png",), model=str(run)))
    with pytest.raises(InputError, match="holds no image"):
        predict(PredictConfig(files=(tmp_path,), model=str(run)))
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"bad\.png does not decode"):
        predict(PredictConfig(files=(tmp_path, table.parent / "3.png"), model=str(run)))
    results = predict(PredictConfig(files=(tmp_path, table.parent / "3.png"), model=str(run), skip_bad=True))
    assert "does not decode" in results[0]["error"]
    assert "probabilities" in results[1]
    with pytest.raises(InputError, match="is not a run folder"):
        predict(PredictConfig(files=(table.parent / "3.png",), model=str(tmp_path)))
    save_pretrained(timm.create_model("efficientvit_ml_m0", img_size=64), tmp_path / "plain")
    with pytest.raises(InputError, match="no MXA block"):
        plain = PredictConfig(files=(table.parent / "3.png",), model=str(tmp_path / "plain"), rois=tmp_path / "r.png")
        predict(plain)
    save_pretrained(timm.create_model("efficientvit_ml_m0_mxa", in_chans=4), tmp_path / "four")
    with pytest.raises(InputError, match="takes 4 channels"):
        predict(PredictConfig(files=(table.parent / "3.png",), model=str(tmp_path / "four")))


def test_rois_leave_no_trace_and_stay_inside(run):
    model = load_model(run)
    images = torch.randn(3, 3, 64, 64)
    before = model(images)
    first, second = predict_rois(model, images), predict_rois(model, images)
    assert len(first) == 6
    for name, boxes in first.items():
        assert torch.equal(boxes, second[name])
        assert boxes.shape == (3, 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert torch.equal(model(images), before)
    assert all(not m._forward_hooks for m in model.modules())


def test_a_cell_of_a_map_lies_where_the_boxes_say():
    """The gradient of one cell of the stem's map is centred on the pixel that the conversion gives."""
    from mxa.explain.hooks import observe
    from mxa.layers.grid import to_image

    torch.manual_seed(0)
    model = timm.create_model("efficientvit_ml_m0_mxa").eval()
    for weight in model.patch_embed.parameters():
        weight.data.abs_()
    image = torch.ones(1, 3, 224, 224, requires_grad=True)
    row, column = 5, 8
    model.patch_embed(image)[0, :, row, column].sum().backward()
    weight = image.grad[0].abs().sum(0)
    at = torch.arange(224) + 0.5
    centre = torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()
    cell = torch.tensor([[column, row, column + 1, row + 1]]) / 14
    grids = []
    observe(model, image.detach(), {model.patch_embed: lambda x, output, grid_of: grids.append(grid_of(output))})
    box = to_image(cell, grids[0])[0] * 224
    assert ((box[:2] + box[2:]) / 2 - centre).abs().max() < 1
    assert (box[2:] - box[:2] - 16).abs().max() < 1e-3


def write_dicom(path, view: str, body_part: str = "CHEST", modality: str = "DX"):
    """A small radiograph, with what must never come out."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Secret^Name", "SECRET-ID", "19330101"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{len(view)}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.100", "1.2.3.101"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = modality, body_part, view
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 40, 48, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    y, x = np.mgrid[:40, :48]
    ds.PixelData = (2000 + 1500 * np.sin(x / 9) * np.cos(y / 7)).astype("<u2").tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_dicom_files_and_their_identifiers(run, tmp_path, capsys, caplog):
    frontal, lateral = write_dicom(tmp_path / "a.dcm", "PA"), write_dicom(tmp_path / "b", "LL")
    with caplog.at_level("WARNING", logger="mxa"):
        plain = predict(PredictConfig(files=(frontal, lateral), model=str(run)))
    assert [set(row) for row in plain] == [{"file", "probabilities"}, {"file", "probabilities", "warning"}]
    assert "view LL is lateral" in plain[1]["warning"]
    assert f"{lateral}: view LL is lateral" in caplog.text
    asked = predict(PredictConfig(files=(tmp_path,), model=str(run), identifiers=True))
    assert [Path(row["file"]).name for row in asked] == ["a.dcm", "b"]
    assert asked[0]["identifiers"] == {
        "SOPInstanceUID": "1.2.3.2",
        "StudyInstanceUID": "1.2.3.100",
        "SeriesInstanceUID": "1.2.3.101",
    }
    cli.main(
        ["predict", str(frontal), str(lateral), "--model", str(run), "--identifiers", "--rois", str(tmp_path / "r.png")]
    )
    shown = capsys.readouterr()
    everything = shown.out + shown.err + caplog.text + str(plain) + str(asked)
    assert "1.2.3.100" in shown.out and "SOPInstanceUID" in shown.out
    for secret in ("Secret", "SECRET", "19330101"):
        assert secret not in everything
    assert predict(PredictConfig(files=(write_dicom(tmp_path / "c.dcm", "AP", "KNEE"),), model=str(run)))[0]["warning"]


def test_a_dicom_and_the_same_image_as_png_agree(run, tmp_path):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", "PA")
    pixels = pydicom.dcmread(path).pixel_array.astype(np.float64)
    scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 65535
    Image.fromarray(scaled.round().astype(np.uint16)).save(tmp_path / "a.png")
    one, other = predict(PredictConfig(files=(path, tmp_path / "a.png"), model=str(run)))
    assert list(one["probabilities"].values()) == pytest.approx(list(other["probabilities"].values()), abs=1e-4)


def test_what_no_radiograph_can_be_is_said(run, tmp_path, caplog, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "noise.png")
    Image.new("L", (64, 64)).save(tmp_path / "black.png")
    Image.new("RGB", (64, 64), (30, 90, 200)).save(tmp_path / "colour.jpg")
    with caplog.at_level("WARNING", logger="mxa"):
        rows = predict(PredictConfig(files=(tmp_path,), model=str(run)))
    said = {Path(row["file"]).stem: row["warning"] for row in rows}
    assert "same gray" in said["black"] and "coloured" in said["colour"] and "noise" in said["noise"]
    assert f"{tmp_path / 'noise.png'}: the picture is noise" in caplog.text
    model = load_model(run).eval()
    for row in rows:  # a warning changes no score
        transform = create_transform(model)
        x = transform(read_image(row["file"], transform.decode_size))
        torch.testing.assert_close(
            model(x[None])[0].sigmoid(), torch.tensor(list(row["probabilities"].values())), atol=1e-6, rtol=0
        )


def test_whatever_a_decoder_raises_is_skipped(run, table, tmp_path, monkeypatch):
    def fail(*args):
        raise TypeError("Missing dimensions")

    Image.new("L", (8, 8)).save(tmp_path / "bad.tif")
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load_prepare", fail)
    rows = predict(PredictConfig(files=(tmp_path, table.parent / "3.png"), model=str(run), skip_bad=True))
    assert rows[0]["error"] == f"{tmp_path / 'bad.tif'} does not decode as an image: its decoder failed (TypeError)"
    assert "probabilities" in rows[1]


@pytest.fixture
def not_finite(run, tmp_path):
    """A run whose weights are finite, and whose outputs are not: a variance is negative."""
    folder = shutil.copytree(run, tmp_path / "not_finite")
    state = load_file(folder / "model.safetensors")
    state["head.bn.running_var"] = -torch.ones_like(state["head.bn.running_var"])
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "options", [["predict"], ["predict", "--format", "json"], ["explain", "--output", "x"], ["evaluate"], ["teach"]]
)
def test_outputs_that_are_not_finite(options, not_finite, table, tmp_path, monkeypatch):
    """Every command says of which label and image, in one line."""
    monkeypatch.chdir(tmp_path)
    command, *rest = options
    if command in ("evaluate", "teach"):
        rest = [str(not_finite), "--output", "x.parquet" if command == "teach" else "x", "--workers", "0"]
    else:
        rest = [str(table.parent / "3.png"), "--model", str(not_finite), *rest]
    with pytest.raises(SystemExit, match=r"Edema of \S*\.png") as error:
        cli.main([command, *rest])
    assert "finite" in str(error.value) and "\n" not in str(error.value)
