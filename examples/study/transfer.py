"""When does a start pay? Children's X-rays, another question than NIH's, with few and with more images to train on.

    python examples/study/transfer.py --root KERMANY --lite0 lite0 --sizes 100 500 2852 --output transfer

For each size it writes a table of so many training images, chosen by the hash of the patient, with 150 validation
images and every test image, and runs ``mxa ablate`` on it. ``--lite0`` is the run folder that ``mxa convert`` makes of
EfficientNet-Lite0 (docs/weights.md). Finished runs are kept, and ``--arms`` trains some of the arms.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path

import pandas as pd
import torch

from mxa.commands.ablate import AblateConfig, ablate
from mxa.models.hub import SHIPPED
from mxa.utils.allocator import keep_memory

EPOCHS = {100: 30, 500: 12}
VALIDATION = 150
NOTE = "Kermany, Zhang, Goldbaum, Mendeley Data, CC BY 4.0: children of one to five; split by subject by this project."


def subset(root: Path, count: int) -> pd.DataFrame:
    """Rows of the table with so many training and 150 validation images, the patients with the lowest hashes first."""
    table = pd.read_csv(root / "labels.csv")
    order = [hashlib.sha256(name.encode()).hexdigest() for name in table["patient"]]
    table = table.iloc[pd.Series(order).sort_values(kind="stable").index]
    kept = [table[table["split"] == "train"][:count], table[table["split"] == "val"][:VALIDATION]]
    return pd.concat([*kept, table[table["split"] == "test"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--lite0", required=True)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 2852])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    keep_memory()

    lite0 = {"model": "tf_efficientnet_lite0", "init": args.lite0}
    starts = {
        "random": {"model": SHIPPED.partition(".")[0]},
        "mxa weights": {"init": SHIPPED},
        "mxa weights frozen": {"init": SHIPPED, "freeze": "backbone"},
        "ImageNet Lite0": lite0,
        "ImageNet Lite0 frozen": {**lite0, "freeze": "backbone"},
    }
    arms = [{name: starts[name]} for name in args.arms or starts]
    for size in args.sizes:
        folder = args.output / str(size)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "images").exists():  # so that the scores name an image as the collection does
            (folder / "images").symlink_to((args.root / "images").resolve())
        subset(args.root, size).to_csv(folder / "table.csv", index=False)
        config = AblateConfig(
            folder / "runs",
            data="table",
            root=str(folder / "table.csv"),
            arms=tuple(arms),
            seeds=tuple(args.seeds),
            img_size=160,
            epochs=EPOCHS.get(size, 6),
            batch_size=20,
            augment="crop",
            channels_last=True,
            workers=0,
            note=NOTE,
        )
        ablate(config)
        print((folder / "runs" / "table.md").read_text())


if __name__ == "__main__":
    main()
