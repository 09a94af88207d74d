"""Training recipes side by side, over seeds and patients: the paper's Table 2 on any data, and other arms beside it."""

from __future__ import annotations

import csv
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..evaluation.evaluate import score_images, separate_validation, weights_sha256, with_validation, write_report
from ..evaluation.predictions import Arm, Predictions, read_predictions, stack
from ..evaluation.report.learning import boxes_figure, learning_figure
from ..evaluation.report.numbers import ENOUGH
from ..evaluation.report.rows import markdown, paired_rows, shown
from ..evaluation.runs import Run, add_run, read_runs, runs_metadata
from ..metrics import macro_auroc, micro_auroc
from ..models.hub import WEIGHTS_FILE
from ..models.load import load_model, named_outputs
from ..training.config import TrainConfig, check_config, plain_config, without_folders
from ..training.loop import fit
from ..training.start import build_model, start_weights, with_labels
from ..utils.config import group, read_yaml_file, write_yaml
from ..utils.distributed import barrier, processes, rank
from ..utils.errors import InputError, require
from ..utils.files import alone_in, atomic_write, digest, is_empty, write_text
from ..utils.json_files import read_json, to_json
from ..utils.text import for_markdown, without_formulas
from .arms import TABLE_2, arm_fields, read_arms, same_arm
from .config import AblateConfig
from .teach import gray_teacher, trained_on

__all__ = ["AblateConfig", "ablate"]

_logger = logging.getLogger(__name__)


#: Beside ablation.yaml: the scores of every run that is finished.
SCORES = "scores.parquet"

#: The runs of an arm that are finished, by seed: one, or one for each fold.
Seeds = dict[int, list[Run]]


def ablate(config: AblateConfig) -> dict[str, Any]:
    """Trains every arm for every seed and fold that has no scores yet, and makes the table anew after each.

    The scores of every finished run are in one file, ``scores.parquet``, and the table is made of that file alone. So
    the work can be stopped, continued (an unfinished run too) and extended by arms and seeds, with the other settings
    unchanged. Scores are of the test split (or of every image, each in the fold that tests it), by the weights of the
    epoch that was best on validation patients.

    Returns:
        ``rows`` (a dict an arm: name, runs finished, the numbers or ``"not run"``), ``paired``, ``stopped``.

    Raises:
        InputError: bad input, or another table's folder.
    """
    with processes(config.device) as device:
        config = with_labels(config.resolved())
        arms = read_arms(config.arms)
        _check(config, arms)
        folder, writes = Path(config.output), rank() == 0
        with alone_in(folder, "mxa ablate", wait=True):
            _claim(config, arms, folder, writes=writes)
        barrier()
        runs = [Run(arm, s, f) for s, f, arm in itertools.product(config.seeds, _folds(config), arms)]
        finished = runs_metadata(folder / SCORES)
        result, stopped = {}, False
        for run in [run for run in runs if run not in finished]:
            _logger.info("%s of %s", run.name, folder)
            stopped = _train(_run_config(config, run, arms[run.arm]), run) == "SIGTERM"
            if stopped:
                break
            if writes:
                _score(config, run, device)
                result = _tables(config)
            barrier()
        if writes and not result:
            result = _tables(config)
    return {**result, "stopped": stopped}


def _check(config: AblateConfig, arms: dict[str, dict[str, Any]]) -> None:
    """Refuses, before any work, what would fail in the middle of it."""
    if not config.model.endswith("_mxa") and set(arms) & {"baseline", "mxa", "mxa+kd"}:
        raise InputError(f"--model {config.model} has no MXA: give one that ends in _mxa")
    if config.seed or config.resume:
        raise InputError("mxa ablate has --seeds, and goes on by itself: leave --seed and --resume out")
    if Path(config.output).is_file():
        raise InputError(f"--output {config.output} is a file: give a folder")
    if not arms or not config.seeds or config.replicates < 1:
        raise InputError("give at least one of --arms, of --seeds and of --replicates")
    if config.teacher is None and {"kd", "mxa+kd"} & set(arms):
        raise InputError("the arms with kd need --teacher; without one, --arms baseline mxa")
    if config.folds is not None and config.folds < 2:
        raise InputError("--folds must be at least 2")
    if config.folds is not None and config.split == "val":
        raise InputError("--folds scores every image in the fold that tests it: leave --split val out")
    for module in ("matplotlib", "pyarrow"):
        require(module, "train")
    for arm, changed in arms.items():
        check_config(_run_config(config, Run(arm, 0, None), changed))
    if config.folds is not None:
        for arm, changed in arms.items():
            _check_leak(_run_config(config, Run(arm, 0, 0), changed))
    for fold in _folds(config):
        scored = {"val", config.split}
        train_set, *_ = _datasets(config, Run("", 0, fold), "train", *sorted(scored), labels=config.labels)
        for teacher in _teachers(config, arms):
            if teacher.endswith(".parquet"):
                read_predictions(Path(teacher), train_set.records)  # mxa teach --split all, for folds
            elif not fold:
                gray_teacher(teacher, train_set.labels, config.teacher_sha256)
        for arm, changed in arms.items() if not fold else ():
            recipe = _run_config(config, Run(arm, 0, None), changed)
            start_weights(recipe, build_model(recipe, train_set.labels))


