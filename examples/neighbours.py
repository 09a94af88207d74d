"""Finds the images that are most like one: embeddings of any model here, and their nearest neighbours.

    pip install mxa
    python examples/neighbours.py xray.jpg --among FOLDER

It takes a few seconds. Without arguments it looks for a copy of an X-ray, turned and cut, among the four X-rays beside
it and drawn phantoms. Do not read too much into likeness: this small model does not find a copy that is darkened.
"""

import argparse
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import nn

from mxa.data import create_dataset, create_transform, read_image
from mxa.data.image_io import find_images

IMAGES = Path(__file__).parent / "images"


def embed(model: nn.Module, images: list[Image.Image], batch_size: int = 32) -> torch.Tensor:
    """Returns what the last layer sees of each image, of length 1: ``(N, D)``."""
    transform, found = create_transform(model), []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            x = torch.stack([transform(image) for image in images[start : start + batch_size]])
            found.append(model.forward_head(model.forward_features(x), pre_logits=True))
    return nn.functional.normalize(torch.cat(found), dim=1)


def main(file: Path | None, among: Path, phantoms: int, count: int) -> None:
    model = timm.create_model("efficientvit_ml_m0_mxa.r160_nih8k", pretrained=True).eval()
    files = find_images((among,))
    names, images = [path.name for path in files], [read_image(path) for path in files]
    if file is None:
        records = create_dataset("phantom").records
        names += [f"phantom {i}" for i in range(phantoms)]
        images += [records.image(i) for i in range(phantoms)]
        print(f"a copy of {names[0]}, turned by 3 degrees and cut, is most like")
        query = images[0].rotate(3, Image.Resampling.BILINEAR).crop((4, 4, 124, 124))
    else:
        print(f"{file} is most like")
        query = read_image(file)
    likeness = (embed(model, [query]) @ embed(model, images).T)[0]  # (N,), cosines
    for place in likeness.argsort(descending=True)[:count].tolist():
        print(f"{likeness[place]:.3f}  {names[place]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--among", type=Path, default=IMAGES, help="folder of images")
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--count", type=int, default=5, help="how many neighbours are shown")
    main(**vars(parser.parse_args()))
