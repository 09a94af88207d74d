"""A dataclass as the options of a command: every kind of field, a file below them, one line for what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from mxa.training.config import TrainConfig
from mxa.utils.command_line import parse
from mxa.utils.config import checked_fields
from mxa.utils.errors import InputError


@dataclass(kw_only=True)
class Group:
    """What is shared."""

    root: str | None = None
    """Where it is."""
    left_out: str | None = None
    unused: ClassVar[tuple[str, ...]] = ("left_out",)


@dataclass
class Config(Group):
    """What is its own."""

    files: tuple[Path, ...]
    """The files, 100 % of them."""
    min_lr: float = 1e-5
    epochs: int = 3
    seeds: tuple[int, ...] = (0, 1)
    scale: tuple[float, float] = (0.8, 1.0)
    amp: Literal["bf16", "fp16"] | None = None
    shuffled: bool = True
    labels: str | tuple[str, ...] | None = None
    model_args: str | dict | None = None


def read(*arguments: str) -> Config:
    return parse(Config, arguments, "mxa do", positional="files")


def test_every_kind_of_field():
    config = read("a", "--min-lr", "1e-3", "--seeds", "3", "4", "--scale", ".5", "1", "--no-shuffled", "--amp", "bf16")
    assert config == Config((Path("a"),), 1e-3, 3, (3, 4), (0.5, 1.0), "bf16", False)
    assert read("a", "--root", "5", "--labels", "Edema, Mass", "--model-args", "a: 1") == Config(
        (Path("a"),), root="5", labels="Edema, Mass", model_args={"a": 1}
    )
    assert read("a", "--epochs", "4", "b").files == read("--epochs", "4", "a", "b").files == (Path("a"), Path("b"))


def test_a_file_lies_below_the_options(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "files: [a, b]\nepochs: 5\nmin_lr: 1e-2\nlabels: [Edema, 'Mass, large']\nmodel_args: {a: 1}\nroot: null\n"
    )
    expected = Config((Path("a"), Path("b")), 1e-2, 7, labels=("Edema", "Mass, large"), model_args={"a": 1})
    assert read("--epochs", "7", "--config", str(file)) == read("--config", str(file), "--epochs", "7") == expected
    assert read("--config", str(file), "c").files == (Path("c"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"^give files; mxa do --help lists the options$"),
        (("a", "--epoch", "3"), r"unrecognized arguments: --epoch 3 \(perhaps --epochs\)"),
        (("a", "--left-out", "3"), "unrecognized arguments: --left-out 3"),
        (("a", "--epochs", "two"), "^--epochs must be a whole number, got 'two'$"),
        (("a", "--epochs", "2.5"), "--epochs must be a whole number, got '2.5'"),
        (("a", "--amp", "fp8"), "--amp must be one of bf16, fp16 or null, got 'fp8'"),
        (("a", "--seeds", "x"), r"--seeds must be a list of a whole number, got \['x'\]"),
        (("a", "--scale", "1"), "--scale: expected 2 arguments"),
        (("a", "--root"), "--root: expected one argument"),
        (("a", "--config", "none.yaml"), "cannot read none.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        read(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 1}, r"^c.yaml: no field epoch \(perhaps epochs\)$"),
        ({"epochs": True}, "^c.yaml: epochs must be a whole number, got True$"),
        ({"epochs": None}, "epochs must be a whole number, got None"),
        ({"scale": [0.9]}, "scale must be a list of 2"),
        ({"seeds": 3}, "seeds must be a list of a whole number, got 3"),
        ({"root": 5}, "root must be text or null, got 5"),
        ({"shuffled": "no"}, "shuffled must be true or false"),
    ],
)
def test_values_of_another_kind(values, message):
    with pytest.raises(InputError, match=message):
        checked_fields(Config, values, "c.yaml")


def test_help_has_the_fields_by_group(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: mxa do FILES [options]")
    own, shared = shown.partition("What is shared:")[::2]
    assert "What is its own:" in own and "--min-lr" in own and "(default: 1e-05)" in own and "100 % of them" in own
    assert "--root" in shared and "Where it is." in shared and "left" not in shown


BOMB = "[" + ",".join(f"&a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(8)) + "]"


@pytest.mark.parametrize(
    ("text", "said"), [(BOMB, "more than 20,000 values"), ("&a [*a]", "a value that holds itself")]
)
@pytest.mark.parametrize("name", ["labels", "model_args"])
def test_text_that_is_read_as_yaml_again_is_bounded(name, text, said):
    with pytest.raises(InputError, match=f"{name} holds {said}"):
        checked_fields(TrainConfig, {name: text}, "run/config.yaml")
    assert checked_fields(TrainConfig, {"labels": "Edema, & Mass: *"}, "x") == {"labels": "Edema, & Mass: *"}
