"""What the pages show: their code blocks, their commands, and their commands in the middle of a sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$|^<!-- (python|sh)\n(.*?)^-->$", re.DOTALL | re.MULTILINE)

# Bash itself reads the blocks. What would start a program writes its words to a file in its place.
_RECORD = """
record() { { printf '%s\\0' "$PWD" "$@"; printf '\\n\\0'; } >> "$RECORD"; }
command_not_found_handle() { record "$@"; }
for program in apt-get curl dcmsend docker dsrdump img2dcm make mxa npm Orthanc pip python torchrun unzip; do
  eval "$program() { record $program \\"\\$@\\"; }"
done
"""


@dataclass(frozen=True)
class Block:
    """A code block of a page; one without a language holds commands, and one in an HTML comment prepares the next."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of these languages in order; ``sh`` in a comment counts as one without a language."""
    found, text = [], page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        indent, language, code, hidden, setup = match.groups()
        language = {"sh": "", None: language}.get(hidden, hidden)
        if language in languages:
            code = setup if hidden else re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
            if language == "console":
                code = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)", code, re.MULTILINE))
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, language, code))
    return found


def commands(block: Block, folder: Path) -> list[tuple[str, list[str]]]:
    """Where each command of a block would start, and its words, as bash sees them in ``folder``. None starts."""
    record, home = folder / ".record", folder / ".home"
    for inside in (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions"):
        (home / inside).mkdir(parents=True, exist_ok=True)  # where shells look for completions
    record.write_bytes(b"")
    environment = {"RECORD": str(record), "PATH": "/usr/bin:/bin", "NIH": "NIH", "HOME": str(home)}
    bash = [shutil.which("bash"), "-c", _RECORD + block.text]
    done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert not done.stderr, f"{block}: {done.stderr}"
    entries = [entry.split("\0")[:-1] for entry in record.read_text().split("\n\0")[:-1]]
    return [(where, words) for where, *words in entries]


def inline_commands(page: Path) -> list[tuple[int, str]]:
    """The commands and options between single backticks, with their lines."""
    text = _FENCE.sub(lambda m: "\n" * m[0].count("\n"), page.read_text(encoding="utf-8"))
    spans = re.finditer(r"`((?:mxa |--)[^`]+)`", text)
    return [(text.count("\n", 0, m.start()) + 1, " ".join(m[1].split())) for m in spans]
