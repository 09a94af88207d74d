"""A run is published, and its folder is read, loaded and checked."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

import mxa
from mxa.commands.publish import PublishConfig, check, publish
from mxa.data import create_dataset
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.models import hub as weights
from mxa.models import save_pretrained
from mxa.models.hub import WeightsError
from mxa.training.loop import TrainConfig, train
from mxa.utils.errors import InputError

from ..contracts import holds

REPO = "lab/efficientvit_ml_m0_mxa.test"


@pytest.fixture(scope="session")
def phantom_run(tmp_path_factory):
    """A run on phantoms, calibrated."""
    output = tmp_path_factory.mktemp("published") / "run"
    train(TrainConfig(output, img_size=64, epochs=1, batch_size=32, workers=0))
    calibrate(CalibrateConfig(str(output), workers=0))
    return output


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run on a small table of one's own."""
    folder = tmp_path_factory.mktemp("clinic")
    phantoms = create_dataset("phantom", split="train")
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "patient", "Edema", "Mass"))
        for i in range(24):
            phantoms.records.image(i).resize((64, 64)).save(folder / f"scan{i}.png")
            writer.writerow(
                (f"scan{i}.png", f"MRN-{i // 2}" if i < 18 else f"Doe John {i // 2 - 8}", i % 2, i // 2 % 2)
            )
    output = folder / "run"
    train(
        TrainConfig(
            output, data="table", root=str(folder / "table.csv"), img_size=64, epochs=1, batch_size=8, workers=0
        )
    )
    return output


@pytest.fixture
def out(run):
    """The folder that is uploaded, not there before."""
    shutil.rmtree(run / "publish", ignore_errors=True)
    return run / "publish"


@pytest.fixture
def config(run, out):
    def build(**fields):
        options = {"run": str(run), "repo": REPO, "replicates": 20, "workers": 0}
        terms = {"terms": "of the lab", "license": "other", "split": "all"}
        return PublishConfig(**{**options, **terms, **fields})

    return build


@pytest.mark.slow
def test_a_dry_run_leaves_the_folder_to_look_at(hub, config, phantom_run):
    run, own = phantom_run, {"run": str(phantom_run), "terms": None, "license": None, "split": None}
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    result = publish(config(dry_run=True, **own))
    out = run / "publish"
    assert not hub.asked and result["commit"] is None and result["folder"] == out
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "check.safetensors",
        "calibration.json",
        "README.md",
    }
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    metadata = json.loads((out / "config.json").read_text())
    assert metadata["problem_type"] == "multi_label_classification" and metadata["pretrained_cfg"]["tag"] == "test"
    assert metadata["sha256"] == weights.digest(run / "model.safetensors") and result["entry"] is None
    assert metadata["recipe"]["epochs"] == 1 and metadata["metrics"]["split"] == "test"
    card = (out / "README.md").read_text()
    front, rest = re.match(r"---\n(.*?)---\n(.*)", card, re.S).groups()
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert rest.split("```python\n")[1].startswith("import mxa\n")
    for words in ("not for diagnosis", "drawn phantoms, no patient", "macro AUC", " to ", "cite", "epochs: 1"):
        assert words in rest, words
    assert check(str(out))["difference"] < 1e-4
    (run / "calibration.json").unlink()
    publish(config(dry_run=True, **own))  # the same folder again
    assert not (out / "calibration.json").exists()


def test_published_and_loaded_back_to_the_bit(hub, config, run, monkeypatch):
    result = publish(config())
    commit = result["commit"]
    assert commit == hub.repos[REPO].head and result["entry"]["revision"] == commit
    state = load_file(run / "model.safetensors")
    assert holds(timm.create_model(f"hf-hub:{REPO}@{commit}", pretrained=True), state)
    assert check(REPO)["sha256"] == result["entry"]["sha256"]
    monkeypatch.setitem(weights.manifest(), result["name"], result["entry"])  # the entry to commit
    assert holds(timm.create_model(f"hf-hub:{REPO}@{commit}", pretrained=True), state)
    monkeypatch.setitem(weights.manifest()[result["name"]], "sha256", "0" * 64)
    with pytest.raises(WeightsError, match="that of these weights is 0000"):
        timm.create_model(f"hf-hub:{REPO}@{commit}", pretrained=True)


def test_no_right_to_write_loses_nothing(hub, config, out):
    hub.statuses[("POST", "/api/repos/create")] = [403]
    with pytest.raises(WeightsError, match=r"is complete: .*your token.*HF_TOKEN"):
        publish(config())
    assert check(str(out))