def _check_leak(config: AblateConfig) -> None:
    """Refuses, with folds, weights that were trained on the same collection: its training split tests in some fold."""
    for option in ("teacher", "init"):
        given = getattr(config, option)
        if given is not None and trained_on(Path(given)) == config.data:
            raise InputError(
                f"--{option} {given} was trained on {config.data}, whose training patients test in other folds: they "
                "would be seen before; leave out --folds, or take one that was trained on another collection"
            )


def _folds(config: AblateConfig) -> Sequence[int | None]:
    return [None] if config.folds is None else range(config.folds)


def _claim(config: AblateConfig, arms: dict[str, dict[str, Any]], folder: Path, writes: bool) -> None:
    """Writes the settings that all runs share and the arms, or compares them with those of the table that is there."""
    free = ("output", "root", "workers", "device", "arms", "seeds", "replicates", "note", "tensorboard")
    settings = {k: v for k, v in plain_config(config).items() if k not in (*free, "seed", "checkpoint_steps")}
    own = {arm: without_folders(changed) for arm, changed in arms.items() if arm not in TABLE_2}
    teachers = _teacher_hashes(config, arms)
    path = folder / "ablation.yaml"
    if path.is_file():
        defaults = plain_config(AblateConfig(config.output))  # of settings that an older table does not name
        saved = without_folders({**defaults, **read_yaml_file(path)})
        known = _own_arms(folder)
        if other := [arm for arm in own if arm in known and not same_arm(own[arm], known[arm])]:
            raise InputError(f"{folder} holds the arm {other[0]!r} with other fields: give it another name")
        own |= known
        for name in ("teacher", "teacher_sha256"):  # a table may have had no arm with one, or have none now
            saved[name] = saved.get(name) or settings[name]
            settings[name] = settings[name] or saved[name]
        known_teachers = saved.get("teachers", {})
        if other := [t for t, found in teachers.items() if known_teachers.get(t, found) != found]:
            raise InputError(
                f"{folder} holds runs of another {other[0]}, which has changed since: give another --output"
            )
        teachers = known_teachers | teachers
        if changed := [k for k in settings if settings[k] != saved[k]]:
            what = ", ".join(f"{k} was {saved[k]!r}" for k in changed)
            raise InputError(f"{folder} holds a table of other settings ({what}): give another --output")
    elif not is_empty(folder):
        raise InputError(f"--output {folder} is in use and holds no table: give another folder")
    if writes:
        metadata = {**settings, **({"teachers": teachers} if teachers else {}), "arms": own}
        write_text(path, write_yaml(metadata))


def _teachers(config: AblateConfig, arms: dict[str, dict[str, Any]]) -> list[str]:
    """The teachers of the table and of its arms, as they are named."""
    return sorted({config.teacher, *(changed.get("teacher") for changed in arms.values())} - {None})


