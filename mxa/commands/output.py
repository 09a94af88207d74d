"""Shows each command's result on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..utils.errors import name_some
from ..utils.json_files import to_json
from ..utils.text import printable

__all__ = [
    "ablate",
    "bench",
    "calibrate",
    "completion",
    "convert",
    "data_summary",
    "doctor",
    "evaluate",
    "explain",
    "export",
    "localize",
    "predict",
    "prepare",
    "publish",
    "serve",
    "teach",
    "train",
]


def prepare(config: Any, manifest: Any) -> None:
    """Shows what was written, by split."""
    rows = [(name, f"{split['images']:,}", f"{split['patients']:,}") for name, split in manifest["splits"].items()]
    _print_table(("split", "images", "patients"), rows)
    _say(f"written: {len(manifest['shards'])} shards of {manifest['images']:,} images in {config.output}")
    _say_bad(manifest["bad"], "left out")


def data_summary(config: Any, summary: Any) -> None:
    """Shows the counts of each label."""
    from .summary import summary_lines

    columns, rows, lines = summary_lines(summary)
    _print_table(columns, rows)
    _say(*lines)
    if config.output is not None:
        _say(f"written: {Path(config.output) / 'summary.json'}, summary.png{', boxes.png' if config.boxes else ''}")


def doctor(config: Any, checks: Any) -> None:
    """Shows a line for each check, and its remedy; the status is 1 where there is a fault."""
    for check in checks:
        _say(f"{check.state:6}{check.what}: {check.found}", *([f"      -> {check.remedy}"] if check.remedy else []))
    if any(check.state == "fault" for check in checks):
        sys.exit(1)


def completion(config: Any, script: str) -> None:
    """Prints the shell's script."""
    print(script)


def teach(config: Any, found: Any) -> None:
    """Shows where the logits are."""
    _say(f"written: logits of {len(found):,} images for {', '.join(found.labels)}: {config.output}")


def train(config: Any, summary: Any) -> None:
    """Shows which epoch's weights were kept, and the speed."""
    if os.environ.get("RANK", "0") != "0":
        return
    if summary["stopped"]:
        _say(f"stopped after epoch {summary['epochs']}: {summary['stopped']}")
    score, name = summary[config.eval_metric], {"macro_auc": "macro AUC", "loss": "loss"}[config.eval_metric]
    why = f", validation {name} {score:.4f}" if score == score else ""
    kept = f"epoch {summary['epoch'] + 1}{why}" if summary["epoch"] >= 0 else "nothing yet"
    speed = f"{summary['seconds']:.0f} s, {summary['images_per_second']} images/s on {summary['device']}"
    _say(f"kept: {kept}", f"run:  {summary['output']} ({speed})")
    _say_bad(summary["bad_images"], "replaced in training")


def ablate(config: Any, result: Any) -> None:
    """Shows the table of the arms."""
    from ..evaluation.report.rows import paired_rows
    from .ablate import table_rows

    if os.environ.get("RANK", "0") != "0":
        return
    _print_table(*table_rows(result["rows"]))
    if result["paired"]:
        _print_table(*paired_rows(result))
    if result["stopped"]:
        _say("stopped by SIGTERM: the same command goes on")
    _say(f"written: {Path(config.output) / 'table.md'}, report.html, learning.png, boxes.png, scores.parquet")


def evaluate(config: Any, result: Any) -> None:
    """Shows AUC by label, means and paired differences."""
    from ..evaluation.report.rows import label_rows, paired_rows, summary_rows

    for note in result["notes"]:
        _say(f"note: {note}")
    for model in result["models"]:
        _say(f"{model['name']}: {model['images']:,} images of {model['patients']:,} patients")
        _print_table(*label_rows(model))
        if model["undefined"]:
            _say(f"AUC undefined (no positive or no negative), left out of means: {', '.join(model['undefined'])}")
    _print_table(*summary_rows(result))
    if result["paired"]:
        _print_table(*paired_rows(result))
    _say(f"in brackets: 95 % intervals, patients resampled {result['replicates']:,} times")
    _say(f"written: {Path(config.output) / 'report.html'}, metrics.json, metrics.csv, model_card.md, predictions/")


def calibrate(config: Any, result: Any) -> None:
    """Shows temperatures and thresholds by label."""
    from ..evaluation.calibrate import NAME

    columns = ("label", "n+", "n-", "temperature", *(f"threshold, {point}" for point in result.thresholds))
    counts = result.provenance["positives_and_negatives"]
    rows = [
        (
            label,
            *map(str, counts[label]),
            _number(result.temperatures.get(label)),
            *(_number(p.get(label)) for p in result.thresholds.values()),
        )
        for label in counts
        if label not in result.provenance["not_calibrated"]
    ]
    _print_table(columns, rows)
    if left := result.provenance["not_calibrated"]:
        _say(f"left as the model gives them, for want of validation cases: {', '.join(left)}")
    if ends := result.provenance["temperature_at_its_end"]:
        _say(f"no temperature fits (the validation cases are too few, or the scores tell nothing): {', '.join(ends)}")
    _say(f"written: {Path(config.model) / NAME}; predict uses it with --calibrated")


def explain(config: Any, results: Any) -> None:
    """Shows the box of each finding."""
    rows = [
        (
            r["file"],
            name,
            _number(finding["probability"]),
            _box(finding.get("grad_cam")),
            _box(finding["integrated_gradients"]),
        )
        for r in results
        for name, finding in r.get("labels", {}).items()
    ]
    _print_table(("file", "finding", "probability", "Grad-CAM, x1 y1 x2 y2", "integrated gradients"), rows)
    _say_bad([r["error"] for r in results if "error" in r], "left out")
    _say(f"written: {config.output}: a picture and a JSON file for each image; boxes in pixels of the image")


