"""What a run was trained on is the default of every command that is given the run."""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import dataclass, fields

import pytest
import yaml
from PIL import Image

from mxa.data import DataConfig, create_dataset
from mxa.utils.errors import InputError

from .helpers import column

TRAINED = {"data": "table", "root": "/x/table.csv", "columns": "path=file", "views": "AP", "blank": "ignore", "lr": 0.1}


@pytest.fixture
def run(tmp_path):
    """Writes the configuration of a run."""

    def write(name: str = "run", **settings) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({**TRAINED, **settings}))
        return str(tmp_path / name)

    return write


def test_defaults_where_there_is_no_run():
    config = DataConfig().resolved()
    assert (config.data, config.root, config.views, config.uncertain) == ("phantom", None, "frontal", "U-Ones")
    assert config.merge is False and config.labels is config.columns is config.blank is None
    assert DataConfig().resolved("efficientvit_ml_m0", "scores.parquet").data == "phantom"


def test_what_a_run_was_trained_on_is_the_default(run, caplog):
    caplog.set_level(logging.INFO, "mxa")
    config = DataConfig().resolved(run())
    assert (config.data, config.root, config.columns, config.blank) == ("table", "/x/table.csv", "path=file", "ignore")
    assert config.views == "AP" and config.uncertain == "U-Ones"
    assert len(caplog.messages) == 1 and "data table, root /x/table.csv, columns path=file, views AP" in caplog.text


def test_options_win_over_the_run(run, caplog):
    caplog.set_level(logging.INFO, "mxa")
    config = DataConfig(root="other.csv", views="all").resolved(run())
    assert (config.data, config.root, config.views, config.columns) == ("table", "other.csv", "all", "path=file")
    assert "views" not in caplog.text


def test_another_collection_takes_nothing_of_the_run_s_files(run):
    config = DataConfig(data="nih", root="NIH").resolved(run())
    assert (config.data, config.root, config.columns, config.blank, config.views) == ("nih", "NIH", None, None, "AP")
    config = DataConfig(data="nih").resolved(run())
    assert config.root is None


def test_runs_that_were_trained_on_different_data(run):
    runs = run("a"), run("b", root="/y/table.csv")
    with pytest.raises(InputError, match=r"a and .*b were trained on different data \(root /x/table.csv and /y"):
        DataConfig().resolved(*runs)
    assert DataConfig(root="mine.csv").resolved(*runs).root == "mine.csv"
    assert DataConfig().resolved(run("a"), run("b", views="PA")).views == "frontal"  # they say different things
    assert DataConfig().resolved("timm_name", run("a")).root == "/x/table.csv"


def test_a_folder_that_says_nothing_is_not_the_phantom_s(tmp_path, run):
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare does not say what it was trained on: give --data"):
        DataConfig().resolved(tmp_path / "bare")
    with pytest.raises(InputError, match="does not say what it was trained on"):
        DataConfig().resolved(run(data=None))  # a run of one's own dataset
    assert DataConfig(data="phantom").resolved(tmp_path / "bare").data == "phantom"


def test_a_field_that_a_command_does_not_use(run):
    @dataclass
    class Scoring(DataConfig):
        unused = ("uncertain",)

    assert Scoring().resolved(run(uncertain="LSR")).uncertain is None
    with pytest.raises(InputError, match="Scoring does not use uncertain"):
        Scoring(uncertain="LSR").resolved()


def test_a_broken_configuration_is_one_error(run, tmp_path):
    folder = run()
    (tmp_path / "run" / "config.yaml").write_text("data: [")
    with pytest.raises(InputError, match=r"cannot read .*config\.yaml: line 1"):
        DataConfig().resolved(folder)


def test_open_is_create_dataset(made_table):
    path = str(made_table())
    config = DataConfig(data="table", root=path, labels="Effusion,Edema", views="all", uncertain="U-Zeros").resolved()
    opened, created = (
        config.open("train"),
        create_dataset("table", path, "train", "Effusion,Edema", "U-Zeros", views="all"),
    )
    assert opened.labels == created.labels == ("Effusion", "Edema")
    assert (column(opened, "Effusion") == column(created, "Effusion")).all() and (column(opened, "Effusion") == 0).any()
    assert len(config.open("test", fold=(0, 2))) > 0
    assert config.where() == f"table {path}"


def test_no_configuration_repeats_its_fields():
    from mxa.commands.ablate import AblateConfig
    from mxa.commands.localize import LocalizeConfig
    from mxa.commands.prepare import PrepareConfig
    from mxa.commands.publish import PublishConfig
    from mxa.commands.summary import SummaryConfig
    from mxa.commands.teach import TeachConfig
    from mxa.evaluation.calibrate import CalibrateConfig
    from mxa.evaluation.evaluate import EvaluateConfig
    from mxa.train import TrainConfig

    shared = {field.name for field in fields(DataConfig)}
    kinds = (TrainConfig, AblateConfig, EvaluateConfig, CalibrateConfig, TeachConfig, PrepareConfig, SummaryConfig)
    for kind in (*kinds, LocalizeConfig, PublishConfig):
        assert issubclass(kind, DataConfig)
        for base in kind.__mro__[: kind.__mro__.index(DataConfig)]:
            again = shared & set(inspect.get_annotations(base))
            assert again <= ({"views"} if kind is SummaryConfig else set()), f"{base.__name__} repeats {again}"


def test_a_name_that_is_not_utf8_is_one_error(tmp_path):
    (tmp_path / "Edema").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    os.replace(tmp_path / "good.png", os.path.join(os.fsencode(tmp_path), b"Edema", b"bad\xff.png"))
    with pytest.raises(InputError, match=r"Edema/bad\\udcff\.png is not UTF-8: rename the file"):
        create_dataset("folder", tmp_path, "all")
