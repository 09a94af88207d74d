"""Every public name stands on a page of docs/api, and every page names what exists."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import mxa

from .pages import ROOT

API = ROOT / "docs" / "api"
ROOMS = [
    "mxa",
    *(f"mxa.{m.name}" for m in pkgutil.iter_modules(mxa.__path__) if not m.name.startswith("_")),
]
#: Rooms that nobody else imports.
INSIDE = {
    "mxa.cli",
    "mxa.commands",
    "mxa.evaluation",
    "mxa.run",
    "mxa.training",
    "mxa.utils",
}


def resolve(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


DOCUMENTED = {
    path: page.name for page in API.glob("*.md") for path in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in INSIDE])
def test_every_public_name_has_its_docstring_on_a_page(room):
    shown = [resolve(path) for path in DOCUMENTED]
    index = (API / "index.md").read_text()
    for name in importlib.import_module(room).__all__:
        value = getattr(importlib.import_module(room), name)
        is_room = f"{room}.{name}" in ROOMS and f"`{room}.{name}`" in index
        is_text = name == "__version__" and f"`{name}`" in index
        assert is_room or is_text or any(value is one for one in shown), f"{room}.{name} stands on no page of docs/api"


def test_the_pages_name_what_exists():
    assert len(DOCUMENTED) > 100
    assert all(resolve(path) is not None for path in DOCUMENTED)
