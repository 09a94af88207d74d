"""Exported folders: what is refused, with a fake graph; the graphs themselves are in test_export.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from mxa.deployment import ModelInfo, Predictor, load_exported, open_predictor
from mxa.deployment.export import ExportConfig, export
from mxa.deployment.manifest import Manifest, read_manifest
from mxa.deployment.quantize import auc_change, check_precision
from mxa.evaluation.calibration import Calibration
from mxa.utils.errors import InputError
from mxa.utils.files import digest

LABELS = ("Effusion", "Mass")
CALIBRATION = Calibration({"Effusion": 2.0}, {p: {"Effusion": 0.5} for p in ("youden", "specificity95", "f1")})
INFO = ModelInfo("m", LABELS, (8, 6), "bicubic", "0" * 64, CALIBRATION)
MANIFEST = Manifest(INFO, "onnx", "fp32", "inside", (0.5,), (0.25,))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    replace(MANIFEST, files={"model.onnx": digest(tmp_path / "model.onnx")}).write(tmp_path)
    return tmp_path


def test_the_manifest_comes_back(folder):
    assert read_manifest(folder) == replace(MANIFEST, files={"model.onnx": digest(folder / "model.onnx")})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mxa_export": 2}, "not of this version"),
        ({"format": "caffe"}, "names another input or format"),
        ({"mean": [0.5, 0.5]}, "one or three channels"),
        ({"std": [0.0]}, "one or three channels"),
        ({"files": {}}, "model.onnx among them"),
        ({"files": {"model.onnx": "0", "../x": "0"}}, "names in its folder"),
        ({"info": {"labels": ["A", "A"]}}, "damaged"),
        ({"info": 3}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"precision": None, "info": None}, "damaged"),
    ],
)
def test_a_damaged_manifest_is_one_line(folder, change, said):
    path = folder / "mxa.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=said) as error:
        read_manifest(folder)
    assert "export" in str(error.value) and "\n" not in str(error.value)


def test_a_changed_graph_is_refused_by_its_hash(folder):
    (folder / "model.onnx").write_bytes(b"not a grapH")
    with pytest.raises(InputError, match="its hash differs"):
        load_exported(folder)


def test_a_missing_graph_and_a_folder_that_is_none(folder, tmp_path):
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"lacks model\.onnx"):
        load_exported(folder)
    with pytest.raises(InputError, match="run mxa export"):
        open_predictor("efficientvit_ml_m0", runtime="onnx")
    with pytest.raises(InputError, match=r"no mxa\.json"):
        load_exported(tmp_path / "nowhere")


def test_a_runtime_that_is_not_installed(folder):
    """In a process where neither runtime can be imported; and no PyTorch is imported on the way."""
    code = f"""
import sys
sys.modules["onnxruntime"] = None
import mxa
try:
    mxa.load_exported({str(folder)!r})
except ValueError as error:
    print(error)
print([m for m in ("torch", "timm", "pandas") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'onnxruntime is not installed: run pip install "mxa[onnx]"' in done.stdout, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_precisions_that_a_format_lacks():
    with pytest.raises(InputError, match=r"onnx has no bf16 .* fp32 or fp16 or int8"):
        check_precision("onnx", "bf16")
    with pytest.raises(InputError, match="torch-export has no int8"):
        check_precision("torch-export", "int8")


def test_an_output_that_exists(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="exists: add --overwrite"):
        export(ExportConfig(model="efficientvit_ml_m0_mxa.r160_nih8k", output=tmp_path, format="torch-export"))
    with pytest.raises(OSError, match="file"):
        export(
            ExportConfig(
                model="efficientvit_ml_m0_mxa.r160_nih8k", output=tmp_path / "file" / "b", format="torch-export"
            )
        )
    assert (tmp_path / "file").read_text() == "precious"


def fake(info: ModelInfo = INFO) -> Predictor:
    """A model whose logits are the mean of the plane, and minus it."""
    return Predictor(info, lambda x: np.stack([x.mean((1, 2)), -x.mean((1, 2))], 1).astype(np.float32) / 100, "fake")


def test_one_call_for_paths_images_arrays_and_lists(tmp_path):
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8))
    image.save(tmp_path / "x.png")
    predictor = fake()
    one = predictor(image)
    assert list(one) == list(LABELS)
    assert predictor([image, np.asarray(image), tmp_path / "x.png", str(tmp_path / "x.png")]) == [one] * 4
    assert predictor([]) == []
    mean = np.asarray(image.resize((6, 8), Image.Resampling.BICUBIC)).mean() / 100
    assert one["Effusion"] == pytest.approx(1 / (1 + np.exp(-mean / 2)), rel=1e-6)  # its temperature is 2
    assert one["Mass"] == pytest.approx(1 / (1 + np.exp(mean)), rel=1e-6)  # it has none
    raw = predictor.probabilities(predictor.logits([predictor.reader().resize(image)]), calibrated=False)
    assert raw[0, 0] == pytest.approx(1 / (1 + np.exp(-mean)), rel=1e-6)


def test_a_logit_that_is_not_finite_names_its_label():
    broken = Predictor(INFO, lambda x: np.array([[0.0, np.nan]] * len(x), np.float32), "fake")
    with pytest.raises(InputError, match="m: Mass is not a finite number"):
        broken(np.zeros((9, 9), np.uint8))


class Dataset:
    labels = ("Mass", "Effusion", "Nodule")

    class records:
        patients = np.repeat(np.arange(50), 4)


def test_the_change_of_the_auc_is_that_of_the_labels_by_name():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 3)) < 0.3).astype(float)
    targets[:, 2] = np.nan  # a label that the model has not either
    good = np.stack([targets[:, 1], targets[:, 0]], 1) + rng.normal(0, 0.5, (200, 2))
    same = auc_change(good, good, targets, LABELS, Dataset)
    assert same["difference"] == 0 and same["interval"] == [0, 0] and same["labels"] == 2
    worse = auc_change(good, good + rng.normal(0, 2, good.shape), targets, LABELS, Dataset)
    assert worse["difference"] < -0.1 and worse["interval"][1] < 0
    assert worse["interval"][0] < worse["difference"] < worse["interval"][1]
    with pytest.raises(InputError, match="5 positives"):
        auc_change(good[:4], good[:4], targets[:4], LABELS, Dataset)
