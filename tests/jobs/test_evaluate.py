import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from mxa.data import create_dataset, create_transform
from mxa.errors import InputError
from mxa.evaluate import EvaluateConfig, evaluate
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained, set_label_names


@pytest.fixture
def config(run, table, tmp_path):
    def build(**fields) -> EvaluateConfig:
        small = {"model": str(run), "data": "table", "root": table, "workers": 0, "output": tmp_path / "out"}
        return EvaluateConfig(**{**small, **fields})

    return build


def test_metrics_are_those_of_a_loop_by_hand(config, run, table, tmp_path):
    metrics = evaluate(config(replicates=50))
    model, dataset = load_model(run), create_dataset("table", table, "test")
    dataset.transform = create_transform(model)
    with torch.no_grad():
        scores = np.stack([model(x[None])[0].numpy() for x, _ in dataset])
    target = dataset.records.targets[:, 2]
    row = metrics["labels"]["Bright"]
    assert row["auc"] == pytest.approx(roc_auc_score(target, scores[:, 2]), abs=1e-6)
    assert row["accuracy"] == pytest.approx(((scores[:, 2] > 0) == target).mean(), abs=1e-6)
    assert (row["n_pos"], row["n_neg"]) == (target.sum(), (1 - target).sum())
    assert metrics["images"] == len(dataset) == 12
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    with (tmp_path / "out" / "metrics.csv").open() as file:
        assert [line["label"] for line in csv.DictReader(file)] == ["Edema", "Mass", "Bright"]


def test_undefined_is_null_and_out_of_the_mean(config):
    metrics = evaluate(config(replicates=10))
    assert metrics["undefined"] == ["Mass"]
    assert metrics["labels"]["Mass"]["auc"] is None
    assert metrics["labels"]["Mass"]["n_pos"] == 0
    defined = [metrics["labels"][name]["auc"] for name in ("Edema", "Bright")]
    assert metrics["macro_auc"] == pytest.approx(np.mean(defined), abs=1e-5)
    assert metrics["labels"]["Edema"]["n_pos"] + metrics["labels"]["Edema"]["n_neg"] < 12


def test_labels_that_the_collection_lacks_are_masked(config, tmp_path):
    model = timm.create_model("efficientvit_ml_m0", img_size=64)
    save_pretrained(model, tmp_path / "chexpert")
    metrics = evaluate(config(model=str(tmp_path / "chexpert"), replicates=10))
    assert metrics["labels"]["Edema"]["n_pos"] > 0
    fracture = metrics["labels"]["Fracture"]
    assert (fracture["auc"], fracture["n_pos"], fracture["n_neg"]) == (None, 0, 0)


def test_model_without_names_is_refused(config, tmp_path):
    model = timm.create_model("efficientvit_ml_m0", num_classes=3, img_size=64)
    save_pretrained(model, tmp_path / "unnamed")
    with pytest.raises(InputError, match="no names"):
        evaluate(config(model=str(tmp_path / "unnamed")))
    set_label_names(model, ("a", "b", "c"))
    save_pretrained(model, tmp_path / "strange")
    with pytest.raises(InputError, match="none of the labels a, b, c; the collection has"):
        evaluate(config(model=str(tmp_path / "strange")))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_an_error_unless_skipped(config, table, tmp_path, workers):
    for path in table.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = np.zeros((8, 8), dtype=np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "nan.tiff")
    (tmp_path / "6.png").write_bytes((tmp_path / "nan.tiff").read_bytes())
    (tmp_path / "7.png").unlink()
    broken = {"root": tmp_path / "table.csv", "workers": workers, "replicates": 10}
    with pytest.raises(InputError, match=r"6\.png has pixel values that are not finite"):
        evaluate(config(**broken))
    metrics = evaluate(config(**broken, skip_bad=True))
    assert metrics["images"] == 10
    assert metrics["bad_images"] == [str(tmp_path / "6.png"), str(tmp_path / "7.png")]


def test_splits(config):
    counts = {split: evaluate(config(split=split, replicates=5))["images"] for split in ("all", "train", "val", "test")}
    assert counts == {"all": 48, "train": 24, "val": 12, "test": 12}
    with pytest.raises(InputError, match="unknown split 'valid'"):
        evaluate(config(split="valid"))


def test_uncertain_labels_are_masked_in_every_split(config, table, tmp_path):
    folder = shutil.copytree(table.parent, tmp_path / "uncertain")
    lines = [line.split(",") for line in (folder / "table.csv").read_text().splitlines()]
    text = "\n".join(",".join([*row[:4], "-1" if row[4] == "1" else row[4], *row[5:]]) for row in lines)
    (folder / "table.csv").write_text(text)
    metrics = evaluate(config(root=folder / "table.csv", split="train", replicates=5))
    assert metrics["labels"]["Edema"]["n_pos"] == 0


def test_blank_cells_count_as_told(config):
    known = [evaluate(config(blank=blank))["labels"]["Edema"]["n_neg"] for blank in (None, "negative")]
    assert known[1] > known[0] > 0
