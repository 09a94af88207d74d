"""Exports a model to a folder that runs without this package: a graph, and ``mxa.json``, which says what it is."""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from .. import __version__
from ..data import DataConfig, create_transform, data_config
from ..data.shards import ShardDataset
from ..models.load import load_model
from ..utils.config import read_settings
from ..utils.errors import InputError, require
from ..utils.files import is_empty
from .config import ExportConfig
from .graphs import write_graph
from .manifest import Manifest
from .onnx_graph import OPSET
from .predictor import Predictor
from .quantize import auc_change, check_precision
from .runtimes import load_exported, predictor_of

__all__ = ["ExportConfig", "export"]

_logger = logging.getLogger(__name__)
_CLOSE = 5e-5  # how far fp32 logits may be from PyTorch's, for the same plane
_RESIZED = 0.1  # and for an image that the graph resizes
_BATCHED = 0.1  # and how far the graph's own may be apart, in a batch and alone
_IMAGES = 8  # that both are checked on
_CALIBRATION = 256  # images of the training split that the ranges of int8 are chosen on


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the folder, whole or not at all, after the graph was compared with PyTorch.

    Returns:
        ``folder``, ``manifest``, ``bytes`` of the graph, and ``auc``: what another precision changes, or None.

    Raises:
        InputError: bad input, a graph that does not do what PyTorch does, or a precision that loses too much.
    """
    check_precision(config.format, config.precision)
    if not is_empty(config.output) and not config.overwrite:
        raise InputError(f"{config.output} exists: add --overwrite, or give another --output")
    network = load_model(config.model)
    wanted = predictor_of(network, config.model)
    normalized = create_transform(network).to_tensor
    manifest = Manifest(
        replace(wanted.info, name=Path(wanted.info.name).name),
        config.format,
        config.precision,
        config.preprocessing,
        tuple(float(v) for v in normalized.mean.ravel()),
        tuple(float(v) for v in normalized.std.ravel()),
        provenance=_provenance(config),
    )
    opened = functools.cache(functools.partial(_open, config))
    images = _some_images(config, opened)
    inputs = _calibration_inputs(opened("train"), wanted, manifest) if config.precision == "int8" else ()
    with _whole_folder(config.output) as folder:
        manifest = write_graph(network, data_config(network)["input_size"], manifest, folder, inputs)
        found = load_exported(folder)
        parity = _compare(wanted, found, images, manifest)
        change = None if config.precision == "fp32" else _change(config, opened("val"), wanted, found)
        manifest = replace(
            manifest, parity=parity, provenance=manifest.provenance | ({"auc": change} if change else {})
        )
        manifest.write(folder)
        size = sum((folder / name).stat().st_size for name in manifest.files)
    return {"folder": config.output, "manifest": manifest, "bytes": size, "auc": change}


def _provenance(config: ExportConfig) -> dict[str, Any]:
    settings = Path(config.model) / "config.yaml"
    said = read_settings(settings) if settings.is_file() else {}
    versions = {"mxa": __version__, "torch": torch.__version__, "timm": timm.__version__}
    if config.format != "torch-export":
        versions[config.format] = require(config.format, config.format).__version__
    opset = {"opset": OPSET} if config.format == "onnx" else {}
    trained = {"trained_on": said["data"]} if said.get("data") else {}
    return {**versions, **opset, **trained, "date": datetime.date.today().isoformat()}


@contextlib.contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes the place of ``output`` when the block ends well."""
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mxa-", dir=output.absolute().parent) as parent:
        folder = Path(parent) / "export"
        folder.mkdir()
        yield folder
        if output.exists():
            output.replace(Path(parent) / "old")
        shutil.move(folder, output)


def _open(config: ExportConfig, split: str) -> Any:
    """A split of the run's own collection, with the model's labels where the collection has them."""
    return config.resolved(*([config.model] if Path(config.model).is_dir() else [])).open(split)


