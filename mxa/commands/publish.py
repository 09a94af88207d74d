"""A run as a repository of the Hugging Face Hub: weights, configuration, model card, an input to check them with."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from torch import nn

from .. import __version__
from ..data import DataConfig, create_dataset, create_transform, data_config
from ..data.collections.phantom import draw
from ..evaluation.calibrate import NAME as CALIBRATION
from ..evaluation.calibrate import read_calibration
from ..evaluation.evaluate import EvaluateConfig, evaluate
from ..evaluation.report.model_card import model_card
from ..labels import canonical
from ..models.hub import WEIGHTS_FILE, WeightsError, fetch, manifest, packaged, read_config, read_weights
from ..models.load import load_model, named_outputs
from ..utils.errors import InputError
from ..utils.files import digest, write_text

__all__ = ["CHECK_FILE", "TERMS", "PublishConfig", "check", "describe", "headline", "publish"]

CHECK_FILE = "check.safetensors"
_FILES = (WEIGHTS_FILE, "config.json", CHECK_FILE, CALIBRATION, "README.md")
#: Arguments of a model that its configuration has anyhow.
_NEUTRAL = {"num_classes", "img_size", "in_chans", "global_pool", "label_names"}
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
_FREE = {"output", "root", "workers", "device", "tensorboard", "checkpoint_steps"}  # of a recipe: where, not what


@dataclass
class PublishConfig(DataConfig):
    """What is published where."""

    unused = ("labels", "uncertain")

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
    split: str | None = None
    """Split that is scored; the test split by default."""
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
    """Evaluates a run, writes what is uploaded, and uploads it; with ``check`` it only does what ``check`` does.

    Returns:
        ``folder``; ``name``; ``commit``, None where nothing was uploaded; ``entry`` for the manifest, None without a
        commit and where the model needs ``arguments`` that an entry cannot give (it loads by ``hf-hub:`` then).

    Raises:
        InputError: bad input, or a file that holds what must not leave the house: a path of this machine, a patient, an
            image.
        WeightsError: the Hub refuses.
    """
    if config.check:
        return check(config.check)
    run, name, model = _read_run(config)
    settings, recipe = describe(run)
    trained_on = settings.get("data")
    terms, license = TERMS.get(trained_on, (None, None))
    terms, license = config.terms or terms, config.license or license
    data = config.resolved(run)
    if not terms or not license:
        raise InputError(f"say what is not known of {trained_on or 'its training data'}: --terms and --license")
    output = Path(config.output or run / "publish")
    if output.resolve() == run.resolve():
        raise InputError(f"--output {output} is the run itself: give another folder")
    if output.exists() and (not output.is_dir() or {p.name for p in output.iterdir()} - set(_FILES)):
        raise InputError(f"--output {output} holds other files: give another folder")

    result = _evaluate(data, run, name)
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
    extra = {k: entry[k] for k in ("sha256", "data", "terms", "recipe", "metrics")}
    model_config |= {"problem_type": "multi_label_classification", "library": f"mxa {__version__}", **extra}
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        _stage(staged, run, model, model_config, model_card(f"hf-hub:{config.repo}", entry, result))
        collections = [
            (data.data, vars(data)),
            *([(trained_on, settings)] if trained_on not in (None, data.data) else []),
        ]
        _refuse_private([model_config, result["notes"], config.note, terms, _read_texts(staged)], collections)
        output.mkdir(parents=True, exist_ok=True)
        for file in _FILES:
            if (staged / file).is_file():
                shutil.move(staged / file, output / file)
            else:
                (output / file).unlink(missing_ok=True)
    commit = None if config.dry_run else _upload(output, config)
    own = {k: v for k, v in (model_config.get("model_args") or {}).items() if k not in _NEUTRAL}
    return {
        "folder": output,
        "name": name,
        "commit": commit,
        "entry": {**entry, "revision": commit} if commit and not own else None,
        "arguments": own,
    }


def _read_run(config: PublishConfig) -> tuple[Path, str, nn.Module]:
    """The run folder, the name that it is given, architecture.tag, and its model; refuses what do not fit."""
    if not config.run or not config.repo:
        raise InputError("give a run folder and --repo organisation/architecture.tag (or --check)")
    if not re.fullmatch(r"[\w.-]+/[\w-]+\.[\w-]+", config.repo):
        raise InputError(
            f"--repo {config.repo} must be organisation/architecture.tag, such as lab/{_example(config.run)}"
        )
    run, name = Path(config.run), config.repo.partition("/")[2]
    if not (run / WEIGHTS_FILE).is_file() or not (run / "config.json").is_file():
        raise InputError(f"{run} is no run folder: it holds no {WEIGHTS_FILE} and config.json")
    try:
        validate_repo_id(config.repo)
    except HFValidationError as error:
        raise InputError(f"--repo {config.repo}: {error}") from None
    model = load_model(run)
    labels = [*map(canonical, named_outputs(model))]
    if name.partition(".")[0] != model.pretrained_cfg["architecture"]:
        raise InputError(f"--repo {config.repo} names another architecture than {run}: {_example(config.run)}")
    if name in manifest() and [*map(canonical, timm.get_pretrained_cfg(name).label_names)] != labels:
        raise InputError(f"--repo {config.repo}: {name} is of other labels than {run}; give another tag")
    return run, name, model


def _example(run: str) -> str:
    config = Path(run) / "config.json"
    return f"{read_config(config).get('architecture')}.TAG" if config.is_file() else "efficientvit_ml_m0_mxa.TAG"


def _evaluate(config: PublishConfig, run: Path, name: str) -> dict[str, Any]:
    """Scores the run under the name that it is given."""
    scored = {k: getattr(config, k) for k in ("split", "note", "replicates", "workers", "device")}
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / name
        named.symlink_to(run.resolve(), target_is_directory=True)
        return evaluate(EvaluateConfig((str(named),), Path(folder) / "out", **config.data_fields(), **scored))


def _stage(folder: Path, run: Path, model: nn.Module, model_config: dict[str, Any], card: str) -> None:
    """Writes what is uploaded."""
    shutil.copyfile(run / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    if (run / CALIBRATION).is_file():
        read_calibration(run)
        shutil.copyfile(run / CALIBRATION, folder / CALIBRATION)
    safetensors.torch.save_file(_check_tensors(model), folder / CHECK_FILE)
    write_text(folder / "config.json", json.dumps(model_config, indent=1) + "\n")
    write_text(folder / "README.md", card)


def check(name: str) -> dict[str, Any]:
    """Checks a published model: the hash of its weights, and its output for the input that lies beside them.

    Args:
        name: A folder, ``organisation/name`` on the Hub, or an ``architecture.tag`` of the manifest.

    Returns:
        ``folder``, ``sha256``, ``difference`` (the largest, of logits).

    Raises:
        InputError: the hash or the output is another.
        WeightsError: the files cannot be had.
    """
    if Path(name).is_dir():
        folder, known = Path(name), None
    else:
        entry = manifest().get(name, {})
        if packaged(entry):
            raise InputError(f"{name} comes with the package, which checks it whenever it is loaded")
        if name in manifest() and not entry["sha256"]:
            raise InputError(f"{name} is not published: give a folder or organisation/name")
        repo, _, revision = name.partition("@")
        if entry:
            repo, revision = entry["repo"], entry["revision"]
        elif not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise InputError(f"{name} is no folder, no name of the manifest and no organisation/name")
        known, revision = entry.get("sha256"), revision or None
        folder = fetch(repo, "config.json", revision).parent
        for file in (WEIGHTS_FILE, CHECK_FILE):
            fetch(repo, file, folder.name)
    for file in (WEIGHTS_FILE, "config.json", CHECK_FILE):
        if not (folder / file).is_file():
            raise InputError(f"{folder} has no {file}: it was not written by mxa publish")
    found = digest(folder / WEIGHTS_FILE)
    stated = read_config(folder / "config.json").get("sha256", "no hash")
    for where, wanted in (("config.json", stated), ("weights.json", known)):
        if wanted not in (None, found):
            raise InputError(f"{folder / WEIGHTS_FILE} has SHA-256 {found}, {where} says {wanted}: get it again")
    stored = read_weights(folder / CHECK_FILE)
    if set(stored) != {"input", "logits"}:
        raise InputError(f"{folder / CHECK_FILE} holds no input and logits: it was not written by mxa publish")
    with torch.no_grad():
        logits = load_model(folder)(stored["input"])
    difference = float((logits - stored["logits"]).abs().max())
    if not difference < 1e-3:
        raise InputError(
            f"{folder}: the stored input gives logits that differ by {difference:.2g} from the stored ones"
        )
    return {"folder": folder, "sha256": found, "difference": difference}


def describe(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a run; and its recipe, which leaves out where it was run, and of files holds only their names."""
    path = run / "config.yaml"
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    recipe = {k: v for k, v in settings.items() if k not in _FREE}
    for key in ("model", "model_args", "init", "teacher"):
        recipe |= {key: _without_folders(recipe[key])} if recipe.get(key) else {}
    return settings, recipe


