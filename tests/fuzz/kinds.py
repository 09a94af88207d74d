"""Every kind of file that is read: how one is made, how it is read, and what a right result is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from mxa.commands.prepare import PrepareConfig, prepare
from mxa.data import DataConfig, create_dataset
from mxa.data.image_io import read_image
from mxa.evaluation.calibrate import read_calibration
from mxa.evaluation.evaluate import weights_sha256
from mxa.evaluation.predictions import of_records, read_predictions
from mxa.labels import CHEXPERT
from mxa.models import save_pretrained, set_label_names
from mxa.models.load import load_model
from mxa.training.checkpoint import load_checkpoint, save_checkpoint
from mxa.training.config import TrainConfig
from mxa.utils.command_line import parse

from ..data.dicom_files import dataset as dicom
from ..data.dicom_files import save
from ..data.helpers import boxes_of
from .mutations import hostile_values, mutate

__all__ = ["KINDS", "Kind"]

LABELS = ("Edema", "Mass", "Effusion")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: Writes the files of one case into an empty folder; returns those that are damaged, in turn.
        read: Reads the folder as a command does.
        judge: Raises an AssertionError where a result is wrong: ``judge(result, right, folder)``. ``right`` is the
            result of the files as they were made.
        damage: Damages the content of a file.
    """

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    judge: Callable[[Any, Any, Path], None]
    damage: Callable[[bytes, np.random.Generator], bytes] = mutate


