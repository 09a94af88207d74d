"""Does one model beat another? Trains two on drawn phantoms, and compares them on the same patients.

    pip install "mxa[train]"
    python examples/compare_models.py --output runs/compared

It takes a few minutes on two cores. The interval of a difference is over patients and seeds, drawn for both models
together. If it holds 0, this comparison does not say which one is better.
"""

import argparse
from pathlib import Path

from mxa.evaluate import EvaluateConfig, evaluate
from mxa.train import TrainConfig, train

MODELS = ("efficientvit_ml_m0", "efficientvit_ml_m0_mxa")


def main(output: Path, seeds: int, epochs: int, size: int) -> None:
    arms = []
    for model in MODELS:
        runs = [output / f"{model}-seed{seed}" for seed in range(seeds)]
        for seed, run in enumerate(runs):
            train(TrainConfig(model=model, img_size=size, epochs=epochs, seed=seed, output=run))
        arms.append(",".join(map(str, runs)))  # the seeds of one model
    result = evaluate(EvaluateConfig(models=tuple(arms), output=output / "evaluation"))
    for name, scores in zip(MODELS, result["models"], strict=True):
        low, high = scores["macro_auc_interval"]
        print(f"{name:24} macro AUC {scores['macro_auc']:.3f} ({low:.3f} to {high:.3f})")
    difference = result["paired"][0]
    low, high = difference["macro_auc_interval"]
    print(f"the second minus the first {difference['macro_auc']:+.3f} ({low:+.3f} to {high:+.3f})")
    print("the interval holds 0: not told apart" if low <= 0 <= high else "the interval does not hold 0")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compared"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="side of the input")
    main(**vars(parser.parse_args()))
