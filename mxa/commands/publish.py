"""A run as a repository of the Hugging Face Hub: weights, configuration, model card, an input to check them with."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import HfApi
from PIL import Image
from torch import nn

from .. import __version__
from ..data import create_dataset, create_transform, data_config
from ..data.collections.phantom import draw
from ..evaluation.calibrate import NAME as CALIBRATION
from ..evaluation.calibrate import read_calibration
from ..evaluation.config import EvaluateConfig
from ..evaluation.evaluate import evaluate
from ..evaluation.report.model_card import model_card
from ..models.hub import WEIGHTS_FILE, fetch, hub_errors, manifest, read_config, read_weights, same_labels
from ..models.load import load_model, named_outputs
from ..training.config import without_folders
from ..utils.config import read_settings
from ..utils.errors import InputError
from ..utils.files import alone_in, atomic_copy, atomic_write, digest, write_text
from ..utils.json_files import read_json, to_json
from .config import PublishConfig

__all__ = ["CHECK_FILE", "TERMS", "PublishConfig", "check", "describe", "headline", "publish"]

CHECK_FILE = "check.safetensors"
_logger = logging.getLogger(__name__)
_FILES = (WEIGHTS_FILE, "config.json", CHECK_FILE, CALIBRATION, "README.md")
#: What may be done with the images of a collection, and a licence of weights that follows.
TERMS = {
    "nih": ("NIH ChestX-ray14: use unrestricted; link the source, cite Wang et al. (CVPR 2017), acknowledge the NIH "
            "Clinical Center", "apache-2.0"),
    "chexpert": ("CheXpert: Stanford University Dataset Research Use Agreement, non-commercial research", "other"),
    "mimic": ("MIMIC-CXR-JPG: PhysioNet Credentialed Health Data Use Agreement", "other"),
    "padchest": ("PadChest: BIMCV research use agreement", "other"),
    "vindr": ("VinDr-CXR: PhysioNet Credentialed Health Data Use Agreement", "other"),
    "phantom": ("drawn phantoms, no patient", "apache-2.0"),
}  # fmt: skip
#: Settings of a run that are left out of its recipe: they say where it ran, not what was done.
_WHERE = {"output", "root", "workers", "device", "tensorboard", "checkpoint_steps"}


def publish(config: PublishConfig) -> dict[str, Any]:
    """Evaluates a run, writes what is uploaded to ``RUN/publish``, and uploads it.

    Returns:
        ``folder``; ``name``, which is architecture.tag; ``commit`` and ``entry``, the model's entry of the manifest,
        both None where nothing was uploaded. With ``config.check`` it returns what ``check`` does.

    Raises:
        InputError: bad input, or a text to upload names a path of this machine, a patient or an image.
        WeightsError: the Hub refuses.
    """
    if config.check:
        return check(config.check)
    if not config.run or not (Path(config.run) / "config.json").is_file() or not config.repo:
        raise InputError(f"give a run folder, not {config.run}, and --repo organisation/architecture.tag")
    with alone_in(Path(config.run), "mxa publish", within=("publish",)):
        return _publish(config)


def _publish(config: PublishConfig) -> dict[str, Any]:
    run, name, model = _read_run(config)
    config = config.resolved(run)
    settings, recipe = describe(run)
    trained_on = settings.get("data")
    terms, license = TERMS.get(trained_on, (None, None))
    terms, license = config.terms or terms, config.license or license
    if not (terms and license):
        raise InputError(f"say what is not known of {trained_on or 'its training data'}: --terms and --license")
    data = config.data_fields()
    collections = [(config.data, data), *_trained_on(settings, data)]

    scored = {k: getattr(config, k) for k in ("split", "note", "replicates", "workers", "device")}
    with tempfile.TemporaryDirectory() as folder:
        as_published = Path(folder) / name  # the card calls the model by the name of its folder
        as_published.symlink_to(run.resolve(), target_is_directory=True)
        result = evaluate(EvaluateConfig((str(as_published),), Path(folder) / "out", **data, **scored))
    entry = {
        "repo": config.repo,
        "revision": None,
        "file": WEIGHTS_FILE,
        "sha256": digest(run / WEIGHTS_FILE),
        "size": (run / WEIGHTS_FILE).stat().st_size,
        "labels": list(named_outputs(model)),
        "preprocessing": {k: data_config(model)[k] for k in ("input_size", "mean", "std", "interpolation")},
        "data": trained_on,
        "terms": terms,
        "recipe": recipe,
        "metrics": headline(result),
        "license": license,
    }
    model_config = read_config(run / "config.json")
    model_config["pretrained_cfg"] |= {"tag": name.partition(".")[2], "license": license}
    model_config |= {"library": f"mxa {__version__}"}
    model_config |= {k: entry[k] for k in ("sha256", "data", "terms", "recipe", "metrics")}

    texts = [model_config, result["notes"], terms]
    with safetensors.safe_open(run / WEIGHTS_FILE, "pt") as file:
        texts.append(file.metadata())
    calibrated = (run / CALIBRATION).is_file()
    if calibrated:
        read_calibration(run)
        texts.append(read_json(run / CALIBRATION))
    _refuse_private(texts, collections)

    folder = run / "publish"
    folder.mkdir(exist_ok=True)
    (folder / CALIBRATION).unlink(missing_ok=True)
    for file in (WEIGHTS_FILE, CALIBRATION) if calibrated else (WEIGHTS_FILE,):
        atomic_copy(run / file, folder / file)
    tensors = _check_tensors(model)
    atomic_write(folder / CHECK_FILE, lambda path: safetensors.torch.save_file(tensors, path))
    write_text(folder / "config.json", to_json(model_config, 1) + "\n")
    write_text(folder / "README.md", model_card(f"hf-hub:{config.repo}", entry, result))
    commit = None if config.dry_run else _upload(folder, config)
    entry = {**entry, "revision": commit} if commit else None
    return {"folder": folder, "name": name, "commit": commit, "entry": entry}


def _read_run(config: PublishConfig) -> tuple[Path, str, nn.Module]:
    """Reads a run; returns its folder, architecture.tag of the repository, and its model."""
    run = Path(config.run)
    architecture = read_config(run / "config.json").get("architecture")
    word = r"\w+(?:-\w+)*"
    if not re.fullmatch(rf"{word}/{architecture}\.{word}", config.repo):
        raise InputError(f"--repo {config.repo} must be organisation/{architecture}.TAG, as {run} is of {architecture}")
    name, model = config.repo.partition("/")[2], load_model(run)
    if name in manifest() and not same_labels(named_outputs(model), timm.get_pretrained_cfg(name).label_names):
        raise InputError(f"--repo {config.repo}: {name} is of other labels than {run}; give another tag")
    return run, name, model


def check(name: str) -> dict[str, Any]:
    """Loads a published model, and compares its output for the stored input with the stored output.

    Args:
        name: A folder, or ``organisation/name`` or ``organisation/name@revision`` on the Hub.

    Returns:
        ``folder``, ``sha256`` and ``difference``, the largest of the logits.

    Raises:
        InputError: the weights have another hash, or the output is another.
        WeightsError: a file cannot be had.
    """
    folder = Path(name)
    if not folder.is_dir():
        repo, _, revision = name.partition("@")
        folder = fetch(repo, "config.json", revision or None).parent
        for file in (WEIGHTS_FILE, CHECK_FILE):
            fetch(repo, file, folder.name)
    sha256 = read_config(folder / "config.json").get("sha256")
    stored = read_weights(folder / CHECK_FILE)
    if not sha256 or set(stored) != {"input", "logits"}:
        raise InputError(f"{folder} was not written by mxa publish: it has no hash, or no stored input and output")
    with torch.no_grad():
        logits = load_model(folder)(stored["input"])  # load_model compares the hash
    difference = float((logits - stored["logits"]).abs().max())
    if not difference < 1e-3:
        raise InputError(f"{folder}: its logits for the stored input differ by {difference:.2g} from the stored ones")
    return {"folder": folder, "sha256": sha256, "difference": difference}


def describe(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of a run, and its recipe: the settings without folders and without where it ran."""
    path = run / "config.yaml"
    settings = read_settings(path) if path.is_file() else {}
    return settings, without_folders({k: v for k, v in settings.items() if k not in _WHERE})


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the first model's mean AUCs with their intervals, and what they were measured on."""
    model = result["models"][0]
    names = [n for n in ("macro_auc_min20", "macro_auc", "micro_auc") if model.get(n) is not None]
    found = {name: [model[name], *(model.get(f"{name}_interval") or ())] for name in names}
    return {"split": model["metadata"][0]["split"], "images": model["images"], "patients": model["patients"], **found}


