"""What a training run starts from: a model, its first weights, its task with or without a teacher."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data import CXRDataset, create_dataset, data_config
from ..data.boxes import BoxedDataset, boxed_images
from ..data.records import Records
from ..evaluation.predictions import read_predictions
from ..labels import align
from ..layers import MeanROIHead, ROIHead, attach_finding_head
from ..layers.attach import finding_rows
from ..models.hub import SHIPPED
from ..models.load import create, fill_weights, init_weights
from ..models.weights import set_label_names
from ..task import MaskedLoss, MultiLabelDistillationTask, MultiLabelTask, Teacher
from ..task.teacher import XRV_RANGE, read_xrv_weights
from ..utils.errors import InputError
from .config import ModelConfig, TrainConfig, model_arguments, read_mapping, without_folders

__all__ = ["build_model", "create_task", "freeze", "open_boxes", "start_weights", "suggest_start", "with_labels"]

_FEW = 5000  # images, of which random weights learn little

_logger = logging.getLogger(__name__)


def with_labels(config: TrainConfig) -> TrainConfig:
    """Gives images without labels those of the teacher's file.

    Raises:
        InputError: there is no such file.
    """
    if config.data != "images" or config.labels_from:
        return config
    if not (config.teacher or "").endswith(".parquet"):
        raise InputError("--data images has no labels: run mxa teach on it, and give its file with --teacher")
    return replace(config, labels_from=config.teacher)


def build_model(config: ModelConfig, labels: tuple[str, ...]) -> nn.Module:
    """Builds a run's model and names its outputs.

    The model's preprocessing becomes that of the run: the whole image, squashed to the run's size; timm's own models
    would crop. A model that starts from TorchXRayVision's weights takes one channel in [-1024, 1024], as they do.
    """
    optional = {k: v for k in ("drop_rate", "drop_path_rate") if (v := getattr(config, k))}
    from_xrv = (config.init or "").startswith("xrv:")
    if from_xrv:
        optional["in_chans"] = 1
    model = create(config.model, config.img_size, **{"num_classes": len(labels), **optional, **model_arguments(config)})
    if from_xrv:
        model.pretrained_cfg.update(XRV_RANGE, input_size=(1, 224, 224))
    size = data_config(model, config.img_size)["input_size"]
    model.pretrained_cfg.update(crop_pct=1.0, crop_mode="squash", input_size=tuple(size))
    set_label_names(model, labels)
    if config.finding_head:
        try:
            attach_finding_head(model)
        except ValueError as error:
            raise InputError(f"--finding-head: {error}") from None
    return model


def open_boxes(config: TrainConfig, model: nn.Module, train_set: CXRDataset) -> BoxedDataset | None:
    """Opens the images with boxes that a run learns places from; None where it has none.

    Those of the labels' collection are the images of its training split. Those of another are of its training split
    too, so that its validation patients can tell what was learnt. If it is another part of the same collection, the
    patients who validate or test the labels are left out of it.

    Raises:
        InputError: a model without a finding head or MXA, no box of one of its labels, or a collection without boxes.
    """
    if config.boxes is None:
        return None
    rows = finding_rows(model)
    if rows is None:
        if not any(isinstance(module, (ROIHead, MeanROIHead)) for module in model.modules()):
            raise InputError("--boxes need a model with a finding head or with MXA: add --finding-head")
        if config.compile:
            raise InputError("--boxes of MXA blocks are compared through hooks, which --compile leaves out: drop one")
        rows = range(len(train_set.labels))
    if config.boxes_data is None:
        collection, root, records = config.data, config.root, train_set.records
    else:
        collection, root = config.boxes_data, config.boxes_root
        records = create_dataset(collection, root, "train").records
        if collection == config.data:
            records = _without_held_out(records, config, train_set)
    images = boxed_images(records, collection, root, config.boxes)
    labels = [train_set.labels[row] for row in rows]
    boxed = BoxedDataset(records, images, labels, config.boxes_reduce, seed=config.seed, on_bad="raise")
    count = sum(map(len, boxed.boxes))
    _logger.info("boxes: %d of %d images, of %s", count, len(boxed), ", ".join(boxed.findings))
    return boxed


def start_weights(config: ModelConfig, model: nn.Module) -> set[str]:
    """Fills the model with the weights of ``--init``.

    Returns:
        The keys that were filled, without those of the head.
    """
    if config.init is None:
        return set()
    if not config.init.startswith("xrv:"):
        return init_weights(model, config.init)
    state, names = read_xrv_weights(config.init.removeprefix("xrv:"))
    return fill_weights(model, state, names, config.init)


def suggest_start(config: TrainConfig, count: int) -> None:
    """Says that there are weights to start from, where few images train random ones."""
    if config.init is not None or count >= _FEW or config.data == "phantom":
        return
    shipped = config.model == SHIPPED.partition(".")[0]
    start = SHIPPED if shipped else "WEIGHTS"
    _logger.info("%d images train random weights; --init %s starts from trained ones (docs/weights.md)", count, start)


def _without_held_out(records: Records, config: TrainConfig, train_set: CXRDataset) -> Records:
    """Leaves out the patients of the labels' collection who do not train."""
    every = replace(config, views="all", labels=None, merge=False).open("all").records
    held_out = set(every.patients.tolist()) - set(train_set.records.patients.tolist())
    kept = np.array([patient not in held_out for patient in records.patients.tolist()])
    if not kept.all():
        _logger.info("boxes: %d images of patients who validate or test are left out", (~kept).sum())
    return records.subset(np.flatnonzero(kept))