def _without_folders(value: Any) -> Any:
    """Leaves of a path in a text its last part; names of the Hub stay."""
    if not isinstance(value, str) or value.startswith("hf-hub:"):
        return value
    return re.sub(r"(xrv:)?(?:[A-Za-z][\w-]*:)?[^\s,\"'{}:]*[/\\]", r"\1", value)


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The first model's means with their intervals, and on how many images, for the manifest."""
    model = result["models"][0]
    names = [n for n in ("macro_auc_min20", "macro_auc", "micro_auc") if model.get(n) is not None]
    found = {name: [model[name], *(model.get(f"{name}_interval") or ())] for name in names}
    return {"split": model["metadata"][0]["split"], "images": model["images"], "patients": model["patients"], **found}


@torch.no_grad()
def _check_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A phantom as the model takes it, ``(1, C, H, W)``, and the logits that it gives."""
    x = create_transform(model)(Image.fromarray(draw(0).image))[None]
    return {"input": x, "logits": model(x)}


_PATH = re.compile(
    r"(?<![\w/.])(?:~|\.\.?)?/(?:[\w.@-]+/)+[\w.@-]+|~/\w+|\b[a-z]:\\\S*|\\\\\w\S*|\b(?:file|s3|gs|smb|nfs|local-dir)://?\S*",
    re.IGNORECASE,
)


def _read_texts(folder: Path) -> list[Any]:
    """What the files of a folder say of themselves beside numbers: the metadata of tensors, the calibration."""
    texts: list[Any] = []
    for name in (WEIGHTS_FILE, CHECK_FILE):
        with safetensors.safe_open(folder / name, "pt") as file:
            texts.append(file.metadata())
    if (folder / CALIBRATION).is_file():
        texts.append(json.loads((folder / CALIBRATION).read_text()))
    return texts


def _leaves(value: Any) -> Iterator[str]:
    """Every text in nested lists and dicts, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(key)
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)


