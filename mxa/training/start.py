"""What a training run starts from: a model, its first weights, its task with or without a teacher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data import CXRDataset, data_config
from ..evaluation.predictions import read_predictions
from ..labels import align
from ..models.load import create, fill_weights, init_weights
from ..models.weights import set_label_names
from ..task import MaskedLoss, MultiLabelDistillationTask, MultiLabelTask, Teacher
from ..task.teacher import XRV_RANGE, read_xrv_weights
from ..utils.errors import InputError
from .config import LossConfig, ModelConfig, model_arguments, without_folders

__all__ = ["build_model", "create_task", "start_weights"]

_logger = logging.getLogger(__name__)


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
    return model


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


def create_task(
    config: LossConfig, model: nn.Module, dataset: CXRDataset, preprocessing: Mapping[str, Any]
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
    if config.teacher is None:
        return MultiLabelTask(model, device=device, criterion=criterion), dataset, {}
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
    task = MultiLabelDistillationTask(
        model, teacher, config.alpha, config.temperature, device=device, criterion=criterion
    )
    return task, dataset, metadata


def _criterion(name: str, targets: np.ndarray) -> MaskedLoss:
    """Creates the labels' loss. For ``db``, the positives of a label with masked cells are scaled up to all images."""
    if name != "db":
        return MaskedLoss(name)
    present = np.maximum((~np.isnan(targets)).sum(0), 1)
    counts = (targets > 0.5).sum(0) / present * len(targets)
    return MaskedLoss(name, torch.from_numpy(counts).float(), len(targets))