def test_check_finds_other_weights_and_another_output(config, out):
    publish(config(dry_run=True))
    stored = load_file(out / "check.safetensors")
    save_file({**stored, "logits": stored["logits"] + 1}, out / "check.safetensors")
    with pytest.raises(InputError, match="logits for the stored input differ by 1 from the stored ones"):
        check(str(out))
    state = load_file(out / "model.safetensors")
    state["head.linear.bias"] += 1
    save_file(state, out / "model.safetensors")
    with pytest.raises(InputError, match="is damaged or was replaced"):
        check(str(out))
    save_file({"input": stored["input"]}, out / "check.safetensors")
    with pytest.raises(InputError, match="was not written by mxa publish"):
        check(str(out))
    (out / "check.safetensors").unlink()
    with pytest.raises(InputError, match=r"there is no .*check\.safetensors"):
        check(str(out))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repo": None}, "and --repo organisation/architecture.tag"),
        ({"repo": "name"}, "--repo name must be organisation/efficientvit_ml_m0_mxa.TAG"),
        ({"repo": "lab/efficientvit_ml_m0_mxa.a--b"}, "must be organisation/efficientvit_ml_m0_mxa.TAG"),
        ({"repo": "lab/efficientvit_ml_m0_mxa.chexpert"}, "efficientvit_ml_m0_mxa.chexpert is of other labels than"),
        ({"repo": "lab/efficientvit_ml_m5.test"}, "must be organisation/efficientvit_ml_m0_mxa.TAG"),
        ({"run": "nowhere"}, "give a run folder, not nowhere,"),
        ({"terms": None}, "say what is not known of table: --terms and --license"),
    ],
)
def test_what_is_not_published(hub, config, fields, message, out):
    with pytest.raises(InputError, match=re.escape(message)):
        publish(config(**fields))
    assert not hub.asked and not out.exists()


PATHS = (
    "/home/someone/data",
    "/gpfs/x",
    "file:///home/x",
    "~/secret",
    "C:\\Users\\x",
    "c:\\x",
    "\\\\server\\share",
    "s3://b",
)
PEOPLE = ("see scan12.png.", "as Scan12.PNG", "scan12_annotated.png", "of (MRN-3)", "Doe John 3 has it")


def without_numbers(monkeypatch):
    """Leaves the evaluation out."""
    metadata = {"images": 1, "patients": 1, "metadata": [{"split": "test", "data": "table"}]}
    monkeypatch.setattr(
        "mxa.commands.publish.evaluate", lambda c: {"models": [metadata], "notes": [c.note] if c.note else []}
    )
    monkeypatch.setattr("mxa.evaluation.report.model_card.card", lambda _: "")


@pytest.mark.parametrize("note", PATHS + PEOPLE)
def test_private_words_are_refused(config, note, out, monkeypatch):
    without_numbers(monkeypatch)
    message = "a path of this machine would be" if note in PATHS else "a patient or an image would be named"
    with pytest.raises(InputError, match=message):
        publish(config(dry_run=True, note=note))
    assert not out.exists()


def test_private_words_in_a_file_are_refused(config, run, tmp_path, out, monkeypatch):
    """What the weights' file says of itself is uploaded with it."""
    without_numbers(monkeypatch)
    clone = tmp_path / "clone"
    shutil.copytree(run, clone)
    save_file(load_file(run / "model.safetensors"), clone / "model.safetensors", {"from": "/home/someone/run"})
    with pytest.raises(InputError, match="a path of this machine would be"):
        publish(config(run=str(clone), dry_run=True))
    assert not (clone / "publish").exists()


@pytest.mark.parametrize(
    "note", ["AP/PA and 1/2", "views: frontal", "4,586,686 bytes, 12 of 24", "https://a.org/b/c", "Nodule/Mass"]
)
def test_honest_words_are_not(config, note, monkeypatch):
    without_numbers(monkeypatch)
    publish(config(dry_run=True, note=note))


def test_the_terms_are_those_of_the_training_data(config, made_nih, out):
    """Evaluated on another collection, it is still what it was trained on; both collections' names are looked for."""
    other = {"data": "nih", "root": str(made_nih(lists=True)), "split": None}
    publish(config(dry_run=True, **other))
    metadata = json.loads((out / "config.json").read_text())
    assert metadata["data"] == "table" and metadata["terms"] == "of the lab"
    with pytest.raises(InputError, match="a patient or an image would be named"):
        publish(config(dry_run=True, note="see scan12.png", **other))


