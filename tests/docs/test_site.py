"""The built site loads nothing from elsewhere, and has what the navigation promises. ``make docs`` builds it."""

from __future__ import annotations

import re

import pytest

from .pages import ROOT

pytestmark = pytest.mark.site

SITE = ROOT / "site"
_LOADED = re.compile(r'<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"')
_IN_STYLE = re.compile(r'(?:url\(|@import )["\']?((?:https?:)?//[^"\')\s]+)')


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    found = {str(path.relative_to(SITE)): path.read_text(encoding="utf-8") for path in SITE.rglob("*.html")}
    assert "index.html" in found, "build the site first: make docs"
    return found


def test_nothing_is_loaded_from_elsewhere(pages):
    styles = {str(path): path.read_text(encoding="utf-8") for path in SITE.rglob("*.css")}
    foreign = {name: urls for name, text in {**pages, **styles}.items() if (urls := _IN_STYLE.findall(text))}
    foreign |= {name: urls for name, text in pages.items() if (urls := _LOADED.findall(text))}
    assert not foreign


def test_the_first_page_leads_to_the_three_ways_in(pages):
    for page in ("try", "tutorial", "block"):
        assert f'<a href="{page}.html"><strong>' in pages["index.html"]


def test_formulas_are_mathml(pages):
    assert pages["paper.html"].count("<math") > 10
    assert not any("arithmatex" in text for text in pages.values())


@pytest.mark.parametrize("room", ["layers", "data", "deployment"])
def test_docstrings_are_on_the_api_pages(pages, room):
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api" / f"{room}.md").read_text(), re.MULTILINE)
    assert names and all(f'id="{name}"' in pages[f"api/{room}.html"] for name in names)
