"""The tables that are made of the code say what the code says."""

from __future__ import annotations

import runpy

import pytest

from .pages import ROOT

TABLES = runpy.run_path(str(ROOT / "docs" / "_site" / "tables.py"))


@pytest.mark.parametrize("page", TABLES["TABLES"])
def test_a_table_is_up_to_date(page):
    assert TABLES["filled"](page) == (ROOT / "docs" / page).read_text(), "run python docs/_site/tables.py"
