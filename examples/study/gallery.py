"""The paper's figure I.1 with the truth beside it: the boxes of a model's ROI heads, and those that radiologists drew.

python examples/study/gallery.py RUN --root NIH_BOXES --images 00000000_000.jpg ... --output gallery.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from mxa.data import create_transform
from mxa.data.boxes import read_boxed
from mxa.explain import predict_rois
from mxa.models.load import load_model

STYLES = {"stages.0": ("tab:orange", "stage 1"), "stages.1": ("tab:cyan", "stage 2"), "stages.2": ("w", "stage 3")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", nargs="+", required=True, help="names of files with drawn boxes")
    parser.add_argument("--reduce", type=int, default=128, help="side that the model was trained on, in pixels")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    records, boxed = read_boxed("nih", args.root)
    chosen = {image.name: image for image in boxed if image.name in args.images}
    if missing := set(args.images) - set(chosen):
        parser.error(f"no drawn box of {', '.join(sorted(missing))}")
    model = load_model(args.run)
    transform = create_transform(model)

    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.axis("off")
    for ax, name in zip(axes, args.images, strict=False):
        image = records.image(chosen[name].index)
        small = image.resize((args.reduce, args.reduce), Image.Resampling.LANCZOS)
        with torch.no_grad():
            rois = predict_rois(model, transform(small)[None])
        ax.imshow(image, cmap="gray", extent=(0, 1, 1, 0))
        for module, box in rois.items():
            colour, label = next(style for stage, style in STYLES.items() if module.startswith(stage))
            _draw(ax, box[0].tolist(), edgecolor=colour, linewidth=1, label=label)
        findings = []
        for finding, drawn in chosen[name].boxes.items():
            findings.append(finding)
            for box in drawn:
                _draw(ax, box, edgecolor="red", linewidth=2, linestyle="--", label="radiologist")
        ax.set_title(f"{', '.join(findings)}\n{name}", fontsize=8)
    handles = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, facecolor="0.4")
    figure.savefig(args.output, dpi=100)


def _draw(ax, box, **style) -> None:
    x1, y1, x2, y2 = box
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


if __name__ == "__main__":
    main()