def localize(config: Any, result: Any) -> None:
    """Shows how well each method finds what was boxed."""
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
    _say(f"means over findings; {result['images']:,} images of {result['patients']:,} patients")
    for name, skipped in result["skipped"].items():
        if skipped:
            _say(f"{name} has no output for: {', '.join(f'{f} ({n})' for f, n in skipped.items())}")
    _say(f"written: {Path(config.output) / 'localization.md'}, localization.json, localization.csv")


def predict(config: Any, results: Any) -> None:
    """Shows the probabilities of each image, or what was written. The exit status is 3 if an image did not read."""
    if config.output:
        bad = results.bad
        said = f"; {bad:,} did not read, as the column error says" if bad else ""
        said += f"; the column warning speaks of {results.warned:,}" if results.warned else ""
        _say(f"written: {config.output}: {results.images:,} images{said}", file=sys.stderr)
    else:
        bad = _show_predictions(config, results)
    if bad:
        sys.stdout.flush()
        sys.exit(3)


def _show_predictions(config: Any, results: Any) -> int:
    """Shows the probabilities of each image; returns how many images did not read."""
    if config.format == "json":
        print(to_json(results, 2))
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
    bad = [r["error"] for r in results if "error" in r]
    _say_bad(bad, "left out")
    if config.calibrated:
        _say(f"calibrated, called at the threshold of {config.calibrated}; ? is not calibrated", file=sys.stderr)
    if config.rois:
        _say(f"written: {config.rois}", file=sys.stderr)
    return len(bad)


def serve(config: Any, nothing: Any) -> None:
    """Shows that the page is no longer there."""
    _say("the page is closed")


def convert(config: Any, lines: Any) -> None:
    """Shows what was found in the checkpoint."""
    _say(*lines)
    _say(f"written: {Path(config.output) / 'model.safetensors'}, config.json")


def export(config: Any, result: Any) -> None:
    """Shows how close the graph is, and what its precision costs."""
    parity = ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in result["manifest"].parity.items())
    _say(f"largest difference to PyTorch: {parity}")
    if auc := result["auc"]:
        low, high = auc["interval"]
        change = f"{auc['difference']:+.4f} ({low:+.4f} to {high:+.4f}), from {auc['before']:.4f}"
        _say(f"{config.precision}: validation macro AUC {change}; {auc['images']:,} images, {auc['labels']} labels")
    _say(f"written: {result['folder']} ({result['bytes'] / 1e6:.1f} MB, {config.format}, {config.precision})")


def publish(config: Any, result: Any) -> None:
    """Shows where the folder is, or how its check went."""
    if config.check:
        _say(
            f"{result['folder']}: SHA-256 {result['sha256']}, logits differ by {result['difference']:.1g}: as published"
        )
        return
    where = "nothing was uploaded" if result["commit"] is None else f"{config.repo}, commit {result['commit']}"
    _say(f"written: {result['folder']} ({where})", file=sys.stderr)
    if result["entry"]:
        _say("its entry for mxa/models/weights.json:", file=sys.stderr)
        print(to_json({result["name"]: result["entry"]}, 1))


def bench(config: Any, rows: Any) -> None:
    """Shows the rows; below a value stand its ratio to the first peer and the ratio's quartiles.

    A ratio whose quartiles are further apart than it is from 1 has a question mark: nothing follows from it.
    """
    unclear = any(_is_unclear(row, key) for row in rows for key in row)
    keys = [key for key in rows[0] if not key.endswith(("_ratio", "_ratio_iqr"))]
    rows = [[_measured(row, key).split("\n") for key in keys] for row in rows]
    _print_table([key.split("_") for key in keys], rows)
    if goals := getattr(config, "GOALS", None):
        _say(goals)
    if unclear:
        _say(
            "?: the quartiles are further apart than the ratio is from 1, so no difference was seen: measure again "
            "with more --repeats, or when the machine is quiet"
        )


def _is_unclear(row: dict[str, Any], key: str) -> bool:
    """Says whether the noise of a ratio is larger than what it says; the reference's own ratio has no noise."""
    low, high = row.get(f"{key}_ratio_iqr", (1, 1))
    return high - low > abs(row.get(f"{key}_ratio", 1) - 1)


def _measured(row: dict[str, Any], key: str) -> str:
    text = f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key])
    if f"{key}_ratio" in row:
        text += f"\n{row[f'{key}_ratio']:.2f}x{' ?' if _is_unclear(row, key) else ''}"
    if f"{key}_ratio_iqr" in row:
        text += "\n" + "-".join(f"{ratio:.2f}" for ratio in row[f"{key}_ratio_iqr"])
    return text


def _box(found: dict[str, Any] | None) -> str:
    return "-" if found is None else " ".join(f"{edge:.0f}" for edge in found["box"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say_bad(names: Sequence[str], what: str) -> None:
    if names:
        _say(f"{len(names)} image(s) did not read and were {what}: {name_some(names)}", file=sys.stderr)


def _say(*lines: object, file: TextIO | None = None) -> None:
    for line in lines:
        print(printable(line), file=file)


def _print_table(columns: Sequence[str | list[str]], rows: Sequence[Sequence[str | list[str]]]) -> None:
    """Prints a table; a cell is text, which is not read as rich's markup, or a list of its lines."""
    from rich import console, table, text

    def cell(value: str | list[str]) -> Any:
        return text.Text("\n".join(map(printable, [value] if isinstance(value, str) else value)))

    shown = table.Table(*(table.Column(cell(name), overflow="fold") for name in columns))
    for row in rows:
        shown.add_row(*map(cell, row))
    terminal = console.Console()
    if not terminal.is_terminal:
        terminal.width = 10_000  # a file or a pipe: rows are not wrapped
    terminal.print(shown)
