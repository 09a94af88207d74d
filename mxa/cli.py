"""The ``mxa`` command: each subcommand is one dataclass and one function of a main job."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from . import __version__
from .errors import InputError, name_some, require
from .yaml_fields import field_value, read_yaml, unknown_field

__all__ = ["main"]


def _prepare(config: Any) -> None:
    from .prepare import prepare

    manifest = prepare(config)
    rows = [(name, f"{part['images']:,}", f"{part['patients']:,}") for name, part in manifest["parts"].items()]
    _print_table(("part", "images", "patients"), rows)
    print(f"written: {len(manifest['shards'])} shards of {manifest['images']:,} images in {config.output}")
    _say_bad(manifest["bad"], "left out")


def _data_summary(config: Any) -> None:
    from .summary import summarize, summary_lines

    columns, rows, lines = summary_lines(summarize(config))
    _print_table(columns, rows)
    print("\n".join(lines))
    if config.output is not None:
        print(f"written: {Path(config.output) / 'summary.json'}, summary.png")


def _teach(config: Any) -> None:
    from .teach import teach

    found = teach(config)
    print(f"written: logits of {len(found):,} images for {', '.join(found.labels)}: {config.output}")


def _train(config: Any) -> None:
    from .train import train

    summary = train(config)
    if os.environ.get("RANK", "0") != "0":
        return
    if summary["stopped"]:
        print(f"stopped after epoch {summary['epochs']}: {summary['stopped']}")
    auc = f", validation macro AUC {summary['macro_auc']:.4f}" if summary["macro_auc"] == summary["macro_auc"] else ""
    kept = f"epoch {summary['epoch'] + 1}{auc}" if summary["epoch"] >= 0 else "nothing yet"
    speed = f"{summary['seconds']:.0f} s, {summary['images_per_second']} images/s on {summary['device']}"
    print(f"kept: {kept}\nrun:  {summary['output']} ({speed})")
    _say_bad(summary["bad_images"], "replaced in training")


def _ablate(config: Any) -> None:
    from .ablate import ablate, table_rows
    from .report.tables import paired_rows

    result = ablate(config)
    if os.environ.get("RANK", "0") != "0":
        return
    _print_table(*table_rows(result["rows"]))
    if result["paired"]:
        _print_table(*paired_rows(result))
    if result["stopped"]:
        print("stopped by SIGTERM: the same command goes on")
    print(f"written: {Path(config.output) / 'table.md'}, report.html, learning.png, boxes.png, scores/")


def _evaluate(config: Any) -> None:
    from .evaluate import evaluate
    from .report.tables import label_rows, paired_rows, summary_rows

    result = evaluate(config)
    for model in result["models"]:
        print(f"{model['name']}: {model['images']:,} images of {model['patients']:,} patients")
        _print_table(*label_rows(model))
        if model["undefined"]:
            print(f"AUC undefined (no positive or no negative), left out of means: {', '.join(model['undefined'])}")
        if any(about.get("part") == "all" for about in model["about"]) and config.split is None:
            print("there is no test part: every image was scored, any that the model was trained on included (--split)")
    _print_table(*summary_rows(result))
    if result["paired"]:
        _print_table(*paired_rows(result))
    print(f"in brackets: 95 % intervals, patients resampled {result['replicates']:,} times")
    print(f"written: {Path(config.output) / 'report.html'}, metrics.json, metrics.csv, model_card.md, predictions/")


def _calibrate(config: Any) -> None:
    from .calibrate import NAME, calibrate

    result = calibrate(config)
    columns = ("label", "temperature", *(f"threshold, {point}" for point in result.thresholds))
    rows = [
        (label, _number(result.temperatures.get(label)), *(_number(p.get(label)) for p in result.thresholds.values()))
        for label in result.thresholds["youden"]
    ]
    _print_table(columns, rows)
    if left := result.provenance["not_calibrated"]:
        print(f"left as the model gives them, for want of validation cases: {', '.join(left)}")
    if ends := result.provenance["temperature_at_its_end"]:
        print(f"no temperature fits (the validation cases are too few, or the scores tell nothing): {', '.join(ends)}")
    print(f"written: {Path(config.model) / NAME}; predict uses it with --calibrated")


def _explain(config: Any) -> None:
    from .explain.job import explain

    results = explain(config)
    rows = [
        (
            r["file"],
            name,
            _number(about["probability"]),
            _box(about.get("grad_cam")),
            _box(about["integrated_gradients"]),
        )
        for r in results
        for name, about in r.get("labels", {}).items()
    ]
    _print_table(("file", "finding", "probability", "Grad-CAM, x1 y1 x2 y2", "integrated gradients"), rows)
    _say_bad([r["error"] for r in results if "error" in r], "left out")
    print(f"written: {config.output}: a picture and a JSON file for each image; boxes in pixels of the image")


def _localize(config: Any) -> None:
    from .localize import localize

    result = localize(config)
    columns = ("model", "method", "pointing", "95 % interval", "energy", "IoU", "IoU > 0.1")
    rows = [
        (
            row["model"],
            row["method"],
            _number(row["pointing"]),
            " to ".join(map(_number, row["pointing_interval"] or ())),
            *(_number(row[k]) for k in ("energy", "iou", "hit_0.1")),
        )
        for row in result["rows"]
        if row["finding"] == "all"
    ]
    _print_table(columns, rows)
    print(f"means over findings; {result['images']:,} images of {result['patients']:,} patients")
    for name, skipped in result["skipped"].items():
        if skipped:
            print(f"{name} has no output for: {', '.join(f'{f} ({n})' for f, n in skipped.items())}")
    print(f"written: {Path(config.output) / 'localization.md'}, localization.json, localization.csv")


def _predict(config: Any) -> None:
    from .predict import predict

    results = predict(config)
    if config.format == "json":
        print(json.dumps(results, indent=2))
    else:
        uids = sorted({name for r in results for name in r.get("identifiers", ())})
        called = ("called",) if config.calibrated else ()
        rows = [
            (
                r["file"],
                *(r.get("identifiers", {}).get(uid, "") for uid in uids),
                name,
                _number(p),
                *(("?" if name in r["undecided"] else "yes" if name in r["positive"] else "no") for _ in called),
            )
            for r in results
            for name, p in r.get("probabilities", {}).items()
        ]
        _print_table(("file", *uids, "finding", "probability", *called), rows)
    _say_bad([r["error"] for r in results if "error" in r], "left out")
    if config.calibrated:
        print(f"calibrated, called at the threshold of {config.calibrated}; ? is not calibrated", file=sys.stderr)
    if config.rois:
        print(f"written: {config.rois}", file=sys.stderr)


def _convert(config: Any) -> None:
    from .convert import convert

    print("\n".join(convert(config)))
    print(f"written: {Path(config.output) / 'model.safetensors'}, config.json")


def _publish(config: Any) -> None:
    from .publish import check, publish

    if config.check:
        found = check(config.check)
        print(f"{found['folder']}: SHA-256 {found['sha256']}, logits differ by {found['difference']:.1g}: as published")
        return
    result = publish(config)
    where = "nothing was uploaded" if result["commit"] is None else f"{config.repo}, commit {result['commit']}"
    print(f"written: {result['folder']} ({where})", file=sys.stderr)
    if result["entry"]:
        print("its entry for mxa/models/weights.json:", file=sys.stderr)
        print(json.dumps({result["name"]: result["entry"]}, indent=1))
    elif result["arguments"]:
        print(f"it needs {result['arguments']}, so it loads as hf-hub:{config.repo} alone", file=sys.stderr)


def _bench_models(config: Any) -> None:
    from .bench import bench_models, print_table

    print_table(bench_models(config))


def _bench_layers(config: Any) -> None:
    from .bench import bench_layers, print_table

    print_table(bench_layers(config))


def _bench_task(config: Any) -> None:
    from .bench import print_table
    from .bench_task import bench_task

    print_table(bench_task(config))


def _bench_data(config: Any) -> None:
    from .bench import print_table
    from .bench_data import bench_data

    print_table(bench_data(config))


@dataclass(frozen=True)
class _Command:
    """A subcommand: its dataclass, by name so that nothing is imported before it is needed, and what runs it."""

    module: str
    config: str
    run: Callable[[Any], None]
    about: str
    positional: str | None = None
    recipes: bool = False


_COMMANDS = {
    "prepare": _Command("mxa.prepare", "PrepareConfig", _prepare, "Write a collection as shards of small images."),
    "data summary": _Command("mxa.summary", "SummaryConfig", _data_summary, "What a collection's tables hold."),
    "teach": _Command("mxa.teach", "TeachConfig", _teach, "A teacher's logits, once, for train --teacher.", "teacher"),
    "train": _Command("mxa.train", "TrainConfig", _train, "Train or fine-tune a model.", recipes=True),
    "ablate": _Command("mxa.ablate", "AblateConfig", _ablate, "What MXA and a teacher are worth.", recipes=True),
    "evaluate": _Command("mxa.evaluate", "EvaluateConfig", _evaluate, "Score models, and write a report.", "models"),
    "calibrate": _Command(
        "mxa.calibrate", "CalibrateConfig", _calibrate, "Temperatures and thresholds, beside the weights.", "model"
    ),
    "predict": _Command("mxa.predict", "PredictConfig", _predict, "Findings of images, and where it looked.", "files"),
    "explain": _Command("mxa.explain.job", "ExplainConfig", _explain, "Boxes, attention and maps of images.", "files"),
    "localize": _Command("mxa.localize", "LocalizeConfig", _localize, "Do its maps find boxed findings?", "models"),
    "convert": _Command("mxa.convert", "ConvertConfig", _convert, "Checkpoints of other programs.", "checkpoint"),
    "publish": _Command("mxa.publish", "PublishConfig", _publish, "A run on the Hugging Face Hub.", "run"),
    "bench models": _Command("mxa.bench", "BenchModelsConfig", _bench_models, "Speed, memory and size beside peers."),
    "bench data": _Command("mxa.bench_data", "BenchDataConfig", _bench_data, "Loading, beside TorchXRayVision."),
    "bench task": _Command("mxa.bench_task", "BenchTaskConfig", _bench_task, "What a teacher costs a training step."),
    "bench layers": _Command("mxa.bench", "BenchLayersConfig", _bench_layers, "The ROI crop beside grid_sample."),
}


def _box(found: dict[str, Any] | None) -> str:
    return "-" if found is None else " ".join(f"{edge:.0f}" for edge in found["box"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say_bad(names: Sequence[str], what: str) -> None:
    if names:
        print(f"{len(names)} image(s) did not read and were {what}: {name_some(names)}", file=sys.stderr)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = require("rich.table", "train")
    shown = table.Table(*(table.Column(name, overflow="fold") for name in columns))
    for row in rows:
        shown.add_row(*row)
    console = require("rich.console", "train").Console()
    if not console.is_terminal:
        console.width = 10_000  # a file or a pipe: as wide as the rows are
    console.print(shown)


def _usage() -> str:
    lines = [f"  mxa {name:13} {command.about}" for name, command in _COMMANDS.items()]
    return "usage: mxa COMMAND --help\n" + "\n".join(lines)


def _read_config(arguments: list[str], kind: type, recipes: bool) -> tuple[dict[str, Any], list[str]]:
    """Takes ``--config FILE`` or ``--recipe NAME`` out of the arguments and reads its fields, as YAML."""
    options = ("--config", "--recipe") if recipes else ("--config",)
    arguments = [
        p for a in arguments for p in (a.split("=", 1) if a.startswith(tuple(f"{o}=" for o in options)) else [a])
    ]
    given = [option for option in options if option in arguments]
    if not given:
        return {}, arguments
    at = arguments.index(given[0])
    if at + 1 == len(arguments) or len(given) > 1:
        raise InputError("give one --config FILE.yaml or one --recipe NAME")
    path = Path(arguments[at + 1])
    if given == ["--recipe"]:
        known = {p.stem: p for p in (Path(__file__).parent / "recipes").glob("*.yaml")}
        if path.name not in known:
            raise InputError(f"no recipe {path.name!r}: give one of {', '.join(sorted(known))}")
        path = known[path.name]
    try:
        values = read_yaml(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        what = f"line {mark.line + 1}: {error.problem}" if mark else error
        raise InputError(f"cannot read {path}: {what}") from None
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold lines of name: value, got {values!r}")
    for name in values:
        if name not in hints:
            raise InputError(f"{path}: {unknown_field(name, hints)}")
    values = {k: field_value(str(path), k, v, hints[k]) for k, v in values.items()}
    return values, arguments[:at] + arguments[at + 2 :]


def _parse(command: _Command, name: str, arguments: list[str]) -> Any:
    """Parses a subcommand's arguments into its dataclass, over the values of ``--config`` where given."""
    tyro = require("tyro", "train")
    kind = getattr(importlib.import_module(command.module), command.config)
    values, arguments = _read_config(arguments, kind, command.recipes)
    hints = get_type_hints(kind)
    if command.positional:
        kind.__annotations__[command.positional] = tyro.conf.Positional[hints[command.positional]]
    default = None
    if values:
        required = [f.name for f in fields(kind) if f.default is MISSING]
        default = kind(**{**dict.fromkeys(required, tyro.MISSING), **values})
    return tyro.cli(kind, args=arguments, default=default, prog=f"mxa {name}", description=command.about)


def _plain_warnings() -> Callable[..., None]:
    """Shows a warning as one line, once."""
    seen = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    return show


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; bad input ends it with one line on stderr and a status that is not 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"mxa {__version__}")
        return
    name = next((n for n in _COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        wanted = arguments in (["--help"], ["-h"])
        print(_usage(), file=sys.stdout if wanted else sys.stderr)
        sys.exit(0 if wanted else 2)
    command = _COMMANDS[name]
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, the first speaks for all
    logging.getLogger("mxa").setLevel(logging.INFO if first else logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _plain_warnings()
            command.run(_parse(command, name, arguments[len(name.split()) :]))
    except InputError as error:
        if os.environ.get("MXA_DEBUG"):
            raise
        sys.exit(f"mxa {name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"mxa {name}: stopped")
    except OSError as error:  # a folder that cannot be made, a full disk
        if os.environ.get("MXA_DEBUG"):
            raise
        sys.exit(f"mxa {name}: {error}")
