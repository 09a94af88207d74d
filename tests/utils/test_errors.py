"""A missing extra is one clear line; another failure is not disguised as one."""

from __future__ import annotations

import json.decoder

import pytest

from mxa.models.hub import WeightsError
from mxa.utils.errors import InputError, require


def test_require_returns_the_module():
    assert require("json.decoder", "train") is json.decoder


@pytest.mark.parametrize("module", ["no_such_module", "no_such_module.part"])
def test_a_missing_module_names_the_extra(module):
    with pytest.raises(InputError, match=rf'{module} is not installed: run pip install "mxa\[explain\]"'):
        require(module, "explain")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_dependency", ModuleNotFoundError),
        ("from json import no_such_name", ImportError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_a_module_that_fails_itself_is_not_disguised(tmp_path, monkeypatch, source, error):
    (tmp_path / "broken_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error) as caught:
        require("broken_plugin", "train")
    assert not isinstance(caught.value, InputError)


def test_a_missing_part_of_an_installed_package_is_not_disguised():
    with pytest.raises(ModuleNotFoundError, match=r"json\.no_such_part"):
        require("json.no_such_part", "train")


def test_a_message_that_quotes_a_file_stays_short():
    for error in (InputError("a" * 10_000), WeightsError("a" * 10_000)):
        assert len(str(error)) < 2100 and " ... " in str(error)
    assert str(InputError("no image x.png")) == "no image x.png"