def test_another_root_does_not_hide_the_names_of_the_first(config, run, out, tmp_path, caplog):
    """Scored on a table of other patients, of the same kind of collection, it is still searched for its own."""
    first = Path(yaml.safe_load((run / "local.yaml").read_text())["root"])
    text = first.read_text().replace("MRN-", "PID-").replace("Doe John", "Roe Jane").replace("scan", "other")
    other = shutil.copytree(first.parent, tmp_path / "other", ignore=shutil.ignore_patterns("run"))
    (other / "table.csv").write_text(text)
    for path in list(other.glob("scan*.png")):
        path.rename(path.with_name(path.name.replace("scan", "other")))
    for word in ("scan12.png", "MRN-3", "Doe John 3", "other12.png", "PID-3"):
        with pytest.raises(InputError, match="a patient or an image would be named"):
            publish(config(dry_run=True, root=str(other / "table.csv"), note=f"see {word}"))
    clone = shutil.copytree(run, tmp_path / "clone", ignore=shutil.ignore_patterns("publish"))
    (clone / "local.yaml").write_text(yaml.safe_dump({"root": str(tmp_path / "gone.csv")}))
    publish(config(run=str(clone), dry_run=True, root=str(other / "table.csv")))
    assert "gone.csv, where the run was trained, is not there" in caplog.text


def test_a_model_with_arguments_of_its_own(hub, config, run, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(run, clone)
    model = timm.create_model("efficientvit_ml_m0_mxa", num_classes=2, img_size=64, mxa_roi_head="mean")
    mxa.set_label_names(model, ("Edema", "Mass"))
    save_pretrained(model, clone)
    publish(config(run=str(clone)))
    assert check(REPO)


def test_nothing_else_is_uploaded_or_left_there(hub, config, out):
    publish(config())
    hub.repos[REPO].commit({"pytorch_model.bin": b"old"})
    shutil.copy(__file__, out / "xray.png")
    publish(config())
    files = ["README.md", "check.safetensors", "config.json", "model.safetensors"]
    assert sorted(hub.repos[REPO].commits[hub.repos[REPO].head]) == files


def test_recipes_lose_their_folders():
    from mxa.training.config import without_folders

    for value, left in {
        "local-dir:/tmp/x/start": "start",
        "/tmp/a/teacher.parquet": "teacher.parquet",
        "C:\\runs\\a": "a",
        "{base: local-dir:/tmp/a/b, depth: 2}": "{base: b, depth: 2}",
        "hf-hub:lab/x": "hf-hub:lab/x",
        "xrv:densenet121-res224-chex": "xrv:densenet121-res224-chex",
        "xrv:/home/me/x.pt": "xrv:x.pt",
    }.items():
        assert without_folders({"init": value}) == {"init": left}


def test_the_command_says_errors_in_one_line(hub, config, out):
    from mxa.cli import main

    for name, message in (("lab/nothing", "^mxa publish: .*Repository Not Found"), ("a/b/c", "Repo id must be")):
        with pytest.raises(SystemExit, match=message) as error:
            main(["publish", "--check", name])
        assert "\n" not in str(error.value)
    publish(config(dry_run=True))
    (out / "check.safetensors").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="is not a whole safetensors file"):
        main(["publish", "--check", str(out)])


def test_where_it_was_trained_is_not_told(config, run, out):
    publish(config(dry_run=True))
    root = yaml.safe_load((run / "local.yaml").read_text())["root"]
    for path in out.iterdir():
        data = path.read_bytes()
        assert root.encode() not in data and b"MRN-" not in data and b"scan1" not in data, path.name
    assert "training images included" in (out / "README.md").read_text()


def test_from_the_command_line(run, out, capsys):
    from mxa.cli import main

    arguments = [run, "--repo", REPO, "--dry-run", "--replicates", 20, "--workers", 0]
    arguments += ["--terms", "of the lab", "--license", "apache-2.0", "--split", "all"]
    main(["publish", *map(str, arguments)])
    assert "nothing was uploaded" in capsys.readouterr().err
    main(["publish", "--check", str(out)])
    assert "as published" in capsys.readouterr().out


def test_the_stored_input_is_a_phantom(config, out):
    publish(config(dry_run=True))
    from PIL import Image

    from mxa.data import create_transform
    from mxa.data.collections.phantom import draw
    from mxa.models.load import load_model

    model = load_model(out)
    stored = load_file(out / "check.safetensors")
    assert torch.equal(stored["input"][0], create_transform(model)(Image.fromarray(draw(0).image)))
    assert mxa.label_names(model) is not None
