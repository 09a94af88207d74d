"""YAML from outside: what it may hold, and one line for what it may not."""

from __future__ import annotations

import time

import pytest
import yaml

from mxa.utils.config import read_settings, read_yaml, read_yaml_file, write_yaml
from mxa.utils.errors import InputError

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "a billion laughs": (LAUGHS.encode(), "more than 20,000 values"),
    "a mapping of laughs": (LAUGHS.replace("[", "{? [").replace("]", "] : 1}").encode(), "cannot read"),
    "itself": (b"a: &a [*a]", "line 1: a value that holds itself"),
    "itself, as a whole": (b"&a {b: *a}", "a value that holds itself"),
    "deep": (b"a: " + b"[" * 100_000, "more than 50 levels"),
    "deep blocks": (b"\n".join(b" " * i + b"a:" for i in range(500)), "more than 50 levels"),
    "many values": (b"a: [" + b"1," * 100_000 + b"]", "more than 20,000 values"),
    "a long value": (b"a: " + b"1:" * 20_000 + b"1", "more than 10,000 characters"),
    "a large file": (b"# " + b"x" * 2_000_000, "more than 1,048,576 characters"),
    "Latin-1": ("note: \xe9t\xe9".encode("latin-1"), "it is not UTF-8: save it as UTF-8"),
    "UTF-16": ("note: a".encode("utf-16"), "it is not UTF-8: save it as UTF-8"),
    "a list": (b"- a\n- b", "must hold lines of name: value, got list"),
    "text": (b"hello", "must hold lines of name: value, got str"),
    "control characters": (b"a: \x00", "cannot read"),
    "a date that is none": (b"a: 2001-99-99", "a value does not read"),
    "an empty number": (b"a: !!int ''", "a value does not read"),
    "a number that is a word": (b"a: !!float word", "a value does not read"),
    "a bool that is a word": (b"a: !!bool word", "a value does not read"),
    "a huge number": (b"a: " + b"1" * 9_000, "a value does not read"),
    "a Python object": (b"a: !!python/object/apply:os.system ['touch x']", "line 1: could not determine"),
    "a command": (b"root: 'pipe:touch x'", "root names a command to run .pipe:., which only the command line may"),
    "a command, written otherwise": (b"root: ' PIPE:touch x'", "root names a command to run"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_configuration_is_one_line_at_once(name, tmp_path):
    content, message = BAD[name]
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        read_yaml_file(file)
    assert time.process_time() - started < 10
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 + len(str(file))


def test_a_folder_and_a_file_without_an_end(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(InputError, match="cannot read"):
            read_yaml_file(path)
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="cannot read"):
        read_yaml_file(tmp_path / "zero.yaml")


def test_a_few_aliases_are_read():
    assert read_yaml("base: &b {lr: 1e-3}\nother: {<<: *b, epochs: 2}\nagain: *b") == {
        "base": {"lr": 0.001},
        "other": {"lr": 0.001, "epochs": 2},
        "again": {"lr": 0.001},
    }


def test_what_is_written_is_read_without_aliases():
    shared = {"a": [1, 2]}
    values = {"x": shared, "y": shared, "z": "é", "long": "word " * 100}
    text = write_yaml(values)
    assert "&" not in text and read_yaml(text) == yaml.safe_load(text) == values


def test_what_a_run_says_of_this_machine_lies_beside_its_settings(tmp_path):
    (tmp_path / "config.yaml").write_text("data: nih\nroot: null\n")
    assert read_settings(tmp_path / "config.yaml") == {"data": "nih", "root": None}
    (tmp_path / "local.yaml").write_text("root: /x\n")
    assert read_settings(tmp_path / "config.yaml") == {"data": "nih", "root": "/x"}
    (tmp_path / "local.yaml").write_text("root: pipe:touch x\n")
    with pytest.raises(InputError, match=r"local\.yaml: root names a command"):
        read_settings(tmp_path / "config.yaml")
