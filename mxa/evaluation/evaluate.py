"""Scoring models, or scores of any program, on a collection."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

from .. import __version__
from ..data import CXRDataset, create_transform, make_loader
from ..data.collections.generic_table import find_columns
from ..data.collections.image_paths import plain_path
from ..data.create import EmptySplit
from ..data.records import SPLIT_NAMES
from ..data.tables import read_header, read_table_file
from ..labels import MERGES, canonical
from ..models.load import load_model, named_outputs
from ..utils.distributed import pick_device
from ..utils.errors import InputError, require
from ..utils.files import alone_in, write_text
from ..utils.files import digest as file_digest
from ..utils.json_files import to_json
from .config import EvaluateConfig
from .inference import predict_logits
from .model_arguments import read_models
from .predictions import (
    CASE_COLUMNS,
    SUFFIXES,
    MissingScores,
    Predictions,
    by_study,
    has_targets,
    of_records,
    read_predictions,
    stack,
)
from .runs import of_run, read_runs

if TYPE_CHECKING:
    from .predictions import Arm

__all__ = [
    "EvaluateConfig",
    "evaluate",
    "score",
    "score_images",
    "separate_validation",
    "weights_sha256",
    "with_validation",
    "write_report",
]

_logger = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Scores models on the same images and writes the report.

    Labels are aligned by name; those that the collection lacks are masked. Uncertain labels are masked, never remapped.
    Thresholds and temperatures are chosen on validation patients, where the split that is scored does not hold them.

    Returns:
        What ``mxa.evaluation.report.numbers`` does, as in ``metrics.json``: ``models``, ``paired``, ``notes``.

    Raises:
        InputError: bad input, a model whose outputs have no names, an image that does not read, or no ``split`` for a
            run that was trained on a collection without a test split.
    """
    if config.batch_size < 1 or config.workers < 0 or config.replicates < 1:
        raise InputError("--batch-size and --replicates must be at least 1 and --workers at least 0")
    for module in ("matplotlib", "pyarrow"):  # before the work, not after it
        require(module, "train")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file: give a folder")
    with alone_in(folder, "mxa evaluate", within=("predictions",)):
        return _evaluate(config, folder)


