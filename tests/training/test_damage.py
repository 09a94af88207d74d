"""A checkpoint that was damaged, or is of something else, is known before it is used."""

from __future__ import annotations

import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from mxa.training.checkpoint import NAME, PREVIOUS, load_checkpoint, save_checkpoint
from mxa.training.loop import train
from mxa.utils.errors import InputError


def state(step: int) -> dict:
    weights = torch.Generator().manual_seed(step)
    return {"step": step, "model": {f"w{i}": torch.randn(40, 40, generator=weights) for i in range(8)}}


def check(folder: Path) -> int:
    """The step of what loads, all of whose tensors must be its own."""
    loaded = load_checkpoint(folder)
    for name, tensor in state(loaded["step"])["model"].items():
        assert torch.equal(loaded["model"][name], tensor)
    return loaded["step"]


@pytest.fixture
def saved(tmp_path):
    for step in (1, 2):
        save_checkpoint(state(step), tmp_path)
    return tmp_path, (tmp_path / NAME).read_bytes(), (tmp_path / PREVIOUS).read_bytes()


def test_a_bit_that_flips_anywhere(saved):
    folder, data, previous = saved
    chance, found = random.Random(0), []
    for _ in range(400):
        at, flipped = chance.randrange(len(data)), bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        (folder / NAME).write_bytes(flipped)
        (folder / PREVIOUS).write_bytes(previous)
        found.append(check(folder))
    assert set(found) == {1, 2} and found.count(1) > 300  # what is not a tensor's may not matter


@pytest.mark.parametrize("length", [1, 16, 4096])
def test_zeros_anywhere(saved, length, caplog):
    folder, data, previous = saved
    for at in range(0, len(data) - length, len(data) // 40):
        (folder / NAME).write_bytes(data[:at] + bytes(length) + data[at + length :])
        (folder / PREVIOUS).write_bytes(previous)
        check(folder)
    assert "checkpoint.pt: it is damaged (" in caplog.text and "the one before it is used" in caplog.text


def test_tensors_that_are_swapped_and_files_cut_short(saved):
    folder, data, previous = saved
    with zipfile.ZipFile(folder / NAME) as archive:
        places = [
            data.index(
                archive.read(
                    f"checkpoint/data/{i}"
                    if f"checkpoint/data/{i}" in archive.namelist()
                    else next(n for n in archive.namelist() if n.endswith(f"data/{i}"))
                )
            )
            for i in (0, 1)
        ]
    size = 40 * 40 * 4
    swapped = bytearray(data)
    swapped[places[0] : places[0] + size], swapped[places[1] : places[1] + size] = (
        data[places[1] : places[1] + size],
        data[places[0] : places[0] + size],
    )
    for broken in (bytes(swapped), data[: len(data) // 2], data[:-1], b"", data + data[:50]):
        (folder / NAME).write_bytes(broken)
        (folder / PREVIOUS).write_bytes(previous)
        check(folder)
    (folder / NAME).write_bytes(bytes(swapped))
    assert check(folder) == 1


def test_torch_s_advice_to_open_it_as_code_is_not_passed_on(tmp_path, capsys):
    class Run:
        def __reduce__(self):
            return print, ("a command was run",)

    torch.save({"x": Run()}, tmp_path / NAME)
    (tmp_path / PREVIOUS).write_bytes(pickle.dumps(Run()))
    with pytest.raises(InputError, match="it holds more than tensors and plain values, and is not opened") as error:
        load_checkpoint(tmp_path)
    assert "weights_only" not in str(error.value) and "trust" not in str(error.value) and "\n" not in str(error.value)
    assert "a command was run" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def half(table, tmp_path_factory):
    """A run that could go on for one more epoch."""
    from mxa.training.loop import TrainConfig

    output = tmp_path_factory.mktemp("half") / "run"
    small = {"data": "table", "root": table, "img_size": 32, "batch_size": 8, "workers": 0, "model": "resnet10t"}
    train(TrainConfig(output, epochs=1, **small))
    return output


PARTS = ("epoch", "step", "losses", "best", "seconds", "labels", "config", "same", "bad", "model", "optimizer")
CHANGES = {
    **{f"no {name}": {name: None} for name in PARTS},
    "epoch text": {"epoch": "1"},
    "epoch below zero": {"epoch": -1},
    "epoch a bool": {"epoch": True},
    "step without losses": {"step": 3},
    "losses text": {"step": 1, "losses": ["a"]},
    "best empty": {"best": {}},
    "bad text": {"bad": ["a"]},
    "bad far away": {"bad": [10**9]},
    "model empty": {"model": {}},
    "model of numbers": {"model": {"a": 1}},
    "optimizer empty": {"optimizer": {}},
    "optimizer of text": {"optimizer": {"state": "a", "param_groups": "b"}},
    "optimizer of other groups": {"optimizer": {"state": {}, "param_groups": []}},
}


@pytest.mark.parametrize("name", [*CHANGES, "a list", "a tensor"])
def test_a_checkpoint_of_something_else_is_one_error(half, table, tmp_path, config, name):
    run = shutil.copytree(half, tmp_path / "copy")
    saved = torch.load(run / NAME, weights_only=True)
    saved |= CHANGES.get(name, {})
    saved = {k: v for k, v in saved.items() if v is not None}
    torch.save({"a list": [1], "a tensor": torch.zeros(3)}.get(name, saved), run / NAME)
    options = {"output": run, "epochs": 1, "img_size": 32, "model": "resnet10t", "resume": "auto"}
    with pytest.raises(InputError, match=r"is no checkpoint of a run|is of another model") as error:
        train(config(**options))
    assert "\n" not in str(error.value)
