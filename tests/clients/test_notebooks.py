"""The notebooks run from top to bottom, and are committed as they have run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    shutil.copytree(EXAMPLES / "images", tmp_path / "images")
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()  # raises at an error
    assert all(cell.outputs or "import " in cell.source for cell in code(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_committed_has_run(path):
    import nbformat

    assert path.stat().st_size < 300_000
    cells = code(nbformat.read(path, 4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        text = output.get("text", "") + "".join(v for k, v in output.get("data", {}).items() if k.startswith("text/"))
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|Users)/|site-packages", text)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
