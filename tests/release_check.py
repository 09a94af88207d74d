"""Builds the sdist and the wheel, and uses the wheel in clean environments, away from the repository.

``make release-check`` runs it. One environment has the oldest dependencies that pyproject.toml allows, the other the
newest. Each is made in turn and deleted; it takes some 7 GB while it is there, most of it PyTorch. The table at the end
says what was done; the exit status is 1 if something failed.
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FILM = ROOT / "examples" / "images" / "00001373_038.jpg"
SHIPPED = "efficientvit_ml_m0_mxa.r160_nih8k"
LARGEST_WHEEL, DISK = 40e6, 12e9  # bytes
SAME = 1e-3  # most that a probability may differ between the oldest and the newest dependencies

IMPORT = "import mxa, mxa.layers, mxa.metrics, mxa.task; print(mxa.__file__)"
MODELS = "import mxa, timm; print(len(timm.list_models('efficientvit_ml*')))"
WEIGHTS = f"""
import mxa, timm, torch
model = timm.create_model("{SHIPPED}", pretrained=True).eval()
with torch.no_grad():
    logits = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
assert torch.isfinite(logits).all()
print(f"{{len(mxa.label_names(model))}} labels, logits {{tuple(logits.shape)}}")
"""


class Failed(Exception):
    """A step that went wrong; what it says is for the table."""


def say(*command: object, cwd: Path) -> str:
    """Runs a command away from the repository; returns what it printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "MXA_DATA")}
    clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
        raise Failed(f"status {done.returncode}: {(done.stderr or done.stdout).strip().splitlines()[-1][:120]}")
    return done.stdout.strip()


def expect(true: bool, what: str) -> str:
    """What was found, where it is as it should be."""
    if not true:
        raise Failed(what)
    return what


class Table:
    """The steps, what each found, and how long it took."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []
        self.failed = False

    def step(self, where: str, what: str, do: Callable[[], str]) -> bool:
        """Does a step and keeps what it says; returns whether it went well."""
        started = time.monotonic()
        try:
            found, good = do(), True
        except Failed as error:
            found, good = f"FAILED: {error}", False
        self.failed |= not good
        self.rows.append((where, what, found, f"{time.monotonic() - started:.0f} s"))
        print(*self.rows[-1], sep="  ", flush=True)
        return good

    def show(self) -> None:
        """Prints the table as Markdown."""
        rows = [("environment", "step", "found", "time"), ("---",) * 4, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        for row in rows:
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def build(table: Table, folder: Path) -> Path | None:
    """Builds both archives and checks what they hold; returns the wheel."""

    def both() -> str:
        say(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
        return ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.iterdir()))

    if not table.step("build", "sdist and wheel", both):
        return None
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")

    def metadata() -> str:
        said = say(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir(), cwd=folder)
        return expect(said.count("PASSED") == 2, "twine check passed both")

    def contents() -> str:
        with zipfile.ZipFile(wheel) as archive:
            files = archive.namelist()
        wanted = ("mxa/py.typed", f"mxa/models/{SHIPPED}.safetensors", "mxa/recipes/fast.yaml", "/licenses/LICENSE")
        lacking = [name for name in wanted if not any(file.endswith(name) for file in files)]
        foreign = {file.split("/")[0] for file in files} - {"mxa", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
        with tarfile.open(sdist) as archive:
            in_sdist = {name.partition("/")[2] for name in archive.getnames()}
        lacking += [name for name in ("pyproject.toml", "LICENSE", "tests/conftest.py") if name not in in_sdist]
        return expect(not lacking and not foreign, f"{len(files)} files; lacking {lacking}, foreign {sorted(foreign)}")

    size = wheel.stat().st_size
    table.step("build", "metadata", metadata)
    table.step("build", "size of the wheel", lambda: expect(size < LARGEST_WHEEL, f"{size / 1e6:.1f} MB"))
    table.step("build", "contents", contents)
    return wheel


def oldest(wheel: Path) -> list[str]:
    """The lower bound of every dependency, as pip wants it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    needed = [Requirement(one) for one in email.message_from_string(text).get_all("Requires-Dist", [])]
    bounds = {one.name: one.specifier for one in needed if one.marker is None}
    return [f"{name}=={bound.version}.*" for name, some in bounds.items() for bound in some if bound.operator == ">="]


