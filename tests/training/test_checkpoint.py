"""The checkpoint survives a kill at any moment."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mxa.training.checkpoint import BROKEN, NAME, PREVIOUS, load_checkpoint, save_checkpoint
from mxa.utils.errors import InputError
from mxa.utils.files import alone_in, atomic_write


def test_a_file_has_the_mode_of_its_neighbours(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write(tmp_path / "weights", lambda path: save_file({"w": torch.zeros(1)}, path))
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode


def state(step: int) -> dict:
    return {"step": step, "model": {"weight": torch.full((50, 50), float(step))}}


def step_of(folder: Path) -> int | None:
    """The step of the checkpoint that loads, whose tensors must be whole and its own."""
    loaded = load_checkpoint(folder)
    if loaded is None:
        return None
    assert torch.equal(loaded["model"]["weight"], state(loaded["step"])["model"]["weight"])
    return loaded["step"]


def test_round_trip(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": {"epoch": 2, "macro_auc": 0.75},
        "labels": ("Edema", "Mass"),
        "bad": [1, 5],
    }
    save_checkpoint(saved, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.keys() == saved.keys()
    for key in ("epoch", "best", "labels", "bad"):
        assert loaded[key] == saved[key]
    torch.testing.assert_close(loaded["model"], saved["model"])
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(loaded["optimizer"])
    torch.testing.assert_close(other.state_dict()["state"], saved["optimizer"]["state"])


def test_the_previous_one_is_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save_checkpoint(state(step), tmp_path)
        assert step_of(tmp_path) == step
    assert torch.load(tmp_path / PREVIOUS)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((NAME, PREVIOUS))


def test_a_broken_checkpoint_falls_back_on_the_previous_one(tmp_path):
    for step in (1, 2):
        save_checkpoint(state(step), tmp_path)
    data = (tmp_path / NAME).read_bytes()
    for broken in (b"", data[:100], data[: len(data) // 2], data[:-1], b"no checkpoint"):
        (tmp_path / NAME).write_bytes(broken)
        assert step_of(tmp_path) == 1
        assert (tmp_path / BROKEN).read_bytes() == broken and not (tmp_path / NAME).exists()
        assert step_of(tmp_path) == 1
    save_checkpoint(state(3), tmp_path)  # the broken one does not take the place of the good one
    assert torch.load(tmp_path / PREVIOUS)["step"] == 1
    (tmp_path / NAME).write_bytes(b"")
    (tmp_path / PREVIOUS).write_bytes(data[:-30])
    with pytest.raises(InputError) as error:
        load_checkpoint(tmp_path)
    assert str(tmp_path / NAME) in str(error.value) and str(tmp_path / PREVIOUS) in str(error.value)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(InputError, match="no checkpoint reads"):
        load_checkpoint(tmp_path)


def save_until_killed(folder: Path, survive: int, links: bool) -> None:
    """Saves step 3 and kills itself at the call after ``survive`` of those that touch the disk."""
    calls = 0

    def guard(module, name):
        real = getattr(module, name)

        def call(*args):
            nonlocal calls
            if calls == survive:
                if name == "save":  # half of the file is written
                    buffer = io.BytesIO()
                    real(args[0], buffer)
                    Path(args[1]).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return real(*args)

        setattr(module, name, call)

    if not links:
        os.link = no_link
    for module, name in ((torch, "save"), (os, "link"), (os, "replace"), (os, "unlink"), (os, "fsync")):
        guard(module, name)
    save_checkpoint(state(3), folder)


def no_link(*unused) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def run_and_kill(folder: Path, survive: int, links: bool) -> bool:
    """Says whether the save was killed, not finished."""
    process = multiprocessing.get_context("fork").Process(target=save_until_killed, args=(folder, survive, links))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("links", [True, False])  # whether the file system has hard links
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path, earlier, links):
    found = []
    for survive in range(20):
        folder = tmp_path / str(survive)
        folder.mkdir()
        for step in range(1, earlier + 1):
            save_checkpoint(state(step), folder)
        killed = run_and_kill(folder, survive, links)
        assert (folder / NAME).exists() or not (earlier and links)  # who watches the folder never misses it
        found.append(step_of(folder))
        save_checkpoint(state(4), folder)  # the restart
        assert step_of(folder) == 4
        if found[-1]:
            (folder / NAME).unlink()
            assert step_of(folder) == found[-1]
        if not killed:
            break
    old = earlier or None
    assert found[0] == old and found[-1] == 3 and set(found) == {old, 3}
    assert len(found) >= 5  # in the write, before the rename, before each flush, after all


def test_atomic_write_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.yaml"
    atomic_write(path, lambda p: p.write_text("old"))

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    atomic_write(path, lambda p: p.write_text("new"))
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic_write(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_held_by_one_process(tmp_path):
    def try_it(queue):
        try:
            with alone_in(tmp_path, "mxa train"):
                queue.put("held")
        except InputError as error:
            queue.put(str(error))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def other() -> str:
        process = context.Process(target=try_it, args=(queue,))
        process.start()
        process.join(30)
        return queue.get(timeout=30)

    with alone_in(tmp_path, "mxa train"):
        assert other() == f"mxa train is at work in {tmp_path}: wait for it, or end it"
    assert other() == "held"


def test_what_torch_says_of_a_full_disk_is_one_error(tmp_path, monkeypatch):
    save_checkpoint(state(1), tmp_path)

    def full(*unused):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"checkpoint\.pt could not be written .*unexpected pos 64 vs 0\): free space"):
        save_checkpoint(state(2), tmp_path)
    assert step_of(tmp_path) == 1 and not list(tmp_path.glob(".*"))