def _refuse_private(content: Any, collections: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuses texts with a path, a patient or an image of the collections.

    A patient of fewer than four characters, or a number of fewer than six digits, cannot be told from another word.
    """
    people: set[str] = set()
    for data, options in collections:
        chosen = {k: options[k] for k in ("root", "columns") if options.get(k)}
        records = create_dataset(data, split="all", views="all", **chosen).records
        names = {Path(p).name for p in records.paths}
        stems = {name.rpartition(".")[0] for name in names}
        people |= {p for p in map(str, records.patients) if len(p) > (5 if p.isdigit() else 3)}
        people |= {n for n in names if "." in n} | {s for s in stems if any(map(str.isdigit, s)) and len(s) > 5}
    text = "\n".join(_leaves(content))
    if local := _PATH.search(text):
        raise InputError(f"a path of this machine would be uploaded, {local[0]}: take it out")
    text = text.casefold()
    found = [n for n in map(str.casefold, people) if n in text and re.search(_word(n), text)]
    if found:
        raise InputError(f"a patient or an image would be named ({len(found)} of them): take it out")


def _word(name: str) -> str:
    return rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])"


def _upload(folder: Path, config: PublishConfig) -> str:
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=config.repo,
            folder_path=folder,
            commit_message=f"mxa {__version__}",
            allow_patterns=list(_FILES),
            delete_patterns=["*"],
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "no right to write there: set HF_TOKEN (or run: hf auth login)" if status in (401, 403) else str(error)
        raise WeightsError(f"{config.repo} was not uploaded, {folder} is complete: {what}") from error
    except (OSError, errors.HTTPError) as error:
        raise WeightsError(f"{config.repo} was not uploaded, {folder} is complete: {error}") from error
    return done.oid
