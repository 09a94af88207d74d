"""``mxa app`` before it serves anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mxa import cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "0"), "--port 0 must be 1 to 65535"),
        (("--port", "web"), "--port must be a whole number, got 'web'"),
        (("--max-mb", "0"), "--max-mb must be at least 1"),
        (("--listen",), "unrecognized arguments: --listen"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        cli.main(["app", *arguments])
    assert "\n" not in str(error.value)


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'gradio is not installed: run pip install "mxa\[app\]"'):
        cli.main(["app"])


def test_help_is_quick():
    code = (
        "import sys\nfrom mxa import cli\n"
        "try:\n    cli.main(['app', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('HEAVY', sorted({'torch', 'timm', 'gradio', 'pandas', 'PIL'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    for option in ("models", "--host", "--port", "--examples", "--max-mb"):
        assert option in shown
