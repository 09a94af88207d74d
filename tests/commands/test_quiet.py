"""Colours and bars are for a terminal; NO_COLOR takes the colours away, and a pipe gets neither."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from mxa import cli

#: What a command shows of its own: a table, the bar of images, the bar and the lines of a training.
SHOWN = """
from mxa.commands import output
from mxa.commands.bar import images_bar
from mxa.training.progress import TrainProgress

output._print_table(("finding", "probability"), [("Effusion", "0.5")])
with images_bar(2) as advance:
    advance(1)
with TrainProgress(1, 2) as progress:
    progress.step(0, 0, 0.5, 1e-3)
    progress.epoch(0, 0.5, {})
"""
COLOUR = re.compile(r"\x1b\[[\d;]*\b(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


def on_a_terminal(**variables: str) -> str:
    """What a terminal of its own gets of it."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100"} | variables
    command = [sys.executable, "-c", SHOWN]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 4096):
                said += more
        except OSError:  # Linux's way to say that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def test_a_terminal_has_colours_and_bars_and_no_color_takes_the_colours_away():
    plain = on_a_terminal(NO_COLOR="1")
    assert COLOUR.search(on_a_terminal())
    assert not COLOUR.search(plain)
    assert "Effusion" in plain and "epoch 1/1  loss 0.5000" in plain and "━" in plain


def test_a_pipe_gets_text_alone():
    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, check=True)
    assert done.stderr == "" and "\x1b" not in done.stdout and "\r" not in done.stdout
    assert done.stdout.endswith("epoch 1/1  loss 0.5000\n") and "Effusion" in done.stdout


SMALL = ("--workers", "0")
COMMANDS = {
    "doctor": ("doctor", "--offline"),
    "data summary": ("data", "summary", "--data", "table", "--root", "{table}"),
    "prepare": ("prepare", "--data", "table", "--root", "{table}", "--output", "{out}/shards", "--workers", "1"),
    "train": (
        *("train", "--data", "table", "--root", "{table}", "--output", "{out}/run", "--model", "efficientvit_ml_m0"),
        *("--img-size", "64", "--epochs", "1", "--batch-size", "8", *SMALL),
    ),
    "evaluate": ("evaluate", "{run}", "--output", "{out}/report", "--replicates", "20", *SMALL),
    "predict": ("predict", "{film}", "--model", "{run}"),
    "predict --output": ("predict", "{film}", "--model", "{run}", "--output", "{out}/x.csv", *SMALL),
    "explain": ("explain", "{film}", "--model", "{run}", "--output", "{out}/why"),
    "export": ("export", "{run}", "--format", "torch-export", "--output", "{out}/graph"),
    "bench layers": ("bench", "layers", "--repeats", "1", "--batch-sizes", "1"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_in_a_pipe(name, table, run, tmp_path, capfd):
    names = {"table": table, "run": run, "out": tmp_path, "film": table.parent / "0.png"}
    cli.main([word.format(**names) for word in COMMANDS[name]])
    shown = "".join(capfd.readouterr())
    assert shown
    assert not re.search(r"[\x1b\r]| [━╸╺]", shown), shown  # a table's rules follow no space, a bar does
