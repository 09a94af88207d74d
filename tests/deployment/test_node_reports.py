"""What the example node writes into its reports."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import timm
import torch
from highdicom import sr

import mxa
from mxa.data import create_transform
from mxa.data.image_io import read_image
from mxa.deployment.dicom_report import calibration_name, write_dicom
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.explain import predict_findings
from mxa.layers import attach_finding_head
from mxa.models import save_pretrained
from mxa.models.load import load_model
from mxa.utils.files import digest

from ..contracts import randomise
from .dicom_files import COLUMNS, ROWS, write_chest

pytestmark = pytest.mark.deploy


@pytest.fixture(scope="module")
def reporter():
    return runpy.run_path(str(Path(__file__).parents[2] / "examples" / "dicom_node.py"))["reporter"]


def groups(report):
    return sr.ComprehensiveSR.from_dataset(report).content.get_image_measurement_groups()


def test_a_calibrated_run(run, table, reporter, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    calibration = calibrate(CalibrateConfig(str(folder), data="table", root=str(table), workers=0))
    source, model = write_chest(tmp_path / "chest.dcm"), load_model(folder)
    with torch.inference_mode():
        logits = model(create_transform(model)(read_image(source))[None])[0].tolist()
    found = groups(reporter(str(folder), "f1")(source))
    thresholds = calibration.thresholds["f1"]
    assert 0 < len(thresholds) < len(found) == 3
    for group, label, z in zip(found, mxa.label_names(model), logits, strict=True):
        p = calibration.probability(label, z)
        assert group.tracking_identifier == label
        assert group.get_measurements()[0].value == pytest.approx(p, abs=2e-6)
        (call,) = group.get_qualitative_evaluations()
        expected = {True: "Positive", False: "Negative"}[p >= thresholds[label]] if label in thresholds else None
        assert call.value.meaning == (expected or "Indeterminate")
        said = group[0].to_json()
        assert digest(folder / "model.safetensors") in said and calibration_name(calibration, "f1") in said


def test_boxes_of_a_finding_head(reporter, tmp_path):
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=3, label_names=("Edema", "Mass", "No Finding"))
    save_pretrained(randomise(attach_finding_head(model, ["Mass"], dim=8)), tmp_path / "head")
    source, model = write_chest(tmp_path / "chest.dcm"), load_model(tmp_path / "head")
    expected = predict_findings(model, create_transform(model)(read_image(source))[None]).boxes[0, 0].numpy()
    report = reporter(str(tmp_path / "head"), "youden")(source)
    assert len(groups(report)) == 2
    (placed,) = sr.ComprehensiveSR.from_dataset(report).content.get_planar_roi_measurement_groups()
    assert placed.tracking_identifier == "Mass" and not placed.get_qualitative_evaluations()
    corners = placed.roi.value
    assert np.allclose([*corners.min(0), *corners.max(0)], expected * [COLUMNS, ROWS, COLUMNS, ROWS], atol=1e-3)


def test_what_is_no_chest_radiograph_is_flagged(trained, reporter, tmp_path):
    report = reporter(str(trained), "youden")

    def written(**tags) -> str:
        dataset = report(write_chest(tmp_path / "chest.dcm", **tags))
        return pydicom.dcmread(write_dicom(dataset, tmp_path)).to_json()

    assert "Warning: " not in written()
    assert "Warning: view LL is lateral" in written(ViewPosition="LL")
    assert "Warning: modality MG is not a radiograph" in written(Modality="MG")
