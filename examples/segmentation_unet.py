"""A U-Net whose encoder is one of our models, on drawn phantoms.

    pip install mxa segmentation-models-pytorch
    python examples/segmentation_unet.py

It takes a few minutes on two cores.
"""

import argparse

import numpy as np
import segmentation_models_pytorch as smp
import torch

import mxa  # noqa: F401  registers the models
from mxa.data.collections.phantom import describe, draw
from mxa.labels import CHEXPERT

FINDING = "Pleural Effusion"


def batch(numbers: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Phantoms ``(B, 3, S, S)`` in [-1, 1], and the boxes of the finding as masks ``(B, 1, S, S)``."""
    images, masks = [], []
    for number in numbers:
        sample = draw(number, size)
        images.append(torch.from_numpy(sample.image).float() / 127.5 - 1)
        mask = torch.zeros(size, size)
        for x1, y1, x2, y2 in np.round(sample.boxes.get(FINDING, np.empty((0, 4))) * size).astype(int):
            mask[y1:y2, x1:x2] = 1
        masks.append(mask)
    return torch.stack(images)[:, None].repeat(1, 3, 1, 1), torch.stack(masks)[:, None]


def dice(model: torch.nn.Module, numbers: list[int], size: int) -> float:
    images, masks = batch(numbers, size)
    with torch.no_grad():
        found = model.eval()(images).sigmoid() > 0.5
    overlap = (found & (masks > 0)).sum()
    return float(2 * overlap / (found.sum() + masks.sum()).clamp(min=1))


def main(steps: int = 150, size: int = 128, count: int = 8) -> None:
    torch.manual_seed(0)
    model = smp.Unet("tu-efficientvit_ml_m0_mxa", encoder_weights=None, in_channels=3, classes=1)
    loss = smp.losses.DiceLoss("binary")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    column = CHEXPERT.index(FINDING)
    with_finding = [number for number in range(800) if describe(number)[0][column]]
    held_out, others = with_finding[:count], with_finding[count:]
    before = dice(model, held_out, size)
    for step in range(steps):
        chosen = [others[(step * count + i) % len(others)] for i in range(count)]
        images, masks = batch(chosen, size)
        value = loss(model.train()(images), masks)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = dice(model, held_out, size)
    print(f"Dice of {FINDING} on {count} phantoms: {before:.3f} before, {after:.3f} after {steps} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--size", type=int, default=128)
    main(**vars(parser.parse_args()))
