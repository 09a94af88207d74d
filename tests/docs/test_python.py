"""Every Python block of README and docs runs: those of a page in order, with the names of the blocks before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mxa.commands.ablate import AblateConfig
from mxa.training.config import TrainConfig
from mxa.utils.config import checked_fields

from .pages import PAGES, ROOT, Block, blocks
from .stand_ins import small_run, write_stage

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]

#: What cannot run in ``make test``: a word of the block, and the reason.
NOT_HERE = {
    "docs/reproduce.md": {"pretrained=True": "needs the Hub; tests/models/test_weights.py has its own"},
    "docs/clients.md": {"": "tests/clients/test_page.py runs it, with the libraries"},
    "docs/deployment.md": {"load_exported": "tests/deployment/test_exported.py runs it"},
}
RUNS = {
    "docs/evaluation.md": "runs/a",
    "docs/explain.md": "RUN_DIR",
    "docs/predict.md": "runs/a",
    "docs/weights.md": "RUN",
}


def left_out(block: Block) -> bool:
    return any(word in block.text for word in NOT_HERE.get(block.page, ()))


@pytest.fixture
def stage(tmp_path, made_nih, made_chexpert, monkeypatch):
    folder = tmp_path / "stage"
    folder.mkdir()
    write_stage(folder, made_nih(lists=True), made_chexpert())
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page, stage):
    name = str(page.relative_to(ROOT))
    if name in RUNS:
        run = small_run(stage / "my.csv", stage / RUNS[name])
        shutil.copy(run / "model.safetensors", stage)
    scope: dict = {}
    for block in blocks(page, "python"):
        if not left_out(block):
            code = "\n" * block.line + block.text  # an error then names the page's line
            exec(compile(code, str(page), "exec"), scope)


def test_what_is_left_out_is_still_there():
    for page, words in NOT_HERE.items():
        for word in words:
            assert any(word in block.text for block in blocks(ROOT / page, "python")), f"{page}: {word}"


def test_settings_are_read():
    """The YAML of the pages is a table of arms, or a recipe."""
    for page in PAGES:
        for block in blocks(page, "yaml"):
            values = yaml.safe_load(block.text)
            kind = AblateConfig if "arms" in values else TrainConfig
            checked_fields(kind, {k: v for k, v in values.items() if k != "mxa"}, str(block))


def test_blocks_are_found():
    """The collector sees what a reader sees."""
    text = (ROOT / "docs" / "layers.md").read_text()
    assert len(blocks(Path(ROOT / "docs" / "layers.md"), "python")) == text.count("```python") > 3
