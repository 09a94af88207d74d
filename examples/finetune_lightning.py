"""A Lightning module around one of our models, on drawn phantoms.

    pip install mxa lightning
    python examples/finetune_lightning.py

It takes a few minutes on two cores.
"""

import argparse

import lightning
import timm
import torch
from torch.utils.data import DataLoader, Subset

import mxa
from mxa.data import create_dataset, create_transform
from mxa.metrics import macro_auroc
from mxa.task import MultiLabelTask


class Finder(lightning.LightningModule):
    """Predicts findings of X-rays. The loss masks labels that are NaN."""

    def __init__(self, name: str, labels: tuple[str, ...], size: int):
        super().__init__()
        model = timm.create_model(name, num_classes=len(labels), img_size=size)
        mxa.set_label_names(model, labels)
        self.task = MultiLabelTask(model)
        self.scores: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        return self.task(*batch)["loss"]

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, targets = batch
        self.scores.append((self.task.trainable_module(images).cpu(), targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        logits, targets = (torch.cat(batches).numpy() for batches in zip(*self.scores, strict=True))
        self.scores.clear()
        self.log("macro_auc", macro_auroc(logits, targets), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main(images: int = 800, epochs: int = 3, size: int = 160) -> None:
    lightning.seed_everything(0, verbose=False)
    train, val = create_dataset("phantom", split="train"), create_dataset("phantom", split="val")
    module = Finder("efficientvit_ml_m0_mxa", train.labels, size)
    model = module.task.trainable_module
    train.transform, val.transform = create_transform(model, is_training=True), create_transform(model)
    subset = Subset(train, range(min(images, len(train))))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(subset, 16, shuffle=True, drop_last=True), DataLoader(val, 32))
    auc = float(trainer.callback_metrics["macro_auc"])
    print(f"macro AUC {auc:.3f} on {len(val)} phantoms after {epochs} epoch(s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=160)
    main(**vars(parser.parse_args()))
