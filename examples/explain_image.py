"""Shows where a model looks: its boxes, and Grad-CAM of the findings that it holds most likely.

    pip install "mxa[explain]"
    python examples/explain_image.py --output why.png

It takes a few seconds. ``mxa explain`` draws more, and docs/explain.md says what such pictures are worth.
"""

import argparse
from pathlib import Path

import torch

import mxa
from mxa.data import create_transform, read_image
from mxa.explain import draw_panel, grad_cam, predict_rois
from mxa.models.load import load_model

XRAY = Path(__file__).parent / "images" / "00001373_038.jpg"


def main(file: Path, model: str, output: Path, findings: int) -> None:
    network = load_model(model)
    image = read_image(file)
    x = create_transform(network)(image)[None]  # (1, C, H, W)
    names = mxa.label_names(network)
    with torch.no_grad():
        probabilities = network(x).sigmoid()[0]
    likely = [i for i in probabilities.argsort(descending=True).tolist() if names[i] != "No Finding"][:findings]
    heat = grad_cam(network, x, likely)[0]  # (findings, H, W)
    maps = {}
    for i, label in enumerate(likely):
        maps[f"{names[label]} {probabilities[label]:.2f}"] = {"Grad-CAM": heat[i]}
        row, column = divmod(heat[i].argmax().item(), heat.shape[-1])
        print(f"{names[label]:20} {probabilities[label]:.3f}, most at row {row}, column {column} of {heat.shape[-1]}")
    draw_panel(image, predict_rois(network, x), {}, maps, output, Path(file).name)
    print(f"drawn: {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=XRAY)
    parser.add_argument("--model", default="efficientvit_ml_m0_mxa.r160_nih8k", help="or a run folder")
    parser.add_argument("--output", type=Path, default=Path("why.png"))
    parser.add_argument("--findings", type=int, default=3)
    main(**vars(parser.parse_args()))
