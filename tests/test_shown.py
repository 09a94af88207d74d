"""What the command shows: names as they are and no more; one line for Ctrl-C and for a pipe that is closed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from mxa import cli
from mxa.commands import output
from mxa.evaluation.report.model_card import model_card
from mxa.evaluation.report.page import _table as html_table
from mxa.evaluation.report.rows import card, csv_text, markdown

from .waiting import wait_until

NAMES = (
    "scan [old].png",
    "b[/c].png",
    "a\x1b[31mred\x07.png",
    "c\rd\ne.png",
    "x\u202egnp.png",
    "[bold]y.png",
    ":smile:.png",
)
SHOWN = (
    "scan [old].png",
    "b[/c].png",
    r"a\x1b[31mred\x07.png",
    r"c\rd\ne.png",
    r"x\u202egnp.png",
    "[bold]y.png",
    ":smile:.png",
)


def mxa(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mxa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def said(capsys, *arguments) -> subprocess.CompletedProcess:
    """What ``mxa`` shows, without a process of its own."""
    capsys.readouterr()
    status = 0
    try:
        cli.main([*map(str, arguments)])
    except SystemExit as end:
        status = end.code
    out, error = capsys.readouterr()
    if isinstance(status, str):  # as Python does
        status, error = 1, f"{error}{status}\n"
    return subprocess.CompletedProcess(arguments, status, out, error)


@pytest.fixture
def names(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        (folder / name.replace("/", "\u2215")).parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").save(folder / name.replace("/", "\u2215"))
    return folder


def test_names_of_files_are_shown_as_they_are(names, run, capsys):
    shown = mxa("predict", names, "--model", run)
    assert shown.returncode == 0, shown.stderr
    exact = json.loads(said(capsys, "predict", names, "--model", run, "--format", "json").stdout)
    for name in SHOWN:
        assert name.replace("/", "\u2215") in shown.stdout
    assert not set("\x1b\x07\r\u202e") & set(shown.stdout + shown.stderr)
    assert {Path(row["file"]).name for row in exact} == {name.replace("/", "\u2215") for name in NAMES}


def test_names_in_errors_and_logs(names, run, tmp_path, capsys):
    for path in names.iterdir():
        path.write_bytes(b"no image")
    for command in (mxa, partial(said, capsys)):
        shown = command("predict", names, "--model", run, *(() if command is mxa else ("--skip-bad",)))
        assert shown.returncode == 1 and not set("\x1b\x07\r\u202e") & set(shown.stderr)
        assert shown.stderr.splitlines()[-1].startswith("mxa predict: ")
    assert r"\x1b[31m" in said(capsys, "predict", tmp_path / "\x1b[31m", "--model", run).stderr
    assert mxa("predict", os.fsdecode(b"\xff.png"), "--model", run).returncode == 1
    table = _table_of(tmp_path, "\x1b[2JMass")
    shown = said(capsys, "data", "summary", "--data", "table", "--root", table, "--labels", "Edema")
    assert "\x1b" not in shown.stdout + shown.stderr and r"\x1b[2JMass" in shown.stderr


def _table_of(folder: Path, label: str) -> Path:
    path = folder / "t.csv"
    path.write_text(f"path,patient,{label}\n" + "".join(f"{i}.png,p{i},{i % 2}\n" for i in range(4)))
    return path


def test_a_table_takes_no_markup(capsys):
    output._print_table(("a[/b]", "[red]c"), [("[/d]", "[link=x]e[/link]"), ("\x1b[1mf", "g\nh")])
    shown = capsys.readouterr().out
    for text in ("a[/b]", "[red]c", "[/d]", "[link=x]e[/link]", r"\x1b[1mf", r"g\nh"):
        assert text in shown


BAD = "Mass | <img src=x onerror=alert(1)> [a](http://x) `b` \x1b[1m\u202e\n# c"


def result(name: str) -> dict:
    row = {k: 0.5 for k in ("auc", "ap", "accuracy", "f1", "brier", "ece")} | {"n_pos": 1, "n_neg": 1}
    model = {"name": name, "images": 1, "patients": 1, "replicates": 1, "metadata": [{"data": name, "split": "test"}]}
    model |= {"labels": {name: row}, "undefined": [name], "not_in_collection": [name], "groups": {}, "macro_auc": 0.5}
    return {"models": [model], "paired": [], "notes": [name.replace("\n", " ")]}


def test_markdown_and_html_show_names_as_they_are():
    entry = {"license": "x", "labels": [BAD], "terms": BAD, "sha256": "0", "size": 1}
    entry |= {"recipe": {"model": BAD, "note": "a\n```\n<script>", BAD: 1}, "preprocessing": {"input_size": (1, 2, 2)}}
    for text in (card(result(BAD)), model_card("hf-hub:a/b.c", entry, result(BAD)), markdown((("a",), [(BAD,)]))):
        assert "\x1b" not in text and "\u202e" not in text and "\n# c" not in text
        outside = "".join(re.split(r"(?m)^```.*$", text)[::2])  # not in a block of code
        for mark in (r"<img", r"\[a", r"`b"):
            assert re.search(mark, outside) and not re.search(rf"(?<!\\){mark}", outside)
    assert model_card("hf-hub:a/b.c", entry, result("x")).count("\n```") == 4  # two blocks of code, opened and closed
    page = html_table((("a",), [(BAD,)]))
    assert "<img" not in page and "&lt;img" in page and "\x1b" not in page and "\u202e" not in page


def test_csv_has_no_formula_and_no_control_character():
    for name in ("=HYPERLINK(1)", "@x", "+1+cmd|' /C calc'!A0"):
        assert f"\n'{name}," in csv_text(result(name)) or f"\n\"'{name}" in csv_text(result(name))
    assert "\x1b" not in csv_text(result(BAD)) and "\n+ MXA," in csv_text(result("+ MXA"))


IMPORTING = """
import os, runpy, signal, sys, threading, time
sys.argv, sys.orig_argv = ["-m", *sys.argv[2:]], [sys.executable, "-m", "mxa", *sys.argv[2:]]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
wait = float(os.environ["WAIT"])
threading.Thread(target=lambda: (time.sleep(wait), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
import mxa
from mxa import cli
sys.argv[0] = "mxa"
cli.main()
time.sleep(60)
"""


@pytest.mark.parametrize("wait", [0.3, 2.0, *(pytest.param(wait, marks=pytest.mark.slow) for wait in (1.0, 4.0))])
def test_an_interrupt_of_the_imports_is_one_line(wait, tmp_path):
    command = [sys.executable, "-c", IMPORTING, "x", "train", "--epochs", "1000", "--output", str(tmp_path / "run")]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WAIT": str(wait)}, timeout=120)
    assert shown.returncode == 130, shown.stderr
    assert shown.stderr.splitlines()[-1] in ("mxa: stopped", "mxa train: stopped") and "Traceback" not in shown.stderr


def test_an_interrupt_of_a_training_is_one_line(run, table, tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom mxa import cli\ncli.main()"
    command = [sys.executable, "-c", code, "train", "--data", "table", "--root", str(table), "--img-size", "64"]
    command += ["--model", "efficientvit_ml_m0", "--epochs", "1000", "--batch-size", "8", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until((tmp_path / "run" / "log.csv").exists, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in error and error.splitlines()[-1] == "mxa train: stopped"
    assert not (tmp_path / "run" / ".mxa-running").exists()


def test_another_program_keeps_its_interrupts():
    code = "import signal; before = signal.getsignal(2)\nimport mxa\nassert signal.getsignal(2) is before"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_that_has_seen_enough(run, tmp_path, form):
    Image.linear_gradient("L").save(tmp_path / "0.png")  # nothing is to be said of it
    files = [shutil.copy(tmp_path / "0.png", tmp_path / f"{i}{'x' * 150}.png") for i in range(150)]
    command = [sys.executable, "-m", "mxa", "predict", *map(str, files), "--model", str(run), "--format", form]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.wait(60)
    assert error == "" and process.returncode in (0, 1, 141)


def children(pid: int) -> list[int]:
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in shown.stdout.split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_workers_end_with_a_parent_that_is_killed(command, table, made_nih, tmp_path):
    slow = "import time\nfrom mxa.data import image_io\nfrom mxa.commands import prepare\n"
    slow += "encode = prepare._encode\nprepare._encode = lambda *args: (time.sleep(2), encode(*args))[1]\n"
    arguments = ["prepare", "--data", "nih", "--root", made_nih(), "--shard-size", "5", "--workers", "2"]
    if command == "train":
        arguments = ["train", "--data", "table", "--root", table, "--img-size", "64", "--epochs", "1000"]
        arguments += ["--model", "efficientvit_ml_m0", "--batch-size", "8", "--workers", "2"]
    code = f"{slow}from mxa import cli\ncli.main()"
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments), "--output", str(tmp_path / "out")])
    wait_until(lambda: len(children(process.pid)) >= 2, process)
    time.sleep(1)
    workers = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(map(gone, workers)):
        time.sleep(0.1)
    assert workers and all(map(gone, workers))
