"""The program in JavaScript of docs/deployment.md, as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mxa
from mxa.deployment.export import ExportConfig, export

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_the_javascript_gives_our_probabilities(tmp_path, program):
    packages = Path(os.environ.get("MXA_NODE_MODULES") or ROOT / ".venv" / "node" / "node_modules")
    if not (packages / "onnxruntime-node").is_dir():
        reason = f"needs npm install onnxruntime-node pngjs in {packages.parent}: make test-deploy does it"
        (pytest.fail if os.environ.get("MXA_REQUIRE_DATA") else pytest.skip)(reason)
    name = "efficientvit_ml_m0_mxa.r160_nih8k"
    export(ExportConfig(model=name, output=tmp_path / "exported"))
    film = Image.open(next((ROOT / "examples" / "images").glob("*.jpg"))).convert("L")
    film.save(tmp_path / "film.png")
    (tmp_path / "main.js").write_text(re.search(r"```js\n(.*?)```", PAGE, re.DOTALL)[1])
    command = [program("node"), tmp_path / "main.js", tmp_path / "exported", tmp_path / "film.png"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NODE_PATH": str(packages)})
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ") for line in done.stdout.splitlines())
    right = mxa.predict(film, name)
    assert list(found) == list(right)
    assert np.abs(np.array(list(found.values()), float) - list(right.values())).max() < 2e-3
