import csv
import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from mxa.data import create_dataset, create_transform
from mxa.evaluation.evaluate import EvaluateConfig, evaluate
from mxa.metrics import sigmoid
from mxa.models.load import load_model
from mxa.models.weights import save_pretrained, set_label_names
from mxa.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def config(run, table, tmp_path):
    def build(**fields) -> EvaluateConfig:
        small = {"models": (str(run),), "data": "table", "root": table, "workers": 0, "output": tmp_path / "out"}
        return EvaluateConfig(**{**small, **fields})

    return build


def one(config: EvaluateConfig) -> dict:
    """The report of the only model."""
    result = evaluate(config)
    assert result["paired"] == []
    return result["models"][0]


def test_metrics_are_those_of_a_loop_by_hand(config, run, table, tmp_path):
    metrics = one(config(replicates=50))
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
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())["models"][0]
    with (tmp_path / "out" / "metrics.csv").open() as file:
        assert [line["label"] for line in csv.DictReader(file)] == ["Edema", "Mass", "Bright"]


def test_undefined_is_null_and_out_of_the_mean(config):
    metrics = one(config(replicates=10))
    assert metrics["undefined"] == ["Mass"]
    assert metrics["labels"]["Mass"]["auc"] is None
    assert metrics["labels"]["Mass"]["n_pos"] == 0
    defined = [metrics["labels"][name]["auc"] for name in ("Edema", "Bright")]
    assert metrics["macro_auc"] == pytest.approx(np.mean(defined), abs=1e-5)
    assert metrics["labels"]["Edema"]["n_pos"] + metrics["labels"]["Edema"]["n_neg"] < 12


def test_labels_that_the_collection_lacks_are_masked(config, tmp_path):
    model = timm.create_model("efficientvit_ml_m0", img_size=64)
    save_pretrained(model, tmp_path / "chexpert")
    metrics = one(config(models=(str(tmp_path / "chexpert"),), replicates=10))
    assert metrics["labels"]["Edema"]["n_pos"] > 0
    fracture = metrics["labels"]["Fracture"]
    assert (fracture["auc"], fracture["n_pos"], fracture["n_neg"]) == (None, 0, 0)


def test_model_without_names_is_refused(config, tmp_path):
    model = timm.create_model("efficientvit_ml_m0", num_classes=3, img_size=64)
    save_pretrained(model, tmp_path / "unnamed")
    with pytest.raises(InputError, match="no names"):
        evaluate(config(models=(str(tmp_path / "unnamed"),)))
    set_label_names(model, ("a", "b", "c"))
    save_pretrained(model, tmp_path / "strange")
    with pytest.raises(InputError, match="none of the labels a, b, c; the collection has"):
        evaluate(config(models=(str(tmp_path / "strange"),)))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_an_error_unless_skipped(config, table, tmp_path, workers, caplog):
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
    metrics = one(config(**broken, skip_bad=True))
    assert metrics["images"] == 10
    assert metrics["metadata"][0]["images_left_out"] == 2
    assert f"do not read: {tmp_path / '6.png'}, {tmp_path / '7.png'}" in caplog.text
    for name in ("report.html", "model_card.md", "metrics.json"):
        assert "7.png" not in (tmp_path / "out" / name).read_text()


def test_splits(config):
    counts = {split: one(config(split=split, replicates=5))["images"] for split in ("all", "train", "val", "test")}
    assert counts == {"all": 48, "train": 24, "val": 12, "test": 12}
    with pytest.raises(InputError, match="unknown split 'valid'"):
        evaluate(config(split="valid"))


def test_uncertain_labels_are_masked_in_every_split(config, table, tmp_path):
    folder = shutil.copytree(table.parent, tmp_path / "uncertain")
    lines = [line.split(",") for line in (folder / "table.csv").read_text().splitlines()]
    text = "\n".join(",".join([*row[:4], "-1" if row[4] == "1" else row[4], *row[5:]]) for row in lines)
    (folder / "table.csv").write_text(text)
    metrics = one(config(root=folder / "table.csv", split="train", replicates=5))
    assert metrics["labels"]["Edema"]["n_pos"] == 0


def test_blank_cells_count_as_told(config):
    known = [one(config(blank=blank, replicates=5))["labels"]["Edema"]["n_neg"] for blank in (None, "negative")]
    assert known[1] > known[0] > 0