def _teacher_hashes(config: AblateConfig, arms: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The SHA-256 of the teachers that are files or run folders, by the text that names them."""
    files = {text: Path(text) / WEIGHTS_FILE if Path(text).is_dir() else Path(text) for text in _teachers(config, arms)}
    return {without_folders({"teacher": t})["teacher"]: digest(file) for t, file in files.items() if file.is_file()}


def _datasets(config: AblateConfig, run: Run, *splits: str, labels: Sequence[str] | str | None) -> list:
    fold = None if run.fold is None else (run.fold, config.folds)
    return [replace(config, labels=labels).open(split, fold) for split in splits]


def _run_config(config: AblateConfig, run: Run, changed: dict[str, Any]) -> AblateConfig:
    """The recipe of one run."""
    where = {"output": Path(config.output) / "runs" / run.name, "seed": run.seed, "resume": "auto"}
    return replace(config, **arm_fields(config, run.arm, changed), **where)


def _train(config: AblateConfig, run: Run) -> str | None:
    train_set, val_set = _datasets(config, run, "train", "val", labels=config.labels)
    recipe = TrainConfig(**group(config, TrainConfig))
    return fit(recipe, train_set, val_set)["stopped"]


def _score(config: AblateConfig, run: Run, device: torch.device) -> None:
    """Scores the split asked for, and the validation patients, with the weights that a run kept."""
    where = Path(config.output) / "runs" / run.name
    model = load_model(where).to(device)
    metadata = {"model": run.name, "weights_sha256": weights_sha256(str(where), model), "mxa": __version__}
    splits = _datasets(config, run, *dict.fromkeys((config.split, "val")), labels=named_outputs(model))
    metadata |= {"data": config.data, "split": config.split, "views": config.views, "uncertain": "masked"}
    metadata["blank"] = config.blank or splits[0].records.blank
    metadata["run"] = read_json(where / "summary.json")
    scored, *chosen = (score_images(model, split, metadata, config.batch_size, config.workers) for split in splits)
    add_run(Path(config.output) / SCORES, run, with_validation(scored, config.split, *(chosen or [None])))


def _own_arms(folder: Path) -> dict[str, dict[str, Any]]:
    """The arms of a table that are not the paper's, and what they change."""
    path = folder / "ablation.yaml"
    arms, teachers = (read_yaml_file(path).get(name, {}) for name in ("arms", "teachers"))
    if not all(isinstance(part, dict) for part in (arms, teachers, *(arms.values() if isinstance(arms, dict) else ()))):
        raise InputError(f"{path} is damaged: its arms must be NAME: {{field: value}}, its teachers NAME: digest")
    return {arm: without_folders(changed) for arm, changed in arms.items()}


def _finished(config: AblateConfig, runs: Iterable[Run]) -> dict[str, Seeds]:
    """Sorts the runs that have scores by arm and seed; a seed counts when all its folds are there."""
    folder, own = Path(config.output), _own_arms(Path(config.output))
    found: dict[str, Seeds] = {arm: {} for arm in (*TABLE_2, *own)}
    for run in sorted(runs):
        if run.arm not in found:
            raise InputError(f"{folder / SCORES} holds {run.name!r}, a run of no arm of this table: add it to --arms")
        found[run.arm].setdefault(run.seed, []).append(run)
    if own and not any(found[arm] for arm in TABLE_2):  # a table of other arms alone
        found = {arm: found[arm] for arm in own}
    whole = config.folds or 1
    return {arm: {s: r for s, r in seeds.items() if len(r) == whole} for arm, seeds in found.items()}


def _arm(config: AblateConfig, arm: str, seeds: Seeds, scores: Mapping[Run, Predictions]) -> Arm:
    """Scores of an arm; with folds those of all images, and no validation split, whose patients test in other folds."""
    scored, chosen = [], []
    for runs in seeds.values():
        separated = [separate_validation(scores[run]) for run in runs]
        tested = stack(*(test for test, _ in separated))
        scored.append(tested.rows(np.argsort(tested.cases["image"].to_numpy(str), kind="stable")))
        chosen.append(separated[0][1])
    use = config.folds is None and all(val is not None for val in chosen)
    return Arm(TABLE_2.get(arm, arm), tuple(scored), tuple(chosen) if use else ())


def _tables(config: AblateConfig) -> dict[str, Any]:
    """Writes table.md, the report and the pictures, of the runs that are finished."""
    with alone_in(Path(config.output), "mxa ablate", wait=True):
        return _write_tables(config)


def _write_tables(config: AblateConfig) -> dict[str, Any]:
    folder, own = Path(config.output), _own_arms(Path(config.output))
    scores = read_runs(folder / SCORES)
    finished = _finished(config, scores)
    known = {arm: seeds for arm, seeds in finished.items() if seeds}
    rows: dict[str, Any] = {a: {"row": TABLE_2.get(a, a), "seeds": list(seeds)} for a, seeds in finished.items()}
    for arm, changed in own.items():
        rows[arm]["changes"] = (
            ", ".join(f"{k} {to_json(v) if isinstance(v, dict) else v}" for k, v in changed.items()) or "nothing"
        )
    result: dict[str, Any] = {"models": [], "paired": []}
    if known:
        arms = [_arm(config, arm, seeds, scores) for arm, seeds in known.items()]
        pairs = [(0, k) for k in range(1, len(arms))]
        names = list(known)
        if {"mxa", "mxa+kd"} <= set(names) and names[0] != "mxa":  # what the teacher adds to MXA
            pairs.append((names.index("mxa"), names.index("mxa+kd")))
        notes = [config.note] if config.note else []
        result = write_report(folder, arms, config.replicates, notes=notes, pairs=pairs)
        for arm, numbers in zip(known, result["models"], strict=True):
            rows[arm]["numbers"] = numbers
        _pictures(folder, config, known, arms)
    write_text(folder / "table.md", _markdown(config, own, rows, result, known))
    return {"rows": rows, "paired": result["paired"]}


def table_rows(rows: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The table: a row an arm, ``not run`` where it has no scores."""
    columns = (f"macro_auc_min{ENOUGH}", "macro_auc", "micro_auc", "loss", "accuracy", "f1")
    head = ("", "seeds", f"macro AUC, labels with {ENOUGH} positives", "macro AUC", "micro AUC", "loss", "accuracy")
    table = []
    for row in rows.values():
        cells = ["not run"] + [""] * (len(columns) - 1)
        if "numbers" in row:
            cells = [shown(row["numbers"], name) for name in columns]
        table.append((row["row"], ", ".join(map(str, row["seeds"])) or "-", *cells))
    return (*head, "F1"), table


def _markdown(
    config: AblateConfig, own: dict[str, Any], rows: dict[str, Any], result: dict[str, Any], known: dict[str, Seeds]
) -> str:
    first = next(iter(result["models"]), None)
    model = [config.model] if any("model" not in own.get(arm, {}) for arm in known) else []
    what = ", ".join([config.data, f"{config.epochs} epochs", *model, f"augment {config.augment}"])
    title = "MXA and distillation, one by one" if set(rows) & set(TABLE_2) else "Arms, one by one"
    notes = result.get("notes", [config.note] if config.note else [])
    shown_notes = [f"{for_markdown(' '.join(note.split()))}\n" for note in notes]
    parts = [f"## {title}\n", *shown_notes, f"{for_markdown(what)}.\n"]
    changed = {arm: row["changes"] for arm, row in rows.items() if "changes" in row}
    if changes := [f"- {for_markdown(arm)}: {for_markdown(what)}" for arm, what in changed.items()]:
        parts += ["Arms and what they change:\n", "\n".join(changes) + "\n"]
    parts.append(markdown(table_rows(rows)))
    if first:
        where = {"test": "test split", "val": "validation split: to choose, not to report"}[config.split]
        cv = f"{config.folds} folds by patient, each image in the one that tests it" if config.folds else where
        chosen = "these" if config.split == "val" else "validation"
        parts.append(
            f"{first['images']:,} images of {first['patients']:,} patients ({cv}). In brackets 95 % intervals, "
            f"patients resampled {config.replicates:,} times, and seeds where a row has several (each row's own); "
            f"accuracy and F1 at probability 0.5. Each run's weights are those of its best epoch on {chosen} "
            "patients.\n"
        )
    if result["paired"]:
        parts += ["Differences on the same patients:\n", markdown(paired_rows(result))]
    runs = [run for seeds in known.values() for of in seeds.values() for run in of]
    if runs:
        metadata = runs_metadata(Path(config.output) / SCORES)
        lines = [_run_row(run, metadata[run].get("run")) for run in runs]
        head = ("run", "best epoch", "validation macro AUC", "seconds", "images/s", "device")
        parts += ["Runs:\n", markdown((head, lines))]
    return "\n".join(parts)


def _run_row(run: Run, summary: dict[str, Any] | None) -> Sequence[str]:
    if summary is None:
        return (run.name, *["-"] * 5)
    auc = "-" if summary["macro_auc"] is None else f"{summary['macro_auc']:.4f}"
    device = f"{summary['device']}, {summary['processes']} process(es)"
    return (
        run.name,
        str(summary["epoch"] + 1),
        auc,
        f"{summary['seconds']:.0f}",
        str(summary["images_per_second"]),
        device,
    )


def _pictures(folder: Path, config: AblateConfig, known: dict[str, Seeds], arms: Sequence[Arm]) -> None:
    logs = {}
    for arm, seeds in known.items():
        paths = [folder / "runs" / run.name / "log.csv" for runs in seeds.values() for run in runs]
        logs[TABLE_2.get(arm, arm)] = [list(csv.DictReader(path.open())) for path in paths if path.is_file()]
    longest = max((len(log) for of in logs.values() for log in of), default=0)
    gone = sum(map(len, logs.values())) < sum(len(runs) for seeds in known.values() for runs in seeds.values())
    if not longest or (gone and (folder / "learning.png").is_file()):  # run folders were removed: the pictures stay
        return
    curves: dict[str, dict[str, np.ndarray]] = {"micro AUC": {}, "macro AUC": {}}
    for metric, rows in curves.items():
        for row, of in logs.items():
            values = [[float(line[f"eval_{metric.split()[0]}_auc"]) for line in log] for log in of]
            if values:
                rows[row] = np.array([v + [np.nan] * (longest - len(v)) for v in values])
    finals = {
        metric: {arm.name: np.array([of(one.logits, one.targets) for one in arm.scored]) for arm in arms}
        for metric, of in (("micro AUC", micro_auroc), ("macro AUC", macro_auroc))
    }
    unit = "seeds and folds" if config.folds else "seeds"
    pictures = {
        "learning.png": learning_figure(curves, unit),
        "boxes.png": boxes_figure(finals, curves["micro AUC"], "micro AUC", config.split),
    }
    for name, figure in pictures.items():
        save = partial(without_formulas(figure).savefig, dpi=110, format="png", metadata={"Software": None})
        atomic_write(folder / name, save)