def _images_of(dataset: Any, most: int | None = None) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Images and targets of a split, at most so many, spread over it."""
    own = copy.copy(dataset)
    own.transform = None
    if isinstance(own, ShardDataset):
        yield from islice(own, most)
        return
    count = len(own) if most is None else min(most, len(own))
    for i in np.linspace(0, len(own) - 1, count).round().astype(int):
        image, target = own[int(i)]
        yield image, np.asarray(target)


def _some_images(config: ExportConfig, opened: Callable[[str], Any]) -> list[Image.Image]:
    """Images that the graph is compared on: of the run's own collection where it can be opened, else drawn ones."""
    try:
        return [image for image, _ in _images_of(opened("val"), _IMAGES)]
    except (InputError, OSError) as error:
        if config.precision != "fp32" or config.data or config.root:
            raise
        _logger.warning("the graph is compared on drawn images: %s", error)
        return [image for image, _ in _images_of(DataConfig(data="phantom").resolved().open("val"), _IMAGES)]


def _compare(wanted: Predictor, found: Predictor, images: list[Image.Image], manifest: Manifest) -> dict[str, float]:
    """Largest differences of logits.

    They are to PyTorch for the same planes in batches, between an image in a batch and the same alone, and to PyTorch
    for images that the graph resizes.

    Raises:
        InputError: those to PyTorch are too large for fp32, or a batch changes the logits of its images.
    """
    reader = wanted.reader()
    planes = [np.round(reader.resize(image)).astype(np.uint8) for image in images]
    right = wanted.logits(planes)
    batches = {n: found.logits((planes * n)[:n]) for n in (1, 2, 7, 32)}
    alone = np.concatenate([found.logits([plane]) for plane in planes])
    parity = {
        name: max(float(np.abs(z - np.concatenate([one] * n)[:n]).max()) for n, z in batches.items())
        for name, one in (("logits", right), ("logits_batched", alone))
    }
    if manifest.preprocessing == "inside":
        gray = [np.asarray(image.convert("F")).round().clip(0, 255).astype(np.uint8) for image in images]
        whole = np.concatenate([found.logits([plane]) for plane in gray])
        right = wanted.logits([reader.resize(plane) for plane in gray])
        parity["logits_resized"] = float(np.abs(whole - right).max())
    if parity["logits_batched"] > _BATCHED:
        raise InputError(
            f"in batches the graph's logits differ by {parity['logits_batched']:.1g} from those of single images, more "
            f"than {_BATCHED:g}, a fault of its runtime: it was not kept; export with another --precision or --format"
        )
    limits = {"logits": _CLOSE, "logits_resized": _RESIZED}
    for name, limit in limits.items():
        value = parity.get(name, 0.0)
        if manifest.precision == "fp32" and value > limit:
            raise InputError(
                f"the graph is {value:.1g} from PyTorch in its {name.replace('_', ', ')}, more than {limit:g}: "
                "it was not kept; export to another format"
            )
    return parity


def _calibration_inputs(dataset: Any, wanted: Predictor, manifest: Manifest) -> list[np.ndarray]:
    """Inputs of the network, ``(1, C, H, W)``, of training images."""
    reader = wanted.reader()
    return [manifest.normalize(reader.resize(image)[None]) for image, _ in _images_of(dataset, _CALIBRATION)]


def _change(config: ExportConfig, dataset: Any, wanted: Predictor, found: Predictor) -> dict[str, Any]:
    """What the precision changes in the macro AUC of the validation patients.

    Raises:
        InputError: more than ``max_drop`` is lost.
    """
    reader, logits, targets = wanted.reader(), ([], []), []
    samples = _images_of(dataset)
    while part := list(islice(samples, 32)):
        planes = [reader.resize(image) for image, _ in part]
        targets += [target for _, target in part]
        for kept, predictor in zip(logits, (wanted, found), strict=True):
            kept.append(predictor.logits(planes))
    change = auc_change(*map(np.concatenate, logits), np.stack(targets), wanted.labels, dataset)
    if change["difference"] < -config.max_drop:
        raise InputError(
            f"{config.precision} loses {-change['difference']:.4f} of the validation macro AUC, more than --max-drop "
            f"{config.max_drop}: nothing was kept; export with another --precision"
        )
    return change