@torch.no_grad()
def _check_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Draws a phantom as the model takes it, ``(1, C, H, W)``, and computes its logits ``(1, L)``."""
    x = create_transform(model)(Image.fromarray(draw(0).image))[None]
    return {"input": x, "logits": model(x)}


_PATH = re.compile(
    r"(?<![\w/.])(?:~|\.\.?)?/(?:[\w.@-]+/)+[\w.@-]+|~/\w+|\b[a-z]:\\\S*|\\\\\w\S*|\b(?:file|s3|gs|smb|nfs|local-dir)://?\S*",
    re.IGNORECASE,
)


def _text(value: Any) -> str:
    """Joins every text in nested lists and dicts, keys included, by newlines."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_text, value))
    return value if isinstance(value, str) else ""


def _trained_on(settings: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the collection of the run's own configuration, where that is not the one that is scored."""
    where = ("data", "root", "columns")
    if settings.get("data") is None or all(settings.get(k) == data.get(k) for k in where):
        return []
    root = settings.get("root")
    if settings["data"] == data["data"] and root is not None and not Path(root).exists():
        _logger.warning("%s, where the run was trained, is not there: names in it are not looked for", root)
        return []
    return [(settings["data"], settings)]


def _refuse_private(texts: Any, collections: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuses texts that name a path, or a patient or an image of the collections.

    A patient of fewer than four characters, or a number of fewer than six digits, cannot be told from another word.
    """
    text = _text(texts)
    if local := _PATH.search(text):
        raise InputError(f"a path of this machine would be uploaded, {local[0]}: take it out")
    private: set[str] = set()
    for data, options in collections:
        chosen = {k: options[k] for k in ("root", "columns", "allow_pipe") if options.get(k)}
        records = create_dataset(data, split="all", views="all", **chosen).records
        files = [Path(path) for path in records.paths]
        private |= {p for p in map(str, records.patients) if len(p) > (5 if p.isdigit() else 3)}
        private |= {f.name for f in files if f.suffix}
        private |= {f.stem for f in files if f.suffix and len(f.stem) > 5 and re.search(r"\d", f.stem)}
    text = text.casefold()
    alone = r"(?<![a-z0-9]){}(?![a-z0-9])"
    found = [n for n in map(str.casefold, private) if n in text and re.search(alone.format(re.escape(n)), text)]
    if found:
        raise InputError(f"a patient or an image would be named ({len(found)} of them): take it out")


def _upload(folder: Path, config: PublishConfig) -> str:
    """Makes the repository hold the files of a folder, and nothing else; returns the commit."""
    api = HfApi()
    with hub_errors(f"{config.repo} was not uploaded, {folder} is complete"):
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        files = {"allow_patterns": list(_FILES), "delete_patterns": ["*"]}
        return api.upload_folder(repo_id=config.repo, folder_path=folder, **files).oid