def test_the_report_folder(config, tmp_path, run, monkeypatch):
    monkeypatch.undo()  # the pictures are drawn
    metrics = one(config(replicates=10, note="made data"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("report.html", "metrics.json", "metrics.csv", "model_card.md", "predictions"),
    }
    metadata = metrics["metadata"][0]
    assert metadata["weights_sha256"] == hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert (metadata["model"], metadata["data"], metadata["split"], metadata["uncertain"]) == (
        "run",
        "table",
        "test",
        "masked",
    )
    assert metrics["chosen_on"] == {"split": "val", "images": 12, "patients": 6}
    for name in ("report.html", "model_card.md", "metrics.json"):
        text = (tmp_path / "out" / name).read_text()
        assert metadata["weights_sha256"] in text and str(tmp_path) not in text
    assert "made data" in (tmp_path / "out" / "report.html").read_text()


def test_every_table_is_made_again_from_the_scores(config, tmp_path):
    first = one(config(replicates=20))
    scores = tmp_path / "out" / "predictions" / "run.parquet"
    again = one(config(models=(str(scores),), output=tmp_path / "again", replicates=20))
    assert again["metadata"][0].pop("scores") == "run.parquet"
    assert again == first
    frame = pd.read_parquet(scores)
    names = [n for n in frame if n.startswith("logit:")]
    plain = frame[["image", *names]]  # what another program would write: targets come from the collection
    plain.to_csv(tmp_path / "theirs.csv", index=False)
    theirs = one(config(models=(str(tmp_path / "theirs.csv"),), output=tmp_path / "theirs", replicates=20))
    assert theirs["labels"] == first["labels"] and theirs["macro_auc_interval"] == first["macro_auc_interval"]


def test_several_models_and_seeds(config, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "b-seed0")
    for name in ("b-seed1", "c"):
        shutil.copytree(run, tmp_path / name)
    result = evaluate(config(models=(str(run), f"{other},{tmp_path / 'b-seed1'}", str(tmp_path / "c")), replicates=10))
    assert [m["name"] for m in result["models"]] == ["run", "b (2 seeds)", "c"]
    assert [(p["name"], p["minus"]) for p in result["paired"]] == [("b (2 seeds)", "run"), ("c", "run")]
    assert result["paired"][1]["macro_auc_interval"] == [0, 0]
    assert {p.name for p in (tmp_path / "out" / "predictions").iterdir()} == {
        f"{n}.parquet" for n in ("run", "b-seed0", "b-seed1", "c")
    }
    with pytest.raises(InputError, match="is named twice"):
        evaluate(config(models=(str(run), str(run))))
    again = shutil.copytree(run, tmp_path / "deep" / "run")
    assert [m["name"] for m in evaluate(config(models=(str(run), str(again)), replicates=5))["models"]] == [
        "run",
        "deep-run",
    ]


def test_operating_points_need_validation_patients_of_their_own(config):
    assert "chosen_on" not in one(config(validation=False, replicates=5))
    for split in ("val", "all", "train"):
        assert "chosen_on" not in one(config(split=split, replicates=5))


def test_studies(config, table, tmp_path):
    lines = table.read_text().splitlines()
    folder = shutil.copytree(table.parent, tmp_path / "studies")
    rows = [f"{line},{'study' if i == 0 else (i - 1) // 2}" for i, line in enumerate(lines)]
    (folder / "table.csv").write_text("\n".join(rows))
    metrics = one(config(root=folder / "table.csv", level="study-mean", replicates=5))
    assert metrics["images"] == metrics["patients"] == 6 and metrics["chosen_on"]["images"] == 6
    assert metrics["metadata"][0]["level"] == "study, mean of its images"


def test_groups_by_any_column_of_the_table(config, table, tmp_path):
    folder = shutil.copytree(table.parent, tmp_path / "groups")
    lines = table.read_text().splitlines()
    text = "\n".join(f"{line},{'scanner' if i == 0 else 'xy'[i % 2]}" for i, line in enumerate(lines))
    (folder / "table.csv").write_text(text)
    labels = {"root": folder / "table.csv", "by": "scanner,view", "min_group": 5, "replicates": 5}
    groups = one(config(**labels))["groups"]
    assert list(groups) == ["scanner", "view"]
    assert {name: g["images"] for name, g in groups["scanner"]["groups"].items()} == {"x": 6, "y": 6}
    (tmp_path / "more.csv").write_text("file,site\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(48)))
    groups = one(config(by="site", groups=tmp_path / "more.csv", replicates=5))["groups"]
    assert {name: g["images"] for name, g in groups["site"]["groups"].items()} == {"a": 6, "b": 6}
    with pytest.raises(InputError, match=r"more\.csv has no column ward to group by; it has file, site"):
        evaluate(config(by="ward", groups=tmp_path / "more.csv", replicates=5))


def test_another_collection_is_compared_where_labels_are_shared(config, run, made_nih, capsys):
    metrics = one(config(data="nih", root=str(made_nih(lists=True)), replicates=5))
    assert metrics["not_in_collection"] == ["Bright"]
    assert "Infiltration" in metrics["metadata"][0]["labels_of_the_collection_not_scored"]
    assert metrics["metadata"][0]["data"] == "nih" and metrics["labels"]["Edema"]["n_neg"] > 0


def test_scores_of_the_test_part_alone(config, tmp_path, caplog):
    first = one(config(replicates=5))
    frame = pd.read_parquet(tmp_path / "out" / "predictions" / "run.parquet")
    frame = frame[frame["split"] == "test"]
    frame[["image", *(n for n in frame if n.startswith("logit:"))]].to_csv(tmp_path / "test.csv", index=False)
    metrics = one(config(models=(str(tmp_path / "test.csv"),), output=tmp_path / "again", replicates=5))
    assert metrics["macro_auc"] == first["macro_auc"] and "chosen_on" not in metrics
    assert "test.csv has no score of 12 of 12 images" in caplog.text and "no threshold or temperature" in caplog.text


def test_wrong_options_are_said_before_the_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr("mxa.evaluation.evaluate.score", lambda *args: pytest.fail("it says so before the work"))
    with pytest.raises(InputError, match="has no column ward to group by; it has path, patient"):
        evaluate(config(by="ward"))
    with pytest.raises(InputError, match="--by ward: give --groups, a table with a column of image names"):
        evaluate(config(data="phantom", root=None, by="view,ward"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: give a folder"):
        evaluate(config(output=tmp_path / "file"))


def test_a_file_of_scores_in_parts(config, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(90)],
            "patient": range(90),
            "split": ["train"] * 30 + ["Validation"] * 30 + ["test"] * 30,
            "Edema": rng.random(90),
            "target:Edema": rng.integers(0, 2, 90),
        }
    )
    frame.to_csv(tmp_path / "s.csv", index=False)
    options = {"models": (str(tmp_path / "s.csv"),), "replicates": 5}
    metrics = one(config(**options))
    assert (
        metrics["images"] == 30 and metrics["chosen_on"]["images"] == 30 and metrics["metadata"][0]["split"] == "test"
    )
    assert "chosen_on" not in one(config(**options, validation=False))
    assert one(config(**options, split="train"))["images"] == 30 and one(config(**options, split="all"))["images"] == 90
    frame.assign(split="third").to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(InputError, match="unknown split third: give train, val or test"):
        evaluate(config(**options))
    frame.assign(patient=[None, *range(89)]).drop(columns="split").to_parquet(tmp_path / "s.parquet")
    assert one(config(models=(str(tmp_path / "s.parquet"),), replicates=5))["patients"] == 90


def test_plain_columns_of_probabilities_find_their_collection(config, tmp_path):
    first = one(config(replicates=5))
    frame = pd.read_parquet(tmp_path / "out" / "predictions" / "run.parquet")
    plain = pd.DataFrame(
        {"path": frame["image"], **{n: sigmoid(frame[f"logit:{n}"]) for n in ("Edema", "Mass", "Bright")}}
    )
    plain.to_csv(tmp_path / "plain.csv", index=False)
    theirs = one(config(models=(str(tmp_path / "plain.csv"),), output=tmp_path / "theirs", replicates=5))
    assert theirs["labels"]["Bright"]["auc"] == first["labels"]["Bright"]["auc"]
    with pytest.raises(InputError, match=r"no file of scores .*none\.csv"):
        evaluate(config(models=("none.csv",)))