def use(table: Table, where: str, wheel: Path, folder: Path, pins: list[str]) -> dict[str, float]:
    """Installs the wheel in a clean environment and does what a new user does; returns the film's probabilities."""
    scripts, found = folder / "env" / ("Scripts" if os.name == "nt" else "bin"), {}
    film = Path(shutil.copy(FILM, folder))

    def python(*arguments: object) -> str:
        return say(scripts / "python", *arguments, cwd=folder)

    def mxa(*arguments: object) -> str:
        return say(scripts / "mxa", *arguments, cwd=folder)

    def install(what: str) -> str:
        python("-m", "pip", "install", "-q", "--disable-pip-version-check", what, *pins)
        lines = python("-m", "pip", "list", "--disable-pip-version-check", "--format=freeze").splitlines()
        return ", ".join(one for one in lines if one.partition("==")[0] in ("torch", "torchvision", "timm", "numpy"))

    def make() -> str:
        venv.create(folder / "env", with_pip=True)
        return install(str(wheel))

    def imported() -> str:
        at = python("-c", IMPORT)
        return expect("site-packages" in at, at[-40:])

    def models() -> str:
        count = python("-c", MODELS)
        return expect(count == "12", count)

    def predict() -> str:
        (row,) = json.loads(mxa("predict", film, "--format", "json"))
        found.update(row["probabilities"])
        first = max(found, key=found.__getitem__)
        good = len(found) == 15 and all(0 <= value <= 1 for value in found.values())
        return expect(good, f"{len(found)} findings, most probable {first} {found[first]:.4f}")

    def train() -> str:
        small = ("--model", "efficientvit_ml_m0_mxa", "--img-size", 64, "--epochs", 1)
        said = mxa("train", *small, "--output", "run").splitlines()[0]
        return expect((folder / "run" / "model.safetensors").is_file(), said)

    if not table.step(where, "install", make):
        return {}
    table.step(where, "import", imported)
    table.step(where, "models", models)
    table.step(where, "weights that come with mxa", lambda: python("-c", WEIGHTS))
    table.step(where, "mxa --version", lambda: mxa("--version"))
    table.step(where, "mxa completion", lambda: f"{len(mxa('completion', 'bash').splitlines())} lines for bash")
    table.step(where, "mxa predict", predict)
    table.step(where, "mxa doctor", lambda: mxa("doctor", "--offline").splitlines()[0])
    if table.step(where, "install mxa[train]", lambda: install(f"{wheel}[train]")):
        table.step(where, "mxa train, one epoch of phantoms", train)
    return found


def main() -> None:
    """Does every step and prints the table."""
    table, predicted = Table(), {}
    with tempfile.TemporaryDirectory(prefix="mxa-release-") as name:
        (dist := Path(name, "dist")).mkdir()
        wheel = build(table, dist)
        for where in ("oldest", "newest") if wheel else ():
            if (free := shutil.disk_usage(name).free) < DISK:
                sys.exit(f"{free / 1e9:.0f} GB are free in {name}: set TMPDIR to a folder with {DISK / 1e9:.0f} GB")
            (folder := Path(name, where)).mkdir()
            predicted[where] = use(table, where, wheel, folder, oldest(wheel) if where == "oldest" else [])
            shutil.rmtree(folder)
    if all(predicted.get(where) for where in ("oldest", "newest")):
        old, new = predicted["oldest"], predicted["newest"]
        most = max(abs(old[label] - new[label]) for label in new)
        table.step("both", "the same probabilities", lambda: expect(most < SAME, f"largest difference {most:.1e}"))
    table.show()
    sys.exit(table.failed)


if __name__ == "__main__":
    main()
