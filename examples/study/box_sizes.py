"""How large the boxes of the ROI heads are, and how much they move from image to image: a CSV of every run and block.

python examples/study/box_sizes.py RUN... --root NIH_BOXES --output box_sizes.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from mxa.data import create_transform
from mxa.data.boxes import read_boxed
from mxa.explain import predict_rois
from mxa.models.load import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--reduce", type=int, default=128, help="side that the models were trained on, in pixels")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    records, boxed = read_boxed("nih", args.root)
    size = (args.reduce, args.reduce)
    images = [records.image(one.index).resize(size, Image.Resampling.LANCZOS) for one in boxed]
    rows = []
    for run in args.runs:
        model = load_model(run)
        transform = create_transform(model)
        with torch.no_grad():
            found = [predict_rois(model, split) for split in torch.stack([*map(transform, images)]).split(64)]
        for block in found[0]:
            boxes = torch.cat([rois[block] for rois in found])  # (B, 4)
            sides, centres = boxes[:, 2:] - boxes[:, :2], boxes.reshape(-1, 2, 2).mean(1)
            numbers = torch.cat([sides.mean(0), sides.std(0), centres.mean(0), centres.std(0)]).tolist()
            rows.append((run.name, block, len(boxes), *(round(n, 4) for n in numbers)))
    of = [f"{what} {axis}" for what in ("side", "side sd", "centre", "centre sd") for axis in "xy"]
    pd.DataFrame(rows, columns=["run", "block", "images", *of]).to_csv(args.output, index=False)


if __name__ == "__main__":
    main()
