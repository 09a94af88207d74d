"""A run as a repository of the Hugging Face Hub: weights, configuration, model card, an input to check them with."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from PIL import Image
from torch import nn

from . import __version__
from .calibrate import NAME as CALIBRATION
from .calibrate import read_calibration
from .checkpoint import write_text
from .data import Collection, create_dataset, create_transform, data_config
from .data.phantom import draw
from .errors import InputError
from .evaluate import EvaluateConfig, evaluate
from .models.hub import WEIGHTS_FILE, WeightsError, digest, fetch, manifest, packaged, read_config
from .models.load import load_model, named_outputs
from .report.model_card import model_card

__all__ = ["CHECK_FILE", "PublishConfig", "check", "describe", "headline", "publish"]

CHECK_FILE = "check.safetensors"
_FILES = (WEIGHTS_FILE, "config.json", CHECK_FILE, CALIBRATION, "README.md")
#: What may be done with the images of a collection, and a licence of weights that follows.
_TERMS = {
    "nih": ("NIH ChestX-ray14: use unrestricted; link the source, cite Wang et al. (CVPR 2017), acknowledge the NIH "
            "Clinical Center", "apache-2.0"),
    "chexpert": ("CheXpert: Stanford University Dataset Research Use Agreement, non-commercial research", "other"),
    "mimic": ("MIMIC-CXR-JPG: PhysioNet Credentialed Health Data Use Agreement", "other"),
    "padchest": ("PadChest: BIMCV research use agreement", "other"),
    "vindr": ("VinDr-CXR: PhysioNet Credentialed Health Data Use Agreement", "other"),
    "phantom": ("drawn phantoms, no patient", "apache-2.0"),
}  # fmt: skip
_FREE = {"output", "root", "workers", "device", "tensorboard", "checkpoint_steps"}  # of a recipe: where, not what


@dataclass
class PublishConfig:
    """What is published where."""

    run: str | None = None
    """Run folder."""
    repo: str | None = None
    """Repository of the Hub, organisation/architecture.tag."""
    dry_run: bool = False
    """Write the folder and upload nothing."""
    check: str | None = None
    """Instead: a folder, organisation/name or architecture.tag whose weights, hash and stored output are checked."""
    output: Path | None = None
    """Folder to write; RUN/publish by default."""
    data: Collection | None = None
    """Collection to evaluate on; as all that follow, the run's own by default."""
    root: str | None = None
    """Folder of the collection; the CSV or Parquet file for "table"; a folder or URL for "shards"."""
    columns: str | None = None
    """What a table's columns are called: path=file,patient=MRN."""
    split: str | None = None
    """Part that is scored; the test part by default."""
    note: str | None = None
    """What must be said beside the scores."""
    terms: str | None = None
    """What may be done with the data that the model was trained on; known of the public collections."""
    license: str | None = None
    """Licence of the weights, by its name on the Hub; known of some public collections."""
    private: bool = False
    """Make a new repository private."""
    replicates: int = 1000
    """Bootstrap replicates (of patients) for the intervals."""
    workers: int = 2
    device: str | None = None
    """cuda where there is one, else cpu, by default."""