def _evaluate(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    from .predictions import Arm  # here, so that scoring alone does not need what the pages need

    models = read_models(config.models)
    arguments = [argument for seeds in models.values() for argument in seeds]
    config = config.resolved(*arguments)
    by = None if config.by is None else [name.strip() for name in config.by.split(",") if name.strip()]
    of_files = any(Path(argument).suffix in SUFFIXES or of_run(argument) for argument in arguments)
    columns = _group_columns(config, by or (), of_files)
    arms, kept, notes = [], [Path(argument) for argument in arguments], [config.note] if config.note else []
    for name, seeds in models.items():
        scored = []
        for argument, short in seeds.items():
            found = score(config, argument)
            notes += _trained_on_these(config, argument, found)
            (folder / "predictions").mkdir(parents=True, exist_ok=True)
            kept.append(folder / "predictions" / f"{short}.parquet")
            found.save(kept[-1])
            scored.append(_grouped(found, columns))
        splits = [_splits(one, config.level) for one in scored]
        val = tuple(split[1] for split in splits) if all(split[1] is not None for split in splits) else ()
        arms.append(Arm(name, tuple(split[0] for split in splits), val))
    result = write_report(folder, arms, config.replicates, by, config.min_group, notes)
    for file in set((folder / "predictions").glob("*.parquet")) - set(kept):  # of an evaluation before this one
        file.unlink()
    return result


def _trained_on_these(config: EvaluateConfig, name: str, found: Predictions) -> list[str]:
    """Says that images that a run was trained on were scored."""
    if found.metadata.get("split") not in ("all", "train") or not config.trained(name):
        return []
    return [f"{Path(name).name} was trained on images that are scored here: its numbers are too good."]


def write_report(
    folder: Path,
    arms: Sequence[Arm],
    replicates: int,
    by: Sequence[str] | None = None,
    min_group: int = 50,
    notes: Sequence[str] = (),
    pairs: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """Computes the numbers of some arms and writes ``report.html``, ``metrics.json`` and ``.csv``, ``model_card.md``.

    Returns:
        What ``mxa.evaluation.report.numbers`` does, and ``notes``: those given, and how many patients are unknown.
    """
    from .report import numbers  # here, so that scoring alone does not need what the pages need
    from .report.page import page
    from .report.rows import card, csv_text

    result = numbers(arms, replicates, by, min_group, pairs)
    notes = [" ".join(note.split()) for note in notes]
    result["notes"] = [*notes, *_unknown_patients(arms[0].scored[0].cases)]
    write_text(folder / "metrics.json", to_json(result, 1) + "\n")
    write_text(folder / "metrics.csv", csv_text(result))
    write_text(folder / "model_card.md", card(result))
    write_text(folder / "report.html", page(result, arms))
    return result


def _unknown_patients(cases: pd.DataFrame) -> list[str]:
    """Says how many images have no patient, and what follows."""
    count = int((cases["patient"] == cases["image"]).sum())
    if not count:
        return []
    return [
        f"{count:,} of {len(cases):,} images have no patient, and each counts as a patient of its own. If patients "
        "have several images, the intervals are too narrow, and a split that was cut may hold patients of training."
    ]


def score(config: EvaluateConfig, name: str) -> Predictions:
    """Scores of one model, or of a file, on the split asked for and on the validation patients.

    The split of each row stands in ``cases["split"]``: ``"val"`` for validation patients, where they are not what was
    asked for, else the split's name.

    Raises:
        InputError: as ``evaluate``.
    """
    if held := of_run(name):
        path, wanted = held
        return _file_splits(config, *read_runs(path, wanted).values(), path)
    if Path(name).suffix in SUFFIXES:
        path = Path(name)
        if has_targets(path):
            return _file_splits(config, read_predictions(path), path)
        labels = _scored_labels(config, path) if config.merge else None
        return _each_split(config, lambda dataset: read_predictions(path, dataset.records), labels)
    model = load_model(name)
    labels = named_outputs(model)
    known = {"model": Path(name).name, "weights_sha256": weights_sha256(name, model), "mxa": __version__}
    model.to(pick_device(config.device))

    def run(dataset: CXRDataset) -> Predictions:
        dataset = copy.copy(dataset)
        dataset.on_bad = "mask" if config.skip_bad else "raise"
        return score_images(model, dataset, known, config.batch_size, config.workers, config.amp)

    return _each_split(config, run, labels, name)


def score_images(
    model: nn.Module, dataset: CXRDataset, metadata: Mapping[str, Any], batch_size: int, workers: int, amp: bool = False
) -> Predictions:
    """Scores of a model on a dataset; images that do not read are left out and counted in ``metadata``.

    Raises:
        InputError: an image does not read, unless the dataset masks such images, or none does.
    """
    device = next(model.parameters()).device
    loader = make_loader(dataset, create_transform(model), batch_size, workers, device=device)
    logits = predict_logits(model, loader, torch.bfloat16 if amp else None)
    good = ~dataset.bad.numpy()
    if not good.any():
        raise InputError(f"none of the {len(good)} images reads")
    metadata = dict(metadata)
    if (~good).any():
        metadata["images_left_out"] = int((~good).sum())
        _logger.warning("left out, they do not read: %s", ", ".join(dataset.bad_paths()))
    return of_records(dataset.records.subset(good), logits[good], metadata)


def _scored_labels(config: EvaluateConfig, path: Path) -> tuple[str, ...]:
    """The labels that a file of scores has and the collection has or can make from others."""
    known = {*map(canonical, replace(config, merge=False).open("all").labels), *map(canonical, MERGES)}
    names = [column.removeprefix("logit:").removeprefix("probability:") for column in read_header(path)]
    return tuple(name for name in names if canonical(name) in known)


def _file_splits(config: EvaluateConfig, found: Predictions, path: Path) -> Predictions:
    """Keeps the split asked for, by default the test split, and the validation rows of a file with targets."""
    _logger.info("%s has its own targets: --data, --views, --merge and --blank do not apply", path)
    if "split" in found.metadata:  # of an evaluation of ours: what was asked for then, and validation rows
        keep = (found.cases["split"] != "val") | (config.validation and found.metadata["split"] != "val")
        return found.rows((keep | (found.metadata["split"] == "val")).to_numpy(bool))
    splits = found.cases["split"].str.lower().map(lambda split: SPLIT_NAMES.get(split, ""))
    known = set(splits) - {""}
    split = config.split or ("test" if "test" in known else "all")
    if not known or split == "all":
        found = replace(found, cases=found.cases.assign(split="all"))
        return replace(found, metadata={**found.metadata, "split": "all"})
    wanted = SPLIT_NAMES.get(split, split)
    rows = (splits == wanted) | ((splits == "val") & (config.validation and wanted == "test"))
    if not (splits == wanted).any():
        raise InputError(f"{path} has no row of the split {split}; it has {', '.join(sorted(known))}")
    found = replace(found, cases=found.cases.assign(split=splits), metadata={**found.metadata, "split": split})
    return found.rows(rows.to_numpy(bool))


def _each_split(
    config: EvaluateConfig, run: Callable[[CXRDataset], Predictions], labels: tuple[str, ...] | None, name: str = ""
) -> Predictions:
    """Scores the split asked for and, where it is another one, the validation split."""
    data = replace(config, labels=labels, uncertain="U-Ignore")
    dataset = data.open(config.split)
    split = dataset.records.split
    if config.split is None and split == "all" and name and config.trained(name):
        raise InputError(
            f"{config.where()} has no test split, and {name} was trained on its images: train with --test-fraction 0.2 "
            "to cut one by patient, or score its validation patients with --split val, or every image with --split all"
        )
    if name and split in ("test", "val"):
        config.check_cut(name, dataset)
    scored = run(dataset)
    metadata = {
        **scored.metadata,
        "data": config.data,
        "split": split,
        "views": config.views,
        "uncertain": "masked",
        "blank": config.blank or dataset.records.blank,
    }
    metadata |= {"merged": True} if config.merge else {}
    if dataset.records.unused:
        metadata["labels_of_the_collection_not_scored"] = list(dataset.records.unused)
    val = None
    if config.validation and split in ("test", "valid"):
        try:
            val = run(data.open("val"))
        except (EmptySplit, MissingScores) as error:
            _logger.warning("%s: no threshold or temperature is chosen", error)
    return with_validation(replace(scored, metadata=metadata), split, val)


def with_validation(scored: Predictions, split: str, val: Predictions | None) -> Predictions:
    """Puts validation rows after those of a split; ``cases["split"]`` says which is which."""
    scored = replace(scored, cases=scored.cases.assign(split=split))
    if val is None:
        return scored
    return stack(scored, replace(val, cases=val.cases.assign(split="val")))


def separate_validation(found: Predictions) -> tuple[Predictions, Predictions | None]:
    """Separates the rows that are reported from validation rows; None where there are no others."""
    val = (found.cases["split"] == "val").to_numpy(bool)
    if val.all() or not val.any():
        return found, None
    return found.rows(~val), found.rows(val)


def _splits(found: Predictions, level: str) -> tuple[Predictions, Predictions | None]:
    return separate_validation(found if level == "image" else by_study(found, level.removeprefix("study-")))


def _group_columns(config: EvaluateConfig, by: Sequence[str], files: bool) -> pd.DataFrame | None:
    """Reads the columns to group by that predictions lack, indexed by image; before the work, not after it."""
    wanted = [name for name in by if name not in (*CASE_COLUMNS, "frontal")]
    path = config.groups or (Path(config.root) if config.data == "table" and config.root else None)
    if not wanted or (path is None and files):  # a file of scores may have them
        return None
    if path is None:
        raise InputError(
            f"--by {', '.join(wanted)}: give --groups, a table with a column of image names and these columns"
        )
    table = read_table_file(path, ())
    if missing := [name for name in wanted if name not in table]:
        raise InputError(f"{path} has no column {', '.join(missing)} to group by; it has {', '.join(table.columns)}")
    key = table[find_columns(path, table.columns, {})["path"]].map(lambda name: plain_path(str(name)))
    return table[wanted].fillna("").astype(str).set_axis(key).groupby(level=0).first()


def _grouped(found: Predictions, columns: pd.DataFrame | None) -> Predictions:
    """Adds the columns to group by that the cases lack."""
    if columns is None:
        return found
    columns = columns[[name for name in columns if name not in found.cases]]
    added = columns.reindex(found.cases["image"].map(plain_path)).reset_index(drop=True).fillna("")
    return replace(found, cases=pd.concat([found.cases, added], axis=1))


def weights_sha256(name: str, model: nn.Module | None = None) -> str:
    """SHA-256 of a run folder's ``model.safetensors``; of the tensors, by name, of any other model."""
    file = Path(name) / "model.safetensors"
    if file.is_file():
        return file_digest(file)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
