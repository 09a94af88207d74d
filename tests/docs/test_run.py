"""The commands of README and docs run, page by page and in order, on small stand-ins for the reader's files."""

from __future__ import annotations

import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from mxa import cli
from mxa.commands.registry import COMMANDS
from mxa.evaluation.calibrate import CalibrateConfig, calibrate

from .pages import PAGES, ROOT, blocks, commands
from .parsed_only import COUNT, EXPORTED, LONG, PARSED_ONLY
from .stand_ins import noise, small_run, write_stage

#: Run folders that a page takes for given.
GIVEN = {
    "docs/dicom.md": ("RUN_DIR",),
    "docs/evaluation.md": ("runs/a", "runs/b", "runs/a-0", "runs/a-1", "runs/b-0", "runs/b-1"),
    "docs/explain.md": ("RUN_DIR", "RUN_DIR_WITHOUT_MXA", "runs/b", *(f"runs/a-seed{seed}" for seed in range(3))),
    "docs/faq.md": ("runs/mine", "runs/mine-1", "runs/other"),
    "docs/predict.md": ("runs/a",),
    "docs/training.md": ("RUN_DIR", "runs/teacher"),
    "docs/weights.md": ("RUN",),
}

#: The export that a page takes for given.
GIVEN_EXPORT = {"docs/predict.md": "mxa export runs/a --output exported"}

#: What stands for what cannot be had here, and for names that are none.
STAND_IN = {
    "xrv:densenet121-res224-all": "efficientvit_ml_m0_mxa.r160_nih8k",
    "lab/efficientvit_ml_m0_mxa.chexpert": "lab/efficientvit_ml_m0_mxa.mine",  # the run has other labels
    "FILE": "xray.dcm",
    "FILE_OR_FOLDER...": "xrays",
}

_TRAIN = "--epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --img-size 64 --batch-size 16 --workers 0"
#: What makes a command small; it is added to what the page says.
SMALL = {
    "ablate": f"{_TRAIN} --seeds 0 --replicates 20",
    "calibrate": "--workers 0",
    "evaluate": "--workers 0 --replicates 20",
    "localize": "--steps 2 --replicates 20",
    "prepare": "--workers 0",
    "publish": "--replicates 20 --workers 0 --terms none --license other",
    "teach": "--workers 0",
    "train": _TRAIN,
}
FILMS = "examples/draw_films.py"


def starts(line: str, page: str, table: dict) -> bool:
    return any(f"{line}\n".startswith(start) for start in table.get(page, ()))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_COMMANDS = [page for page in PAGES if any("mxa " in block.text for block in blocks(page, ""))]


def pages_of(table: dict) -> list[Path]:
    return [page for page in WITH_COMMANDS if name_of(page) in table]


@pytest.fixture
def stage(tmp_path, made_nih, made_chexpert, monkeypatch, undrawn):
    folder = tmp_path / "stage"
    folder.mkdir()
    write_stage(folder, made_nih(lists=True), made_chexpert())
    monkeypatch.chdir(folder)
    return folder


def prepare(page: str, stage: Path) -> None:
    """Makes the run folders that a page takes for given, all of them copies of one."""
    first, *others = GIVEN.get(page, (None,))
    if first:
        run = small_run(stage / "mine.csv", stage / first)
        calibrate(CalibrateConfig(model=str(run), workers=0))
    for name in others:
        shutil.copytree(stage / first, stage / name)


def start(words: list[str], monkeypatch) -> None:
    words = [STAND_IN.get(word, word) for word in words]
    if words[0] == "mxa":
        name = next(n for n in COMMANDS if words[1:][: len(n.split())] == n.split())
        cli.main([*words[1:], *SMALL.get(name, "").split()])
    elif words[1:2] == [FILMS]:
        monkeypatch.setattr("mxa.data.collections.phantom.draw", noise)
        monkeypatch.setattr(sys, "argv", [*words[1:], "--count", "240", "--size", "32"])
        runpy.run_path(str(ROOT / FILMS), run_name="__main__")


def run_page(page: Path, stage: Path, monkeypatch, *left_out: dict, export: str | None = None) -> None:
    name = name_of(page)
    prepare(name, stage)
    if export:
        start(export.split(), monkeypatch)
    for block in blocks(page, ""):
        for where, words in commands(block, stage):
            line = shlex.join(words)
            if any(starts(line, name, table) for table in (PARSED_ONLY, *left_out)):
                continue
            monkeypatch.chdir(where)
            try:
                start(words, monkeypatch)
            except SystemExit as error:
                pytest.fail(f"{block}: {line}: {error}")


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_run(page, stage, monkeypatch):
    run_page(page, stage, monkeypatch, LONG, EXPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_of(LONG), ids=name_of)
def test_the_longer_commands_run(page, stage, monkeypatch):
    run_page(page, stage, monkeypatch, EXPORTED)


@pytest.mark.deploy
@pytest.mark.parametrize("page", pages_of(EXPORTED), ids=name_of)
def test_the_commands_of_exported_models_run(page, stage, monkeypatch):
    run_page(page, stage, monkeypatch, export=GIVEN_EXPORT.get(name_of(page)))


def test_what_does_not_run_is_listed_and_counted(stage):
    """Every entry of the three lists is a command that stands on its page."""
    lines = {
        name_of(page): [shlex.join(w) for block in blocks(page, "") for _, w in commands(block, stage) if w[0] == "mxa"]
        for page in WITH_COMMANDS
    }
    for table in (PARSED_ONLY, LONG, EXPORTED):
        for page, beginnings in table.items():
            for beginning in beginnings:
                assert any(f"{line}\n".startswith(beginning) for line in lines[page]), f"{page}: {beginning}"
    assert sum(starts(line, page, PARSED_ONLY) for page in lines for line in lines[page]) == COUNT
