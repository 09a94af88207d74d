"""What the finding heads of ``where.py --keep`` find in some images, each by the model of the fold that it tests.

python examples/study/where_gallery.py KEPT/finding_head_boxes-512-seed0 --root NIH512 --images A.jpg --output out.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from where import FOLDS, LABELS

from mxa.data import create_dataset, create_transform
from mxa.data.boxes import boxed_images
from mxa.data.splits import fold_splits
from mxa.explain import predict_findings
from mxa.metrics.localization import iou, pointing
from mxa.models.load import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", help="path of the kept models, without -fold0 and so on")
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", nargs="+", required=True, help="names of files with drawn boxes")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    records = create_dataset("nih", args.root, "all", labels=LABELS, views="all").records
    chosen = {image.name: image for image in boxed_images(records, "nih", args.root)}
    fold_of = np.zeros(len(records), int)
    for fold in range(FOLDS):
        fold_of[fold_splits(records, fold, FOLDS).splits == "test"] = fold
    cases = [(chosen[name], finding) for name in args.images for finding in chosen[name].boxes]
    columns = min(4, len(cases))
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(3 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.axis("off")
    for ax, (image, finding) in zip(axes, cases, strict=False):
        model = load_model(f"{args.models}-fold{fold_of[image.index]}")
        film = records.image(image.index)
        found = predict_findings(model, create_transform(model)(film)[None])
        label = LABELS.index(finding)
        heat, box, drawn = found.heat_maps[0, label].numpy(), found.boxes[0, label].numpy(), image.boxes[finding]
        where = {"extent": (0, 1, 1, 0)}
        ax.imshow(film, cmap="gray", **where)
        ax.imshow(heat, cmap="autumn", alpha=0.5 * np.clip(heat / heat.max() * 1.25 - 0.25, 0, 1), **where)
        for corners, style in (
            (box, {"edgecolor": "#56b4e9"}),
            *((b, {"edgecolor": "w", "linestyle": "--"}) for b in drawn),
        ):
            x1, y1, x2, y2 = corners
            ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.8, **style))
        hit = "peak inside" if pointing(heat, drawn) else "peak outside"
        probability = found.logits[0, label].sigmoid()
        ax.set_title(f"{finding} {probability:.2f}: {hit}, IoU {iou(box, drawn):.2f}\n{image.name}", fontsize=8)
    figure.supxlabel("solid: the model's box; dashed: radiologist's; not for diagnosis", fontsize=8)
    figure.savefig(args.output, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