def publish(config: PublishConfig) -> dict[str, Any]:
    """Evaluates a run, writes what is uploaded, and uploads it.

    Returns:
        ``folder``; ``name`` and ``entry`` of the manifest; ``commit``, None where nothing was uploaded.

    Raises:
        InputError: bad input, or a file that holds what must not leave the house: a path of this machine, a patient, an
            image.
        WeightsError: the Hub refuses.
    """
    if not config.run or not config.repo:
        raise InputError("give a run folder and --repo organisation/architecture.tag (or --check)")
    if not re.fullmatch(r"[\w.-]+/[\w-]+\.[\w-]+", config.repo):
        raise InputError(
            f"--repo {config.repo} must be organisation/architecture.tag, such as lab/{_example(config.run)}"
        )
    run, name = Path(config.run), config.repo.partition("/")[2]
    model = load_model(run)
    labels = named_outputs(model)
    if name.partition(".")[0] != model.pretrained_cfg["architecture"]:
        raise InputError(f"--repo {config.repo} names another architecture than {run}: {_example(config.run)}")
    settings, recipe = describe(run)
    data = config.data or settings.get("data")
    terms, license = _TERMS.get(data, (None, None))
    terms, license = config.terms or terms, config.license or license
    if not data or not terms or not license:
        raise InputError(f"say what is not known of {data or 'the collection'}: --data, --terms and --license")
    output = Path(config.output or run / "publish")
    if output.exists() and (not output.is_dir() or {p.name for p in output.iterdir()} - set(_FILES)):
        raise InputError(f"--output {output} holds other files: give another folder")

    options = {k: getattr(config, k) or settings.get(k) for k in ("root", "columns")}
    options |= {k: settings[k] for k in ("views", "merge", "blank") if k in settings}
    scored = {k: getattr(config, k) for k in ("split", "note", "replicates", "workers", "device")}
    with tempfile.TemporaryDirectory() as folder:
        result = evaluate(EvaluateConfig((str(run),), Path(folder), data=data, **options, **scored))
    metrics = headline(result)
    output.mkdir(parents=True, exist_ok=True)
    for path in output.iterdir():
        path.unlink()
    shutil.copyfile(run / WEIGHTS_FILE, output / WEIGHTS_FILE)
    if (run / CALIBRATION).is_file():
        read_calibration(run)
        shutil.copyfile(run / CALIBRATION, output / CALIBRATION)
    safetensors.torch.save_file(_check_tensors(model), output / CHECK_FILE)
    entry = {
        "repo": config.repo,
        "revision": None,
        "file": WEIGHTS_FILE,
        "sha256": digest(output / WEIGHTS_FILE),
        "size": (output / WEIGHTS_FILE).stat().st_size,
        "labels": list(labels),
        "preprocessing": {k: data_config(model)[k] for k in ("input_size", "mean", "std", "interpolation")},
        "data": data,
        "terms": terms,
        "recipe": recipe,
        "metrics": metrics,
        "license": license,
    }
    about = json.loads((run / "config.json").read_text())
    about["pretrained_cfg"] |= {"tag": name.partition(".")[2], "license": license}
    about |= {"problem_type": "multi_label_classification", "library": f"mxa {__version__}"}
    about |= {k: entry[k] for k in ("sha256", "data", "terms", "recipe", "metrics")}
    write_text(output / "config.json", json.dumps(about, indent=1) + "\n")
    write_text(output / "README.md", model_card(f"hf-hub:{config.repo}", entry, result))
    _refuse_private(output, create_dataset(data, split="all", **options).records, options["root"])
    commit = None if config.dry_run else _upload(output, config)
    return {"folder": output, "name": name, "entry": {**entry, "revision": commit}, "commit": commit}


