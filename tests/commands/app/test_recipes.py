"""The Dockerfile and the Space of examples, without a container and without the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import venv
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from ...waiting import free_port, wait_until

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"
SPACE = ROOT / "examples" / "space"
ANSWER = """
import sys
from pathlib import Path
from mxa.commands.app.answers import answer, open_models
from mxa.commands.app.films import read_film
from mxa.commands.app.serve import AppConfig
(model,) = open_models({"small": AppConfig().models[0]}).values()
film = read_film(next(Path(sys.argv[1]).glob("*.jpg")), [model.reader()])
print(len(answer("small", model, film, "youden").layers))
"""


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile and what stands behind it."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def with_what_it_needs(*names: str) -> set[str]:
    """Some installed packages and all that they need."""
    found, left = set(), [(name, "") for name in names]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            name, extra = one
            wanted = [Requirement(line) for line in metadata.requires(name) or ()]
            needed = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra})]
            left += [(r.name, e) for r in needed for e in ("", *r.extras)]
    return {name for name, _ in found}


def let_see(folder: Path, site: Path, *names: str) -> None:
    """Makes an environment see installed packages, without the others that are beside them."""
    folder.mkdir()
    for name in with_what_it_needs(*names):
        own = metadata.distribution(name)
        for top in {file.parts[0] for file in own.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(own.locate_file(top))
    (site / "seen.pth").write_text(str(folder))


@pytest.mark.app
@pytest.mark.timeout(1500)
def test_the_commands_of_the_dockerfile_in_a_clean_environment(tmp_path):
    """The RUN and CMD lines as they stand; PyTorch is there already, and no user is made."""
    environment, source = tmp_path / "env", tmp_path / "src"
    venv.create(environment, with_pip=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for own in site.glob("setuptools*"):  # older than the one that PyTorch needs
        shutil.rmtree(own)
    let_see(tmp_path / "seen", site, "torch", "torchvision")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    env |= {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for what, rest in instructions():
        if what == "COPY":
            *files, target = rest.split()
            for file in files:
                place = tmp_path / target.lstrip("/") / ("" if (ROOT / file).is_dir() else file)
                copy = shutil.copytree if (ROOT / file).is_dir() else shutil.copy
                place.parent.mkdir(parents=True, exist_ok=True)
                copy(ROOT / file, place)
        elif what == "RUN" and not rest.startswith("useradd "):
            command = rest.replace("/src", str(source))
            done = subprocess.run(command, shell=True, env=env, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        elif what == "ENV":
            env |= dict(pair.split("=") for pair in rest.split())
    shutil.rmtree(source)  # what was installed must do
    installed = {path.name.split("-")[0] for path in site.glob("*.dist-info")}
    assert {"mxa", "gradio", "pydicom"} <= installed
    assert not {"captum", "pytest", "matplotlib", "webdataset"} & installed
    films = ROOT / "examples" / "images"
    shown = subprocess.run(["mxa", "predict", films], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.count("Effusion") == 4, shown.stderr
    shown = subprocess.run(["python", "-c", ANSWER, films], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert shown.stdout == "8\n", shown.stderr  # it takes no extra to draw what lies over a film
    command, port = json.loads(dict(instructions())["CMD"]), free_port()
    with (tmp_path / "log").open("w") as log:
        page = subprocess.Popen([*command, "--port", str(port)], env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(lambda: "the page is at" in (tmp_path / "log").read_text(), page)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert answer.status == 200 and b"Try a chest X-ray" in answer.read()
    finally:
        page.send_signal(signal.SIGTERM)
        assert page.wait(30) == 0, (tmp_path / "log").read_text()


def test_the_dockerfile_runs_without_rights_and_on_the_port_of_the_app():
    found = instructions()
    order = [what for what, _ in found]
    assert order.index("USER") > max(i for i, what in enumerate(order) if what == "RUN")
    assert dict(found)["USER"] not in ("root", "0")
    assert dict(found)["EXPOSE"] == "7860"
    copied = [file for what, rest in found if what == "COPY" for file in rest.split()[:-1]]
    assert all((ROOT / file).exists() for file in copied)


def test_the_space_is_one_that_the_hub_reads():
    _, header, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    about = yaml.safe_load(header)
    assert about["sdk"] == "gradio" and (SPACE / about["app_file"]).is_file()
    assert Requirement((SPACE / "requirements.txt").read_text().strip()).name == "mxa"


@pytest.mark.app
def test_the_space_serves_the_page(tmp_path):
    place = shutil.copytree(SPACE, tmp_path / "space")
    shutil.copytree(ROOT / "examples" / "images", place / "images")
    port = free_port()
    code = (place / "app.py").read_text().replace("AppConfig(", f"AppConfig(port={port}, ", 1)
    assert code.count("AppConfig(port") == 1
    (place / "app.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    page = subprocess.Popen([sys.executable, str(place / "app.py")], env=env, stderr=subprocess.DEVNULL)

    def there() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                return b"00001373_038" in answer.read()
        except OSError:
            return False

    try:
        wait_until(there, page)
        assert there()
    finally:
        page.send_signal(signal.SIGTERM)
        assert page.wait(30) == 0
