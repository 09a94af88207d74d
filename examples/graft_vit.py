"""Grafts MXA onto a timm ViT: the logits stay the same until it is trained, and it is saved and loaded as one model.

    pip install mxa
    python examples/graft_vit.py

It takes a few minutes on two cores.
"""

import argparse
from tempfile import TemporaryDirectory

import timm
import torch

import mxa
from mxa.data import create_dataset, create_transform, make_loader
from mxa.layers import graft
from mxa.models import save_pretrained
from mxa.task import MultiLabelTask


def main(steps: int = 60, name: str = "vit_tiny_patch16_224") -> None:
    torch.manual_seed(0)
    dataset = create_dataset("phantom", split="train")
    model = timm.create_model(name, num_classes=len(dataset.labels))  # pretrained=True where the Hub can be reached
    mxa.set_label_names(model, dataset.labels)
    images = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        before = model.eval()(images)
        moved = (graft(model, last=4)(images) - before).abs().max().item()
    print(f"the logits of {name} moved by {moved} when MXA was grafted onto it")

    task = MultiLabelTask(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    loader = make_loader(dataset, create_transform(model, is_training=True), 16, is_training=True)
    losses = []
    for (x, target), _ in zip(loader, range(steps), strict=False):
        loss = task(x, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f}, {sum(losses[-5:]) / len(losses[-5:]):.3f} after {len(losses)} steps")
    gates = [parameter.abs().mean().item() for key, parameter in model.named_parameters() if "mxa.ls.gamma" in key]
    print(f"mean gates of the {len(gates)} blocks: {', '.join(f'{gate:.4f}' for gate in gates)}")

    with TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    print(f"saved and loaded again: the same logits, {torch.equal(loaded(images), model.eval()(images))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--name", default="vit_tiny_patch16_224")
    main(**vars(parser.parse_args()))