def _picture(seed: int = 0, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    noise = np.random.default_rng(seed).integers(0, 40, size)
    return ((3 * rows + 2 * columns) % 200 + noise).astype(np.uint8)


def _image(name: str, **options: Any) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        Image.fromarray(_picture()).save(folder / name, **options)
        return [folder / name]

    return make


def _deep(folder: Path) -> list[Path]:
    values = _picture().astype(np.uint16) * 256
    Image.fromarray(values).save(folder / "x.tif", tiffinfo={262: 0})
    return [folder / "x.tif"]


def _dicom(folder: Path) -> list[Path]:
    values = _picture().astype(np.uint16) * 16
    table = dict(WindowCenter=2048, WindowWidth=4096, RescaleSlope=1, RescaleIntercept=0, PixelPaddingValue=0)
    return [save(folder / "x.dcm", dicom(values, BitsStored=12, HighBit=11, **table))]


def _read_one(folder: Path) -> np.ndarray:
    return np.asarray(read_image(next(folder.iterdir())))


def _is_gray(result: np.ndarray, right: np.ndarray, folder: Path) -> None:
    assert result.ndim == 2 and np.isfinite(result).all() and result.min() >= 0 and result.max() <= 255


def _is_the_same(result: Any, right: Any, folder: Path) -> None:
    if isinstance(right, dict):
        assert result.keys() == right.keys()
        for key, value in right.items():
            _is_the_same(result[key], value, folder)
    elif isinstance(right, np.ndarray | torch.Tensor):
        assert np.array_equal(np.asarray(result), np.asarray(right), equal_nan=np.asarray(right).dtype.kind == "f")
    else:
        assert result == right


def _model(folder: Path, sha256: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(LABELS), in_chans=3)
    set_label_names(model, LABELS)
    save_pretrained(model, folder)
    if sha256:
        config = json.loads((folder / "config.json").read_text())
        config["sha256"] = weights_sha256(str(folder))
        (folder / "config.json").write_text(json.dumps(config))


def _weights(sha256: bool, name: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        _model(folder, sha256)
        return [folder / name]

    return make


def _loaded(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def _is_what_the_file_holds(result: dict[str, torch.Tensor], right: Any, folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    for key, value in result.items():
        if value.dtype.is_floating_point:
            assert value.isfinite().all(), key
        if key in held and held[key].shape == value.shape:
            assert torch.equal(held[key].to(value.dtype), value), key
    head = result["fc.weight"]
    assert head.shape == held["fc.weight"].shape, "a head that is not the file's"


def _calibration(folder: Path) -> list[Path]:
    _model(folder, False)
    thresholds = {point: dict.fromkeys(LABELS, 0.4) for point in ("youden", "specificity95", "f1")}
    counts = {label: [20, 30] for label in LABELS}
    provenance = {"weights_sha256": weights_sha256(str(folder)), "images": 50, "positives_and_negatives": counts}
    content = {"temperatures": dict.fromkeys(LABELS, 1.5), "thresholds": thresholds, "provenance": provenance}
    (folder / "calibration.json").write_text(json.dumps(content))
    return [folder / "calibration.json"]


def _is_a_calibration(result: Any, right: Any, folder: Path) -> None:
    assert all(0.01 < t < 100 for t in result.temperatures.values())
    assert all(0 <= t <= 1 for by_label in result.thresholds.values() for t in by_label.values())
    low, high = (result.probability("Edema", logit) for logit in (-1.0, 1.0))
    assert 0 <= low < high <= 1


def _table(suffix: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        rows = [
            {"path": f"{i}.png", "patient": f"p{i // 2}", "sex": "F", "age": "60", "Edema": i % 2, "Mass": (i // 2) % 2}
            for i in range(24)
        ]
        frame = pd.DataFrame(rows)
        path = folder / f"table{suffix}"
        frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
        return [path]

    return make


def _records(collection: str, name: str = "") -> Callable[[Path], Any]:
    return lambda folder: create_dataset(collection, folder / name if name else folder, "all", views="all").records


def _is_a_table(result: Any, right: Any, folder: Path) -> None:
    assert len(result) and result.targets.shape == (len(result), len(result.labels))
    assert (np.isnan(result.targets) | (result.targets >= 0) & (result.targets <= 1)).all()


def _chexpert(folder: Path) -> list[Path]:
    head = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]
    for split, patients in (("train", range(1, 9)), ("valid", range(100, 103))):
        rows = [
            [f"CheXpert-v1.0-small/{split}/patient{p:05d}/study1/view1_frontal.jpg", "Male", 60, "Frontal", "AP"]
            + [("", "0.0", "-1.0", "1.0")[(p + j) % 4] for j in range(14)]
            for p in patients
        ]
        pd.DataFrame(rows, columns=head).to_csv(folder / f"{split}.csv", index=False)
    return [folder / "train.csv"]


def _boxes(folder: Path) -> list[Path]:
    path = folder / "BBox_List_2017.csv"
    head = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    path.write_text(
        head + "".join(f"0000{i}_000.png,Mass,{10.5 * i},{20 + i},{100.25},{50},,,\n" for i in range(1, 20))
    )
    return [path]


def _box_table(folder: Path) -> list[Path]:
    path = folder / "boxes.csv"
    rows = "".join(f"images/{i}.png,{('Mass', 'Nodule')[i % 2]},0.{i:02},0.25,0.5,0.75\n" for i in range(1, 30))
    path.write_text("path,label,x1,y1,x2,y2\n" + rows)
    return [path]


def _box_json(folder: Path) -> list[Path]:
    """ChestX-Det's list and COCO's object, in turn."""
    corners = [[10 * i, 20.5, 10 * i + 50, 90] for i in range(12)]
    square = [[10, 10], [200, 10], [200, 150.5]]
    listed = [{"file_name": f"{i}.png", "syms": ["Mass"], "boxes": [box]} for i, box in enumerate(corners)]
    listed += [{"file_name": "12.png", "syms": ["Nodule"], "boxes": [], "polygons": [square]}]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in range(12)],
        "categories": [{"id": 1, "name": "Mass"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [10 * i, 20.5, 50, 90]} for i in range(12)],
    }
    contents = {"list.json": listed, "coco.json": coco}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return [folder / name for name in contents]


def _read_box_json(folder: Path) -> dict[str, Any]:
    return {f"{path.name} {k}": v for path in sorted(folder.iterdir()) for k, v in boxes_of(path).items()}


def _are_boxes(result: Any, right: Any, folder: Path) -> None:
    for findings in result.values():
        for boxes in findings.values():
            assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, :2] < boxes[:, 2:]).all()


def _checkpoint(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    tensors = {f"layer{i}.weight": torch.randn(64, 64) for i in range(8)}
    save_checkpoint({"model": tensors, "epoch": 3, "config": {"lr": 0.1}, "bad": [1, 2]}, folder)
    return [folder / "checkpoint.pt"]


def _yaml(folder: Path) -> list[Path]:
    lines = "data: table\nroot: my.csv\nmodel: efficientvit_ml_m0\nepochs: 3\nlr: 1e-3\nscale: [0.8, 1.0]\n"
    lines += "labels: [Edema, Mass]\nmodel_args: {mxa_init_values: 0.0}\namp: null\ncompile: false\n"
    (folder / "config.yaml").write_text(lines)
    return [folder / "config.yaml"]


def _read_yaml(folder: Path) -> tuple[TrainConfig, Any]:
    given = ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    return parse(TrainConfig, given, "mxa train"), DataConfig().resolved(folder)


def _is_a_configuration(result: tuple[TrainConfig, Any], right: Any, folder: Path) -> None:
    config, data = result
    assert isinstance(config.epochs, int) and isinstance(config.lr, float) and isinstance(config.scale, tuple)
    assert isinstance(data.data, str)


def _shards(folder: Path) -> list[Path]:
    source = folder / "source"
    source.mkdir()
    rows = [{"path": f"{i}.png", "patient": f"p{i}", "Edema": i % 2} for i in range(6)]
    for i, row in enumerate(rows):
        Image.fromarray(_picture(i)).save(source / row["path"])
    pd.DataFrame(rows).to_csv(source / "table.csv", index=False)
    output = folder / "shards"
    fields = {"format": "png", "shard_size": 3, "workers": 1, "size": 32}
    prepare(PrepareConfig(output, data="table", root=str(source / "table.csv"), **fields))
    return sorted(path for path in output.iterdir() if path.suffix in (".tar", ".gz") or path.name == "manifest.json")


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    dataset = create_dataset("shards", folder / "shards", "all")
    images = {dataset.records.path(i).rpartition("/")[2]: np.asarray(image) for i, (image, _) in enumerate(dataset)}
    return {**images, "targets": dataset.records.targets}


def _scores(folder: Path) -> list[Path]:
    _table(".csv")(folder)
    records = create_dataset("table", folder / "table.csv", "all", views="all").records
    logits = np.random.default_rng(0).normal(size=(len(records), len(records.labels)))
    of_records(records, logits, {"split": "all", "model": "m"}).save(folder / "scores.parquet")
    return [folder / "scores.parquet"]


def _read_scores(folder: Path) -> dict[str, np.ndarray]:
    found = read_predictions(folder / "scores.parquet")
    found.check()
    return {"logits": found.logits, "targets": found.targets, "labels": found.labels}


KINDS = {
    "safetensors": Kind(_weights(False, "model.safetensors"), _loaded, _is_what_the_file_holds),
    "safetensors with a hash": Kind(_weights(True, "model.safetensors"), _loaded, _is_the_same),
    "config": Kind(_weights(False, "config.json"), _loaded, _is_what_the_file_holds, hostile_values),
    "calibration": Kind(_calibration, read_calibration, _is_a_calibration, hostile_values),
    "png": Kind(_image("x.png"), _read_one, _is_the_same),
    "jpeg": Kind(_image("x.jpg", quality=90), _read_one, _is_gray),
    "tiff": Kind(_deep, _read_one, _is_gray),
    "tiff, compressed": Kind(_image("x.tif", compression="tiff_adobe_deflate"), _read_one, _is_gray),
    "dicom": Kind(_dicom, _read_one, _is_gray),
    "csv": Kind(_table(".csv"), _records("table", "table.csv"), _is_a_table),
    "csv, gzip": Kind(_table(".csv.gz"), _records("table", "table.csv.gz"), _is_a_table),
    "csv of CheXpert": Kind(_chexpert, _records("chexpert"), _is_a_table),
    "parquet": Kind(_table(".parquet"), _records("table", "table.parquet"), _is_a_table),
    "scores": Kind(_scores, _read_scores, _is_the_same),
    "boxes": Kind(_boxes, boxes_of, _are_boxes),
    "box table": Kind(_box_table, lambda folder: boxes_of(folder / "boxes.csv"), _are_boxes),
    "box json": Kind(_box_json, _read_box_json, _are_boxes, hostile_values),
    "checkpoint": Kind(_checkpoint, load_checkpoint, _is_the_same),
    "yaml": Kind(_yaml, _read_yaml, _is_a_configuration, hostile_values),
    "shards": Kind(_shards, _read_shards, _is_the_same),
}
