"""A run folder can be given away: what is of this machine lies in one file, which is left out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mxa.commands.publish import PublishConfig, publish
from mxa.data import DataConfig
from mxa.training.loop import train
from mxa.utils.errors import InputError


@pytest.fixture
def taught(config, run, table, tmp_path, monkeypatch):
    """A run with a start and a teacher, all of absolute paths."""
    teacher = shutil.copytree(run, tmp_path / "someone" / "teacher")
    monkeypatch.chdir(tmp_path)
    train(config(epochs=1, init=str(teacher), teacher=str(teacher), output=tmp_path / "someone" / "run"))
    return tmp_path / "someone" / "run"


def test_one_file_alone_names_this_machine(taught, table, tmp_path):
    names = [
        path.name
        for path in taught.iterdir()
        if any(str(p).encode() in path.read_bytes() for p in (tmp_path, table.parent))
    ]
    assert names == ["local.yaml"]
    settings = yaml.safe_load((taught / "config.yaml").read_text())
    assert (settings["init"], settings["teacher"], settings["root"]) == ("teacher", "teacher", None)
    local = yaml.safe_load((taught / "local.yaml").read_text())
    assert local == {
        "root": str(table),
        "init": str(taught.parent / "teacher"),
        "teacher": str(taught.parent / "teacher"),
    }


def test_it_works_from_another_place(taught, table, tmp_path, config):
    moved = taught.rename(tmp_path / "moved")
    assert len(DataConfig().resolved(moved).open("val")) == 12
    teacher = tmp_path / "someone" / "teacher"
    assert train(config(epochs=1, init=str(teacher), teacher=str(teacher), output=moved, resume="auto"))["epochs"] == 1
    with pytest.raises(InputError, match="init was 'teacher'"):
        train(config(epochs=1, teacher=str(teacher), output=moved, resume="auto"))


def test_without_that_file_it_asks_for_the_root(taught, table):
    (taught / "local.yaml").unlink()
    with pytest.raises(InputError, match="collection 'table' needs --root"):
        DataConfig().resolved(taught).open("val")
    assert len(DataConfig(root=str(table)).resolved(taught).open("val")) == 12


def test_an_older_run_is_read(taught, table):
    settings = yaml.safe_load((taught / "config.yaml").read_text())
    (taught / "config.yaml").write_text(yaml.safe_dump({**settings, "root": str(table), "output": str(taught)}))
    (taught / "local.yaml").unlink()
    assert len(DataConfig().resolved(taught).open("val")) == 12


def test_what_is_published_names_nobody(taught, table, tmp_path):
    options = {"terms": "of the lab", "license": "apache-2.0", "replicates": 20, "workers": 0, "split": "all"}
    publish(PublishConfig(run=str(taught), repo="lab/efficientvit_ml_m0_mxa.x", dry_run=True, **options))
    for path in (taught / "publish").iterdir():
        for word in (str(tmp_path), str(table.parent), str(Path.home())):
            assert not re.search(rf"{re.escape(word)}\b", path.read_bytes().decode("latin-1")), path.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: [", "cannot read"),
        (b"data: {a: b}\n", "data must be one of"),
        (b"data: 5\n", "data must be one of"),
        (b"data: table\nroot: [1]\n", "root must be text"),
        (b"data: table\nmerge: maybe\n", "merge must be true or false"),
        ("data: \xe9".encode("latin-1"), "save it as UTF-8"),
        (b"&a [*a]", "a value that holds itself"),
        (b"- a", "must hold lines of name: value"),
    ],
)
def test_damaged_settings_are_one_line(run, table, tmp_path, content, message):
    from mxa.cli import main

    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "config.yaml").write_bytes(content)
    (folder / "local.yaml").unlink()
    where = ["--data", "table", "--root", table]
    commands = [
        ["evaluate", folder, "--output", "x"],
        ["calibrate", folder],
        ["teach", folder, "--output", tmp_path / "x.parquet"],
    ]
    commands += [["publish", folder, "--repo", "lab/efficientvit_ml_m0_mxa.x", "--dry-run"]]
    commands += [["train", "--resume", "auto", "--output", folder, *where]]
    if message not in ("data must be one of", "root must be text", "merge must be true or false"):
        commands.append(["train", "--config", folder / "config.yaml", "--output", tmp_path / "y"])
        (folder / "checkpoint.pt").unlink()
        (folder / "checkpoint.previous.pt").unlink()
    else:
        commands.pop()  # it compares settings, and says which differ
    for command in commands:
        with pytest.raises(SystemExit, match=message) as error:
            main(list(map(str, command)))
        assert "\n" not in str(error.value)
