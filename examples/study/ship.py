"""Puts a run's weights, in half precision, into the package, with their calibration, entry of the manifest and card.

The card's section "Use" is to be completed by hand: what the weights are for, and how they were made.

    python examples/study/ship.py RUN PLAIN --root NIH8K --tag r160_nih8k --note "..."

PLAIN is a run that stands beside it in the card. Both are scored on the collection's test split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file

import mxa
from mxa.commands.publish import TERMS, describe, headline
from mxa.data import data_config
from mxa.evaluate import EvaluateConfig, evaluate
from mxa.evaluation.calibrate import CalibrateConfig, calibrate
from mxa.evaluation.report.model_card import model_card
from mxa.labels import LABEL_SPACES
from mxa.models.load import load_model
from mxa.utils.files import digest
from mxa.utils.json_files import to_json

MODELS = Path(mxa.__file__).parent / "models"


def write_entry(name: str, entry: dict) -> None:
    """Writes an entry of the manifest, a line a field."""
    path = MODELS / "weights.json"
    entries = []
    for key, metadata in {**json.loads(path.read_text()), name: entry}.items():
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in metadata.items())
        entries.append(f" {json.dumps(key)}: {{\n{lines}\n }}")
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("plain", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--recipe", required=True, help="the recipe of the package that made the run")
    parser.add_argument("--note", required=True, help="what must be said beside the scores")
    args = parser.parse_args()
    model = load_model(args.run)
    name = f"{model.pretrained_cfg['architecture']}.{args.tag}"
    state = load_file(args.run / "model.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    assert all(v.isfinite().all() for v in half.values()), "a weight is out of the range of half precision"
    file = MODELS / f"{name}.safetensors"

    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(folder) / name
        shipped.mkdir()
        rounded = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
        save_file(rounded, shipped / "model.safetensors")
        (shipped / "config.json").write_bytes((args.run / "config.json").read_bytes())
        models = (str(shipped), str(args.plain))
        where = {"data": "nih", "root": args.root, "note": args.note, "workers": 0}
        result = evaluate(EvaluateConfig(models, Path(folder) / "out", **where))
        found = calibrate(CalibrateConfig(model=str(shipped), data="nih", root=args.root, workers=0))
    save_file(half, file)
    provenance = {**found.provenance, "model": name, "weights_sha256": digest(file)}
    file.with_suffix(".calibration.json").write_text(to_json(vars(replace(found, provenance=provenance)), 1) + "\n")
    result["models"][0]["metadata"][0]["weights_sha256"] = digest(file)  # what was scored, before it is float32 again
    labels = next(space for space, names in LABEL_SPACES.items() if names == mxa.label_names(model))
    _, recipe = describe(args.run)
    terms, license = TERMS["nih"]
    entry = {
        "repo": None,
        "revision": None,
        "file": file.name,
        "sha256": digest(file),
        "size": file.stat().st_size,
        "labels": labels,
        "preprocessing": {"input_size": list(data_config(model)["input_size"])},
        "data": f"NIH ChestX-ray14, a part of it (docs/weights-{args.tag}.md)",
        "terms": terms,
        "recipe": args.recipe,
        "metrics": headline(result),
        "license": license,
    }
    write_entry(name, entry)
    card = {**entry, "labels": mxa.label_names(model), "recipe": recipe}
    docs = Path(__file__).parents[2] / "docs" / f"weights-{args.tag}.md"
    docs.write_text(model_card(name, card, result))
    print(yaml.safe_dump({name: entry}, sort_keys=False))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
