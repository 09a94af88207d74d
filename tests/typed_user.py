"""What somebody may write who uses mxa, as a type checker sees it: `make lint` checks it, nothing runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from typing_extensions import assert_type

import mxa
from mxa import explain, layers, metrics, task
from mxa.data import CXRDataset, DataConfig, create_dataset
from mxa.deployment import Predictor, load_exported, open_predictor


def predicting(film: Image.Image) -> None:
    assert_type(mxa.predict("film.png"), dict[str, float])
    assert_type(mxa.predict(film, "runs/a"), dict[str, float])
    assert_type(mxa.predict(["a.png", film, np.zeros((9, 9))]), list[dict[str, float]])
    predictor = open_predictor(Path("runs/a"))
    assert_type(predictor, Predictor)
    assert_type(predictor(film)["Effusion"], float)
    assert_type(load_exported("exported").labels, tuple[str, ...])
    mxa.predict(film, 3)  # type: ignore[call-overload]
    print(mxa.no_such_name)  # type: ignore[attr-defined]


def naming(model: nn.Module) -> None:
    names = mxa.label_names(model)
    assert_type(names, tuple[str, ...] | None)
    mxa.set_label_names(model, ["Effusion", "Mass"])
    names = mxa.labels.CHEXPERT
    assert_type(mxa.labels.align(["Effusion"], ["Mass"]), tuple[int | None, ...])


def reading() -> None:
    data = create_dataset("nih", "NIH", "train", labels="chexpert")
    assert_type(data, CXRDataset)
    assert_type(data.records.labels, tuple[str, ...])
    assert_type(DataConfig(data="phantom").open("val"), CXRDataset)
    DataConfig(data="no-such-collection")  # type: ignore[arg-type]


def building(x: torch.Tensor, model: nn.Module) -> None:
    block: nn.Module = layers.MXABlock(dim=256)
    assert_type(layers.graft(model), nn.Module)
    assert_type(layers.FindingHead([64], 14), layers.FindingHead)
    layers.MXABlock(dim="wide")  # type: ignore[arg-type]
    block(x)


def measuring(scores: np.ndarray, targets: np.ndarray, model: nn.Module, x: torch.Tensor) -> None:
    assert_type(metrics.macro_auroc(scores, targets), float)
    assert_type(metrics.auroc(scores[:, 0], targets[:, 0]), np.ndarray)
    assert_type(explain.predict_findings(model, x), explain.Findings)
    assert_type(task.masked_bce_with_logits(x, x), torch.Tensor)
