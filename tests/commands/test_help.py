"""Help, versions and errors of options come at once: nothing that takes long is imported for them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
from timm.loss import MULTI_LABEL_LOSS_TYPES

from mxa import cli
from mxa.commands import output
from mxa.commands.predict.config import PredictConfig
from mxa.commands.registry import COMMANDS, named
from mxa.models.hub import SHIPPED
from mxa.training.config import TrainConfig

HEAVY = ("torch", "torchvision", "timm", "pandas", "scipy", "PIL", "matplotlib", "huggingface_hub", "numpy")
SCRIPT = f"""
import json, sys
from mxa import cli

for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as ended:
        print(arguments, ended.code, file=sys.stderr)
    if found := [name for name in {HEAVY!r} if name in sys.modules]:
        sys.exit(f"FOUND {{arguments}} imports {{found}}")
"""
LINES = [
    *(["--version"], ["--help"], ["predit"]),
    *([*name.split(), "--help"] for name in COMMANDS),
    *([*name.split(), "--no-such-option"] for name in COMMANDS),
    ["train", "--epochs", "two", "--output", "x"],
    ["train"],
]


def test_nothing_that_takes_long_is_imported():
    ended = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(LINES)], capture_output=True, text=True)
    assert ended.returncode == 0 and "FOUND" not in ended.stderr, ended.stderr[-2000:]
    assert ended.stderr.count(" 0\n") == 1 + len(COMMANDS)  # those of --help
    assert ended.stderr.count("unrecognized arguments: --no-such-option") == len(COMMANDS)
    assert "--epochs must be a whole number, got 'two'" in ended.stderr and "give --output" in ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name, capsys):
    command = COMMANDS[name]
    assert callable(named(command.function)) and callable(getattr(output, command.shown_by))
    hints = get_type_hints(named(command.config))
    assert command.positional is None or command.positional in hints
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{hint.replace('_', '-')}" in shown for hint in ("output",) if hint in hints)
    assert command.help in shown


def test_names_that_are_written_out_so_that_their_library_need_not_be_imported():
    assert get_args(get_type_hints(TrainConfig)["loss"]) == MULTI_LABEL_LOSS_TYPES
    assert PredictConfig.model == SHIPPED
