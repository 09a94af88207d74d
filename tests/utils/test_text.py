"""Text from outside, as it is shown."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure

from mxa.utils.text import for_csv, for_markdown, printable, without_formulas


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scan [old].png", "scan [old].png"),
        ("Ödem, 胸部 (é)", "Ödem, 胸部 (é)"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("a\u2066b\u200bc", r"a\u2066b\u200bc"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff.png", r"\udcff.png"),  # a name that is not UTF-8
        (3, "3"),
    ],
)
def test_what_a_terminal_obeys_is_written_out(text, shown):
    assert printable(text) == shown
    printable(text).encode()  # can be printed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("`x` <script>", r"\`x\` \<script>"),
        ("[here](http://x) ![p](q)", r"\[here](http://x) !\[p](q)"),
        ("a\n# b", "a\\\\n# b"),
        ("back\\slash", r"back\\slash"),
        ("efficientvit_ml_m0_mxa", "efficientvit_ml_m0_mxa"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    assert for_markdown(text) == shown


def test_a_spreadsheet_gets_no_formula():
    for text in ("=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "+A1*2"):
        assert for_csv(text) == f"'{text}"
    for value in ("+ MXA", "+ MXA + KD", "Edema", 0.5, -1, None, "a-b"):
        assert for_csv(value) == value
    assert for_csv("a\nb") == r"a\nb"


def test_a_dollar_in_a_figure_begins_no_formula():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=r"$\no$ such $formula")
    axes.set(title=r"a $\frac$ b $\x$", xlabel=r"$^$ $_$")
    axes.set_yticks([0, 1])
    axes.set_yticklabels([r"$\y$", r"$$ $\z{$"])
    axes.legend()
    figure.suptitle(r"$\left($")
    with pytest.raises(ValueError, match=r"Parse|Expected"):
        figure.savefig(io.BytesIO(), format="png")
    without_formulas(figure).savefig(io.BytesIO(), format="png")
