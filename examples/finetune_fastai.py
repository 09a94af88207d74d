"""fastai's learner around one of our models, on drawn phantoms.

    pip install mxa fastai
    python examples/finetune_fastai.py

It takes a few minutes on two cores.
"""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from fastai.vision import all as fastai

import mxa  # noqa: F401  registers the models
from mxa.data import create_dataset


def table_of_phantoms(folder: Path, images: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Writes phantoms as files, and returns their table for fastai and the labels; every fourth one validates."""
    dataset = create_dataset("phantom", split="train")
    rows = []
    for i in range(images):
        dataset.records.image(i).save(folder / f"{i}.png")
        found = [n for n, t in zip(dataset.labels, dataset.records.targets[i], strict=True) if t == 1]
        rows.append((f"{i}.png", ";".join(found), i % 4 == 0))
    return pd.DataFrame(rows, columns=["name", "labels", "is_valid"]), dataset.labels


def main(images: int = 400, epochs: int = 3, size: int = 160) -> None:
    with TemporaryDirectory() as folder:
        table, labels = table_of_phantoms(Path(folder), images)
        block = fastai.DataBlock(
            blocks=(fastai.ImageBlock, fastai.MultiCategoryBlock(vocab=list(labels), add_na=False)),
            get_x=fastai.ColReader("name", pref=Path(folder)),
            get_y=fastai.ColReader("labels", label_delim=";"),
            splitter=fastai.ColSplitter("is_valid"),
            item_tfms=fastai.Resize(size, fastai.ResizeMethod.Squish),
        )
        loaders = block.dataloaders(table, bs=16, num_workers=0)
        learner = fastai.vision_learner(
            loaders,
            "efficientvit_ml_m0_mxa",
            pretrained=False,
            n_out=len(labels),
            loss_func=fastai.BCEWithLogitsLossFlat(),
            metrics=partial(fastai.accuracy_multi, thresh=0.5),
        )
        before = learner.validate()[0]
        learner.fit_one_cycle(epochs, 3e-3)
        after = learner.validate()[0]
        print(f"validation loss {before:.3f} before, {after:.3f} after {epochs} epoch(s) on {images} phantoms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=160)
    main(**vars(parser.parse_args()))
