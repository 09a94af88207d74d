"""``python -m mxa.run SCRIPT.py ...``: a script as ``python SCRIPT.py ...`` runs it, with our names registered."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys
import timm
import beside
print(json.dumps({"argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0], "beside": beside.VALUE,
                  "models": timm.list_models(module="efficientvit_ml"), "mxa": "mxa" in globals()}))
sys.exit(3)
"""


def run(*args, **kwargs):
    command = [sys.executable, "-m", "mxa.run", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def test_script_sees_its_own_world_and_its_exit_code_passes_through(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 7")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run(script, "a", "--flag", "b c")
    assert done.returncode == 3, done.stderr
    seen = json.loads(done.stdout)
    assert seen["argv"] == [str(script), "a", "--flag", "b c"]
    assert seen["name"] == "__main__"
    assert seen["file"] == str(script)
    assert seen["path"] == str(tmp_path)
    assert seen["beside"] == 7
    assert len(seen["models"]) == 12
    assert not seen["mxa"]


def test_an_error_passes_through(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise KeyError('lost')")
    done = run(script)
    assert done.returncode == 1
    assert "KeyError: 'lost'" in done.stderr


def test_without_a_script_usage_is_said():
    done = run()
    assert done.returncode != 0
    assert "usage: python -m mxa.run SCRIPT.py" in done.stderr
    assert "Traceback" not in done.stderr
