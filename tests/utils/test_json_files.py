"""JSON objects: what is refused when they are read, and that none is written with NaN."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import mxa
from mxa.utils.errors import InputError
from mxa.utils.json_files import parse_json, read_json, to_json


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not a number of JSON"),
        (b'{"a": 1e999}', "1e999 is not a number of JSON"),
        (b"[1]", "must hold a JSON object, and holds a list"),
        (b"null", "must hold a JSON object"),
        (b'{"a": "\xe9"}', "is not UTF-8"),
        ("\ufeff{}".encode("utf-16"), "is not UTF-8"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_what_is_refused(data, message, tmp_path):
    (tmp_path / "x.json").write_bytes(data)
    for read in (lambda: parse_json(data, tmp_path / "x.json"), lambda: read_json(tmp_path / "x.json")):
        with pytest.raises(InputError, match=message) as error:
            read()
        assert str(error.value).startswith(f"{tmp_path / 'x.json'} ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_file_that_is_not_there(name, tmp_path):
    with pytest.raises(InputError, match="does not read"):
        read_json(tmp_path / name)


def test_an_object_comes_back(tmp_path):
    value = {"a": [1, 0.5, None, True, "é"], "b": {}}
    (tmp_path / "x.json").write_text(to_json(value, 1), encoding="utf-8")
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": {"b": math.nan}}])
def test_no_nan_is_written(value):
    with pytest.raises(ValueError, match="JSON"):
        to_json(value)


def test_everything_that_writes_json_refuses_nan():
    """A call of ``json.dump`` or ``json.dumps`` that does not would write what no other program reads."""
    package = Path(mxa.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                found += [] if given.get("allow_nan") == "False" else [f"{path.name}:{node.lineno}"]
    assert not found
