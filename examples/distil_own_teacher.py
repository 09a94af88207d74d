"""Distils a network of your own into a small one with MXA, on images without a label.

    pip install mxa
    python examples/distil_own_teacher.py

A minute on one core. The teacher is any module with named outputs: here a plain module around the model that
comes with mxa. The images are drawn phantoms. ``mxa train --teacher`` does the same for a run folder.
"""

import argparse

import timm
import torch
from torch import nn

import mxa
from mxa.data import create_dataset, create_transform, make_loader
from mxa.labels import NIH
from mxa.task import MultiLabelDistillationTask, Teacher


class Own(nn.Module):
    """A network of your own: normalised images ``(B, 3, 160, 160)`` to logits ``(B, 15)``."""

    def __init__(self):
        super().__init__()
        self.body = timm.create_model("efficientvit_ml_m0_mxa.r160_nih8k", pretrained=True)
        self.pretrained_cfg = self.body.pretrained_cfg  # says what its input is: size, mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def main(steps: int, size: int) -> None:
    torch.manual_seed(0)
    student = timm.create_model("efficientvit_ml_m0_mxa", num_classes=len(NIH), img_size=size)
    mxa.set_label_names(student, NIH)
    teacher = Teacher(Own(), NIH, student, names=NIH)  # resizes the student's batch to its own input
    task = MultiLabelDistillationTask(student, teacher, alpha=1.0)  # 1: the teacher alone, no labels

    train, val = create_dataset("phantom", split="train"), create_dataset("phantom", split="val")
    held_out = next(iter(make_loader(val, create_transform(student), 64)))[0]

    def distance() -> float:
        with torch.no_grad():
            return (student.eval()(held_out).sigmoid() - teacher(held_out)[0].sigmoid()).abs().mean().item()

    before = distance()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    loader = make_loader(train, create_transform(student, is_training=True), 8, is_training=True)
    task.train()
    for (images, _), _ in zip(loader, range(steps), strict=False):  # at most an epoch: 142 steps
        loss = task(images, torch.full((len(images), len(NIH)), torch.nan))["loss"]  # NaN: no label
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"mean distance of the probabilities: {before:.3f} before, {distance():.3f} after {steps} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="side of the student's input")
    main(**vars(parser.parse_args()))
