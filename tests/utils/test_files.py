"""Files and folders among other processes, links and full disks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mxa import cli
from mxa.utils.errors import InputError
from mxa.utils.files import alone_in, atomic_copy, atomic_write, is_empty, write_text

from ..waiting import wait_until

HOLD = """
import sys, time
from pathlib import Path
from mxa.utils.files import alone_in
with alone_in(Path(sys.argv[1]), "mxa evaluate"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_temporary_file_has_a_name_that_nobody_knows(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".report.html.tmp").symlink_to(victim)
    names = []

    def write(path: Path) -> None:
        names.append(path.name)
        assert path.parent == tmp_path and not path.is_symlink()
        path.write_text("new")

    for _ in range(3):
        atomic_write(tmp_path / "report.html", write)
    assert len(set(names)) == 3 and victim.read_text() == "precious"
    assert (tmp_path / "report.html").read_text() == "new"


def test_a_link_in_its_way_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr("mxa.utils.files.secrets.token_hex", lambda size: "guessed")
    (tmp_path / ".mxa-guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a", "new")
    assert victim.read_text() == "precious" and not (tmp_path / "a").exists()


def test_a_link_at_the_end_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a").symlink_to(victim)
    write_text(tmp_path / "a", "new")
    assert victim.read_text() == "precious" and not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_mask_s(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


FULL = """
import resource, sys
from pathlib import Path
import mxa.utils.files as files
from mxa.utils.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    files.atomic_copy(Path(sys.argv[1]), Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


def test_a_copy_on_a_full_disk_leaves_what_was_there(tmp_path):
    (tmp_path / "large").write_bytes(bytes(200_000))
    (tmp_path / "kept").write_text("old")
    command = [sys.executable, "-c", FULL, str(tmp_path / "large"), str(tmp_path / "kept")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\S*kept could not be written \(File too large\): free space, then run again\n", said)
    assert (tmp_path / "kept").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    atomic_copy(tmp_path / "large", tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_size == 200_000


def test_who_holds_a_folder_is_said_and_a_kill_lets_it_go(tmp_path):
    folder = tmp_path / "out"
    process = holder(folder)
    try:
        message = f"^mxa evaluate is at work in {folder}: wait for it, or end it$"
        with pytest.raises(InputError, match=message), alone_in(folder, "mxa train"):
            pass
        (folder / ".mxa-0123456789abcdef.tmp").write_text("half")
    finally:
        process.kill()
        process.wait()
    (folder / "predictions").mkdir()
    (folder / "predictions" / ".mxa-0123456789abcdef.tmp").write_text("half")
    with alone_in(folder, "mxa train", within=("predictions",)):
        assert not list(folder.rglob(".mxa-*.tmp")) and is_empty(tmp_path / "none") and not is_empty(folder)
    assert [path.name for path in folder.iterdir()] == ["predictions"]


def test_a_folder_that_is_not_filled_is_removed(tmp_path):
    with pytest.raises(RuntimeError), alone_in(tmp_path / "a" / "b", "mxa train"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), alone_in(tmp_path / "a" / "b", "mxa train"):
        write_text(tmp_path / "a" / "b" / "kept", "")
        raise RuntimeError
    assert (tmp_path / "a" / "b" / "kept").exists()
    with pytest.raises(InputError, match="is a file: give a folder"), alone_in(tmp_path / "a" / "b" / "kept", "x"):
        pass


def test_two_evaluations_do_not_mix(run, table, tmp_path):
    out = tmp_path / "out"
    command = ["evaluate", str(run), "--data", "table", "--root", str(table), "--output", str(out)]
    command += ["--workers", "0", "--replicates", "20", "--split", "all"]
    mxa = [sys.executable, "-m", "mxa"]
    first = subprocess.Popen([*mxa, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((out / ".mxa-running").exists, first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        with pytest.raises(SystemExit) as second:
            cli.main(command)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.value.code == f"mxa evaluate: mxa evaluate is at work in {out}: wait for it, or end it"
    assert first.wait(120) == 0, first.communicate()[1]
    assert {path.name for path in out.iterdir()} == {
        *("metrics.json", "metrics.csv", "model_card.md", "report.html", "predictions")
    }
