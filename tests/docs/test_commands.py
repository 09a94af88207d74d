"""Every command of README and docs is taken by the parser of the program that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mxa.commands.registry import COMMANDS, named
from mxa.utils.command_line import parse
from mxa.utils.errors import InputError

from .pages import PAGES, ROOT, blocks, commands, inline_commands

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
#: Debian's programs, and OpenVINO's.
OTHERS = {"apt-get", "benchmark_app", "curl", "dcmsend", "docker", "dsrdump", "img2dcm", "npm", "Orthanc", "unzip"}
CHANGES = ROOT / "CHANGELOG.md"  # it names options that are gone


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where blocks are expanded: the repository's files by their names, and nothing else."""
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_mxa(words: list[str]) -> None:
    """Parses ``words``, which follow ``mxa``."""
    name = next((n for n in COMMANDS if words[: len(n.split())] == n.split()), None)
    assert name, f"no command mxa {words[0]}"
    command = COMMANDS[name]
    parse(
        named(command.config),
        words[len(name.split()) :],
        f"mxa {name}",
        command.help,
        command.positional,
        command.recipes,
    )


def check_python(words: list[str]) -> None:
    """Checks the script and its options, where it is one of ours."""
    if words[:2] == ["-m", "mxa"]:
        return check_mxa(words[2:])
    if words[:2] == ["-m", "mxa.run"]:  # a script of timm's
        return None
    script = ROOT / words[0]
    if script.is_dir():  # the commands of mxa, with the study's forms
        return check_mxa(words[1:])
    source = script.read_text()
    lacking = [word for word in words[1:] if word.startswith("--") and f'"{word}"' not in source]
    assert not lacking, f"{words[0]} has no option {lacking}"
    return None


def check(words: list[str]) -> None:
    program, *rest = words
    if program == "mxa":
        check_mxa(rest)
    elif program == "python":
        check_python(rest)
    elif program == "torchrun":
        check_python(rest[rest.index("-m") :])
    elif program == "make":
        assert f"\n{rest[0]}:" in MAKEFILE
    elif program == "pip":
        extras = re.findall(r"mxa\[(.*?)\]", " ".join(rest))
        assert set(",".join(extras).split(",")) - {""} <= set(EXTRAS)
    else:
        assert program in OTHERS, f"{program} is no program that the pages may show"


WITH_COMMANDS = [page for page in PAGES if blocks(page, "", "console")]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_blocks(page, folder):
    for block in blocks(page, "", "console"):
        for _, words in commands(block, folder):
            try:
                check(words)
            except (InputError, AssertionError, FileNotFoundError) as error:
                pytest.fail(f"{block}: {shlex.join(words)}: {error}")


OPTIONS = set()  # of every command and example


def options() -> set[str]:
    if not OPTIONS:
        for command in COMMANDS.values():
            fields = named(command.config).__dataclass_fields__
            OPTIONS.update(f"--{field.replace('_', '-')}" for field in fields)
        for script in (ROOT / "examples").rglob("*.py"):
            OPTIONS.update(re.findall(r'add_argument\("(--[\w-]+)"', script.read_text()))
        OPTIONS.update({"--config", "--recipe", "--help", "--version"})
    return OPTIONS


@pytest.mark.parametrize("page", [p for p in PAGES if p != CHANGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_in_sentences(page, folder):
    """A command in a sentence may leave out what does not matter there, but no option or value of it is wrong."""
    for line, text in inline_commands(page):
        where = f"{page.relative_to(ROOT)}:{line}: {text}"
        words = shlex.split(text.replace("\\|", "|").partition("|")[0])
        assert {word for word in words if re.fullmatch("--[a-z].*", word)} <= options(), where
        words = [word for word in words if word not in ("...", "…", "--version", "--help")]
        if words[:1] != ["mxa"] or len(words) == 1 or words[1:] == ["bench"]:
            continue
        if words[-1].startswith("--"):  # an option that is named without a value
            words.pop()
        if "--config" in words:
            Path("DIR").mkdir(exist_ok=True)
            Path("DIR/config.yaml").touch()
        try:
            check_mxa(words[1:])
        except InputError as error:
            assert str(error).startswith("give "), f"{where}: {error}"