def check(source: str) -> dict[str, Any]:
    """Checks a published model: the hash of its weights, and its output for the input that lies beside them.

    Args:
        source: A folder, ``organisation/name`` on the Hub, or an ``architecture.tag`` of the manifest.

    Returns:
        ``folder``, ``sha256``, ``difference`` (the largest, of logits).

    Raises:
        InputError: the hash or the output is another.
        WeightsError: the files cannot be had.
    """
    if Path(source).is_dir():
        folder, known = Path(source), None
    else:
        entry = manifest().get(source, {})
        if packaged(entry):
            raise InputError(f"{source} comes with the package, which checks it whenever it is loaded")
        if source in manifest() and not entry["sha256"]:
            raise InputError(f"{source} is not published: give a folder or organisation/name")
        repo, revision, known = entry.get("repo", source), entry.get("revision"), entry.get("sha256")
        folder = fetch(repo, "config.json", revision).parent
        for name in (WEIGHTS_FILE, CHECK_FILE):
            fetch(repo, name, folder.name)
    for name in (WEIGHTS_FILE, "config.json", CHECK_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: it was not written by mxa publish")
    found = digest(folder / WEIGHTS_FILE)
    for where, wanted in (("config.json", read_config(folder / "config.json").get("sha256")), ("weights.json", known)):
        if wanted not in (None, found):
            raise InputError(f"{folder / WEIGHTS_FILE} has SHA-256 {found}, {where} says {wanted}: get it again")
    stored = safetensors.torch.load_file(folder / CHECK_FILE)
    with torch.no_grad():
        logits = load_model(folder)(stored["input"])
    difference = float((logits - stored["logits"]).abs().max())
    if not difference < 1e-3:
        raise InputError(
            f"{folder}: the stored input gives logits that differ by {difference:.2g} from the stored ones"
        )
    return {"folder": folder, "sha256": found, "difference": difference}


def _example(run: str) -> str:
    config = Path(run) / "config.json"
    return f"{read_config(config).get('architecture')}.TAG" if config.is_file() else "efficientvit_ml_m0_mxa.TAG"


def describe(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run; and its recipe, which leaves out where it was run, and of files holds only their names."""
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    recipe = {k: v for k, v in settings.items() if k not in _FREE}
    for key in ("teacher", "init"):
        if recipe.get(key):
            recipe[key] = re.split(r"[/\\]", recipe[key])[-1]
    return settings, recipe


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The first model's means with their intervals, and on how many images, for the manifest."""
    model = result["models"][0]
    names = [n for n in ("macro_auc_min20", "macro_auc", "micro_auc") if model.get(n) is not None]
    found = {name: [model[name], *(model.get(f"{name}_interval") or ())] for name in names}
    return {"part": model["about"][0]["part"], "images": model["images"], "patients": model["patients"], **found}


@torch.no_grad()
def _check_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A phantom as the model takes it, ``(1, C, H, W)``, and the logits that it gives."""
    x = create_transform(model)(Image.fromarray(draw(0).image))[None]
    return {"input": x, "logits": model(x)}


def _refuse_private(folder: Path, records: Any, root: str | None) -> None:
    """Refuses files that are not expected, and texts with a path, a patient or an image of the collection.

    A patient who is a number of fewer than six digits cannot be told from another number.
    """
    if other := [p.name for p in folder.iterdir() if p.name not in _FILES]:
        raise InputError(f"{folder} holds {', '.join(other)}, which is not uploaded")
    names = [Path(p).name for p in records.paths]
    people = {p for p in map(str, records.patients) if len(p) > 5 or not p.isdigit()}
    people |= {*names, *(name.partition(".")[0] for name in names)}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            with path.open("rb") as file:  # the header; the rest is numbers
                size = int.from_bytes(file.read(8), "little")
                text = file.read(size).decode("utf-8", "replace")
        else:
            text = path.read_text()
        local = re.search(r"(?<![\w:/.])(?:/(?:home|root|Users|mnt|data|work|tmp|srv|scratch)/|[A-Z]:\\)\S*", text)
        if local or (root and Path(root).is_absolute() and str(root) in text):
            raise InputError(f"{path} holds a path of this machine, {local[0] if local else root}: take it out")
        words = set(re.findall(r"[\w.-]+", text))
        if found := words & people:
            raise InputError(f"{path} names a patient or an image of the collection ({len(found)} words): take it out")


def _upload(folder: Path, config: PublishConfig) -> str:
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=config.repo, folder_path=folder, commit_message=f"mxa {__version__}", allow_patterns=list(_FILES)
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "no right to write there: set HF_TOKEN (or run: hf auth login)" if status in (401, 403) else str(error)
        raise WeightsError(f"{config.repo} was not uploaded, {folder} is complete: {what}") from error
    except (OSError, errors.HTTPError) as error:
        raise WeightsError(f"{config.repo} was not uploaded, {folder} is complete: {error}") from error
    return done.oid