def create_task(
    config: TrainConfig, model: nn.Module, dataset: CXRDataset, preprocessing: Mapping[str, Any]
) -> tuple[MultiLabelTask, CXRDataset, dict[str, Any]]:
    """Creates the task of a run.

    Returns:
        The task; the training set, whose targets hold the teacher's logits where these were computed beforehand; and
        what ``teacher.json`` says of the teacher.

    Raises:
        InputError: a teacher that cannot be had, or that lacks images.
    """
    device = next(model.parameters()).device
    criterion = _criterion(config.loss, dataset.records.targets).to(device)
    pos_weight = positive_weights(config.pos_weight, dataset.labels, dataset.records.targets)
    shared = {"pos_weight": pos_weight, "device": device, "criterion": criterion, "box_weight": config.box_weight}
    if config.teacher is None:
        return MultiLabelTask(model, **shared), dataset, {}
    metadata = {
        **without_folders({"teacher": config.teacher}),
        "alpha": config.alpha,
        "temperature": config.temperature,
    }
    if config.teacher.endswith(".parquet"):
        path = Path(config.teacher)
        records = dataset.records
        found = read_predictions(path, records)
        if not np.isfinite(found.logits).any():
            raise InputError(f"{path} has no logit of {', '.join(found.labels) or 'a label of the student'}")
        blank = int((~np.isfinite(found.logits)).all(1).sum())
        _logger.info("teacher %s: logits of %s; %d images have none", path, ", ".join(found.labels), blank)
        metadata |= {"sha256": None, **found.metadata}
        logits = np.full(records.targets.shape, np.nan)
        for column, i in enumerate(align(found.labels, records.labels)):
            if i is not None:
                logits[:, column] = found.logits[:, i]
        both = records.labels + tuple(f"teacher: {name}" for name in records.labels)
        records = replace(records, labels=both, targets=np.concatenate([records.targets, logits], 1, dtype=np.float32))
        teacher, dataset = None, type(dataset)(records)
    else:
        teacher = Teacher(config.teacher, dataset.labels, preprocessing, sha256=config.teacher_sha256, device=device)
        metadata["sha256"] = teacher.sha256
    task = MultiLabelDistillationTask(model, teacher, config.alpha, config.temperature, **shared)
    return task, dataset, metadata


def positive_weights(
    wanted: str | Mapping[str, float] | None, labels: Sequence[str], targets: np.ndarray
) -> torch.Tensor | None:
    """Weights of the positive term of each label, ``(L,)``.

    Args:
        wanted: ``"balanced"``, the negatives divided by the positives among the labels that are present (1 where either
            is missing); weights by label, 1 for all others; or None.
        labels: Names of the L labels.
        targets: ``(N, L)`` of the training split: 1, 0, NaN where masked.

    Raises:
        InputError: an unknown label, or a weight that is not a number above 0.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        positives, negatives = (targets > 0.5).sum(0), (targets <= 0.5).sum(0)
        both = (positives > 0) & (negatives > 0)
        return torch.from_numpy(np.where(both, negatives / np.maximum(positives, 1), 1.0)).float()
    given = read_mapping(wanted, "--pos-weight, unless it is balanced,")
    columns = align(labels, given)
    if unknown := [name for name, column in zip(given, columns, strict=True) if column is None]:
        raise InputError(f"--pos-weight: the run has no label {', '.join(unknown)}, only {', '.join(labels)}")
    weights = torch.ones(len(labels))
    for column, (name, value) in zip(columns, given.items(), strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InputError(f"--pos-weight: {name} must be a number above 0, got {value!r}")
        weights[column] = value
    return weights


def _criterion(name: str, targets: np.ndarray) -> MaskedLoss:
    """Creates the labels' loss. For ``db``, the positives of a label with masked cells are scaled up to all images."""
    if name != "db":
        return MaskedLoss(name)
    present = np.maximum((~np.isnan(targets)).sum(0), 1)
    counts = (targets > 0.5).sum(0) / present * len(targets)
    return MaskedLoss(name, torch.from_numpy(counts).float(), len(targets))


def freeze(model: nn.Module, filled: set[str]) -> list[nn.Module]:
    """Stops the gradient of every parameter that was filled; returns the modules to keep in eval mode (batch norm)."""
    frozen = []
    for name, module in model.named_modules():
        keys = [f"{name}.{k}" for k, _ in module.named_parameters(recurse=False)]
        if keys and filled.issuperset(keys):
            module.requires_grad_(False)
            frozen.append(module)
    return frozen
