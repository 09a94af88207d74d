"""``mxa predict --dicom-sr`` and ``--secondary-capture``, as the command calls what writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mxa import cli
from mxa.commands.predict import files as predict_files
from mxa.commands.predict.command import PredictConfig, predict
from mxa.deployment import runtimes
from mxa.layers import attach_finding_head
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained
from mxa.utils.errors import InputError

from .fake_predictor import fake_predictor
from .test_predict import write_dicom

pydicom = pytest.importorskip("pydicom")


@pytest.fixture
def faked(monkeypatch):
    monkeypatch.setattr(runtimes, "open_predictor", fake_predictor)
    monkeypatch.setattr(predict_files, "IMAGES_OF_A_PART", 1)


@pytest.fixture
def files(tmp_path):
    """Two DICOM images and, last, a file that is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_dicom(folder / "a.dcm", "PA"), write_dicom(folder / "b.dcm", "AP LL")
    (folder / "c.png").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("workers", [None, 1])
def test_a_report_of_each_image(files, tmp_path, faked, workers):
    config = PredictConfig((files,), "fake", calibrated="f1", skip_bad=True, dicom_sr=tmp_path / "sr")
    if workers is not None:
        config.output, config.workers, config.batch_size = tmp_path / "a.csv", workers, 1
        assert predict(config).bad == 1
    else:
        rows = predict(config)
        assert "is no DICOM file" in rows[2]["error"] and "probabilities" in rows[1]
    reports = [pydicom.dcmread(path) for path in (tmp_path / "sr").iterdir()]
    assert len(reports) == 2 and {report.Modality for report in reports} == {"SR"}
    for report in reports:
        text = report.to_json()
        assert "Bright" in text and "weights_sha256=" + "0" * 64 in text and "calibration=f1, sha256" in text
        assert "Indeterminate" in text and ("Positive" in text or "Negative" in text)
    names = {path.name for path in (tmp_path / "sr").iterdir()}
    if workers is not None:  # again: the same names
        config.output.unlink()
        predict(config)
    assert {path.name for path in (tmp_path / "sr").iterdir()} == names


def test_a_png_stops_the_command_in_one_line(files, tmp_path, faked):
    with pytest.raises(SystemExit, match=r"mxa predict: \S*c\.png is no DICOM file: [^\n]*$"):
        cli.main(["predict", str(files / "c.png"), "--model", "fake", "--dicom-sr", str(tmp_path / "sr")])
    assert not (tmp_path / "sr").exists()


def test_an_image_without_uids(files, tmp_path, faked):
    dataset = pydicom.dcmread(files / "a.dcm")
    del dataset.StudyInstanceUID
    dataset.save_as(files / "a.dcm")
    config = PredictConfig((files / "a.dcm", files / "b.dcm"), "fake", dicom_sr=tmp_path / "sr")
    with pytest.raises(InputError, match="StudyInstanceUID"):
        predict(config)
    config.skip_bad, config.output = True, tmp_path / "a.csv"
    assert predict(config).bad == 1 and len(list((tmp_path / "sr").iterdir())) == 1


def test_what_does_not_go_with_reports(files, tmp_path, faked, monkeypatch):
    asked = {"files": (files / "a.dcm",), "model": "fake"}
    with pytest.raises(InputError, match="need a model that PyTorch runs"):
        predict(PredictConfig(**asked, secondary_capture=tmp_path / "sc"))
    with pytest.raises(InputError, match="--ray has processes of its own"):
        predict(PredictConfig(**asked, dicom_sr=tmp_path / "sr", output=tmp_path / "a.csv", ray="auto"))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r'highdicom is not installed: run pip install "mxa\[dicom\]"'):
        predict(PredictConfig(**asked, dicom_sr=tmp_path / "sr"))


def test_boxes_and_a_picture(run, files, tmp_path):
    """A finding head's boxes are regions of the report; a model without one has its blocks' boxes in the picture."""
    model = load_model(run)
    attach_finding_head(model, ["Edema", "Bright"])
    save_pretrained(model, tmp_path / "headed")
    for name, regions in {str(tmp_path / "headed"): 2, str(run): 0}.items():
        out = {"dicom_sr": tmp_path / Path(name).name / "sr", "secondary_capture": tmp_path / Path(name).name / "sc"}
        predict(PredictConfig((files / "a.dcm",), name, **out))
        (report,), (picture,) = ([pydicom.dcmread(p) for p in folder.iterdir()] for folder in out.values())
        assert str(report).count("POLYLINE") == regions
        assert picture.pixel_array.ndim == 3 and picture.pixel_array.std() > 10


def test_a_full_disk_is_not_an_image_that_does_not_read(files, tmp_path, faked, monkeypatch):
    from mxa.utils import files as written

    def full(*args):
        raise written.NoSpace("x could not be written: free space, then run again")

    monkeypatch.setattr("mxa.deployment.dicom_report.atomic_write", full)
    with pytest.raises(InputError, match="could not be written"):
        predict(PredictConfig((files,), "fake", skip_bad=True, dicom_sr=tmp_path / "sr"))
