"""Trains one model in two processes, each on its half of every batch.

    pip install "mxa[train]"
    torchrun --nproc-per-node 2 examples/two_processes.py --output runs/two      # two GPUs, or two shares of the CPU
    python examples/two_processes.py --output runs/one

Each takes a few minutes on two cores, on drawn phantoms. The batch size is that of all processes together.
"""

import argparse
import os
from pathlib import Path

from mxa.train import TrainConfig, train


def main(output: Path, epochs: int, size: int) -> None:
    summary = train(
        TrainConfig(
            model="efficientvit_ml_m0_mxa",
            img_size=size,
            epochs=epochs,
            batch_size=32,
            workers=0,
            output=output,
        )
    )
    if os.environ.get("RANK", "0") == "0":
        print(
            f"{summary['processes']} process(es): validation macro AUC {summary['macro_auc']:.3f}, "
            f"{summary['images_per_second']:.0f} images a second"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/processes"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="side of the input")
    main(**vars(parser.parse_args()))
