"""What the pages need to be a site: README as the first page, files outside docs/, the commands' options, and math.

GitHub shows the same pages without any of this.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mxa.commands.registry import COMMANDS, named
from mxa.utils.command_line import option_parser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PATHS = ("try.md", "tutorial.md", "block.md")
_LINK = re.compile(r'(\]\(|src=")(?!https?:|mailto:|#)([^)\s"#]+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of other files."""
    made = {
        "index.md": _first_page(),
        "changelog.md": _relinked((ROOT / "CHANGELOG.md").read_text("utf-8"), ROOT, "changelog.md"),
        "commands.md": _commands(),
    }
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        for _, link in _LINK.findall(page.read_text("utf-8")):
            target = (page.parent / link).resolve()
            if target.is_file() and DOCS not in target.parents and target.suffix != ".md":
                made[_address(target)] = _source_page(target)
    for address, content in made.items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Leads links to files outside docs/ to their pages here."""
    if page.file.generated_by:
        return markdown
    return _relinked(markdown, (DOCS / page.file.src_uri).parent, page.file.src_uri)


def on_page_content(content: str, **_: object) -> str:
    """Makes MathML of formulas: browsers show it without a script."""

    def mathml(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2])[2:-2].strip(), display=display)

    return re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', mathml, content, flags=re.DOTALL)


def _address(target: Path) -> str:
    """Where a file of the repository stands in the site."""
    if DOCS in target.parents:
        return target.relative_to(DOCS).as_posix()
    if target.suffix == ".md" and target.parent == ROOT:
        return {"README": "index.md", "CHANGELOG": "changelog.md"}[target.stem]
    return f"source/{target.relative_to(ROOT).as_posix()}.md"


def _relinked(text: str, folder: Path, address: str) -> str:
    """Rewrites the links of a text that stands in ``folder`` for the page at ``address``."""

    def link(match: re.Match) -> str:
        target = Path(os.path.normpath(folder / match[2]))
        if not target.is_file():
            return match[0]
        return match[1] + posixpath.relpath(_address(target), posixpath.dirname(address) or ".")

    return _LINK.sub(link, text)


def _first_page() -> str:
    """README's first screen, with the three ways in where its comment asks for them."""
    text = (ROOT / "README.md").read_text("utf-8").partition("\n## Ways in")[0]
    cards = ["---\nhide: [navigation, toc]\n---\n"]
    for page in PATHS:
        title, _, rest = (DOCS / page).read_text("utf-8").partition("\n")
        first = " ".join(rest.strip().partition("\n\n")[0].split())
        cards.append(f'<a href="{page[:-3]}.html"><strong>{title.lstrip("# ")}</strong><br>{first}</a>')
    front, *cards = cards
    text = text.replace("<!-- paths -->", f'<div class="paths">\n{chr(10).join(cards)}\n</div>')
    return front + _relinked(text, ROOT, "index.md")


def _source_page(target: Path) -> str:
    language = {".py": "python", ".yaml": "yaml"}.get(target.suffix, "text")
    return f"# {target.relative_to(ROOT).as_posix()}\n\n````{language}\n{target.read_text('utf-8')}````\n"


def _commands() -> str:
    """Every command with its options, as ``--help`` prints them."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands\n\nWhat `mxa COMMAND --help` prints. Every option can also stand in a `--config FILE.yaml`."]
    for name, command in COMMANDS.items():
        kind = named(command.config)
        parser = option_parser(kind, f"mxa {name}", command.help, command.positional, command.recipes, helps=True)
        parts.append(f"## mxa {name}\n\n```text\n{parser.format_help().strip()}\n```")
    return "\n\n".join(parts) + "\n"
