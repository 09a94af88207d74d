"""A shell completes commands, options and values, from the script that `mxa completion` prints."""

from __future__ import annotations

import subprocess

import pytest

from mxa import cli

#: Sets what bash sets as somebody presses TAB after the last word, and prints what the script offers.
TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_mxa; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "mxa"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        cli.main(["completion", "bash"])
    return path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tr"], {"train"}),
        (["bench", ""], {"models", "runtimes", "data", "task", "layers"}),
        (["train", "--layer"], {"--layer-decay"}),
        (["bench", "layers", "--rep"], {"--repeats"}),
        (["train", "--loss", ""], {"bce", "asl", "poly", "twoway", "zlpr", "db"}),
        (["train", "--output", "run", "--data", "chexpert-c"], {"chexpert-chexbert"}),
        (["ablate", "--recipe", "paper_a"], {"paper_ablation"}),
        (["predict", "x.png", "--calibrated", "y"], {"youden"}),
        (["train", "--recipe", "fast", "--root", "fil"], {"films.csv"}),
        (["predict", "fil"], {"films.csv"}),
        (["explain", "films.csv", "--no-skip"], {"--no-skip-bad"}),
    ],
)
def test_what_bash_offers(script, words, offered, tmp_path):
    (tmp_path / "films.csv").touch()
    tab = ["bash", "--norc", "-c", TAB, "tab", str(script), "mxa", *words]
    shown = subprocess.run(tab, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert set(shown.stdout.split()) >= offered, shown
    assert all(name.startswith(words[-1]) for name in shown.stdout.split())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_every_command(shell, capsys):
    cli.main(["completion", shell])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("localize", "layer-decay", "runtimes", "youden"))


def test_another_shell_is_one_line(capsys):
    with pytest.raises(SystemExit, match="--shell must be one of bash, zsh, fish, got 'ksh'"):
        cli.main(["completion", "ksh"])
