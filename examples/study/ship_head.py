"""Puts a finding head, in half precision, into the package, beside the weights whose maps it was trained on.

FOLDER is what ``where.py --start efficientvit_ml_m0_mxa.r160_nih8k --whole FOLDER`` wrote.

    python examples/study/ship_head.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from ship import MODELS, write_entry

import mxa
from mxa.layers.attach import finding_rows
from mxa.models.hub import SHIPPED, manifest
from mxa.models.load import load_model
from mxa.utils.files import digest

PREFIX = "finding_head.head."


def main() -> None:
    folder = Path(sys.argv[1])
    model, state = load_model(folder), load_file(folder / "model.safetensors")
    head = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    file = MODELS / f"{SHIPPED}.finding.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in head.items()}, file)
    names = mxa.label_names(model)
    entry = {
        "file": file.name,
        "sha256": digest(file),
        "size": file.stat().st_size,
        "labels": [names[row] for row in finding_rows(model)],
        "reductions": json.loads((folder / "config.json").read_text())["model_args"]["finding_head"]["reductions"],
    }
    write_entry(SHIPPED, {**manifest()[SHIPPED], "finding_head": entry})


if __name__ == "__main__":
    main()
