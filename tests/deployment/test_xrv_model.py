"""Our models in TorchXRayVision's hands: its datasets, its loading, its inference and its scale of the scores."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mxa
from mxa.deployment import XrvModel, open_predictor
from mxa.labels import NIH
from mxa.models.hub import SHIPPED
from mxa.models.load import create
from mxa.utils.errors import InputError

IMAGES = sorted((Path(__file__).parents[2] / "examples" / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def xrv():
    with warnings.catch_warnings():
        import torchxrayvision
    return torchxrayvision


@pytest.fixture(scope="module")
def model():
    return XrvModel(SHIPPED)


def named(scores, model):
    return {name: float(score) for name, score in zip(model.pathologies, scores, strict=True) if name}


def test_a_real_image_has_the_probabilities_of_predict(xrv, model, tmp_path):
    predictor = open_predictor(SHIPPED)
    for path in IMAGES:
        with torch.no_grad():
            found = named(model(torch.from_numpy(xrv.utils.load_image(str(path))))[0], model)
        pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255
        assert found == pytest.approx(predictor(pixels), abs=1e-5)
        assert found == pytest.approx(predictor(str(path)), abs=5.1e-3)  # as docs/clients.md says
    Image.open(IMAGES[0]).convert("L").resize((160, 160)).save(tmp_path / "160.png")
    with torch.no_grad():
        found = named(model(torch.from_numpy(xrv.utils.load_image(str(tmp_path / "160.png"))))[0], model)
    assert found == pytest.approx(predictor(str(tmp_path / "160.png")), abs=1e-5)  # nothing is resized


def test_outputs_stand_where_theirs_do(xrv, model):
    theirs = xrv.datasets.default_pathologies
    assert model.targets is model.pathologies and len(model.pathologies) == 19
    for mine, name in zip(model.pathologies, theirs, strict=False):
        assert mine in (name, "")
    assert [name for name, mine in zip(theirs, model.pathologies, strict=False) if not mine] == [
        *("Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum")
    ]
    assert model.pathologies[18:] == ["No Finding"] and set(model.pathologies) - {""} == set(NIH)
    out = model(torch.zeros(2, 1, 64, 64))
    assert out.shape == (2, 19) and (out[:, 14:18] == 0.5).all()


def test_their_evaluation_takes_it(xrv, model, made_nih):
    root = made_nih()
    dataset = xrv.datasets.NIH_Dataset(
        str(root / "images"),
        csvpath=str(root / "Data_Entry_2017.csv"),
        bbox_list_path="USE_INCLUDED_FILE",
        views=["PA", "AP"],
        unique_patients=False,
    )
    before = dict(zip(dataset.pathologies, dataset.labels.T.copy(), strict=True))
    xrv.datasets.relabel_dataset(model.pathologies, dataset, silent=True)
    assert dataset.labels.shape == (24, 19) and np.isnan(dataset.labels[:, 14:]).all()
    scores = xrv.utils.infer(model, dataset, threads=1)  # images of 40 x 44, which its own networks refuse
    assert scores.shape == dataset.labels.shape and np.isfinite(scores).all()
    for name in ("Effusion", "Infiltration", "Pleural_Thickening"):
        column = model.pathologies.index(name)
        np.testing.assert_array_equal(dataset.labels[:, column], before[name])
        path = str(root / "images" / dataset.csv["Image Index"].iloc[5])
        assert scores[5, column] == pytest.approx(mxa.predict(path)[name], abs=0.01)


def test_on_their_scale_a_threshold_is_one_half(model):
    scaled = XrvModel(SHIPPED, point="specificity95")
    calibration = open_predictor(SHIPPED).info.calibration
    chosen = calibration.thresholds["specificity95"]
    for name, threshold in zip(scaled.pathologies, scaled.op_threshs.tolist(), strict=True):
        assert threshold == pytest.approx(chosen.get(name, np.nan), nan_ok=True)
    images = torch.rand(8, 1, 160, 160) * 2048 - 1024
    with torch.no_grad():
        plain, scores = model(images), scaled(images)
        called = plain >= scaled.op_threshs
        has = ~scaled.op_threshs.isnan()
        assert 0 < called[:, has].float().mean() < 1
        assert ((scores >= 0.5) == called)[:, has].all() and (scores[:, ~has] == 0.5).all()
        scaled.op_threshs = None  # as their users switch it off
        assert torch.equal(scaled(images), plain) and model.op_threshs is None


def test_features_and_gradients(model):
    x = torch.zeros(2, 1, 100, 120, requires_grad=True)
    maps, vectors = model.features(x), model.features2(x)
    assert maps.shape == (2, 192, 3, 3)
    torch.testing.assert_close(vectors, maps.mean((2, 3)))
    model(x)[:, 7].sum().backward()
    assert x.grad.abs().sum() > 0 and x.grad.isfinite().all()


def test_a_module_of_ones_own_is_copied():
    torch.manual_seed(0)
    own = create("resnet10t", num_classes=3, in_chans=1).train()
    mxa.set_label_names(own, ("Pleural Effusion", "Support Devices", "Pulmonary fibrosis"))
    nn.init.normal_(own.fc.weight)
    model = XrvModel(own)
    assert own.training and not model.training
    assert model.pathologies[7] == "Effusion" and model.pathologies[6] == "Fibrosis"
    assert model.pathologies[18:] == ["Support Devices"]
    planes = torch.rand(2, 1, 176, 176)
    with torch.no_grad():
        found = model(planes * 2048 - 1024)
        mean, std = (sum(own.pretrained_cfg[key]) / 3 for key in ("mean", "std"))
        expected = own.eval()((planes - mean) / std).sigmoid()
    torch.testing.assert_close(found[:, [7, 18, 6]], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(1, 3, 64, 64), r"shape \(1, 3, 64, 64\); expected \(B, 1, H, W\)"),
        (torch.full((1, 1, 64, 64), 4095.0), r"values beyond \[-1024, 1024\]"),
        (torch.full((1, 1, 64, 64), torch.nan), r"values beyond \[-1024, 1024\]"),
    ],
)
def test_other_images_are_refused(model, images, said):
    with pytest.raises(InputError, match=said):
        model(images)


def test_what_cannot_be_wrapped():
    with pytest.raises(InputError, match="unknown operating point 'best': give youden"):
        XrvModel(SHIPPED, point="best")
    unnamed = create("resnet10t", num_classes=3)
    with pytest.raises(InputError, match="outputs have no names"):
        XrvModel(unnamed)
    mxa.set_label_names(unnamed, ("Edema", "Mass", "Hernia"))
    with pytest.raises(InputError, match="ResNet has no calibration"):
        XrvModel(unnamed, point="youden")
