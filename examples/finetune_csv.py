"""Fine-tunes the model that comes with mxa on your CSV, and scores it on patients it has not seen.

    pip install "mxa[train]"
    python examples/finetune_csv.py --table my.csv --output runs/mine

Without a table it draws 300 chest phantoms and takes a few minutes on two cores. Their CSV has a column of paths, a
column of patients, and a column of 0 and 1 for each label, as yours should.
"""

import argparse
import csv
from pathlib import Path

from mxa.data import create_dataset
from mxa.evaluate import EvaluateConfig, evaluate
from mxa.train import TrainConfig, train


def write_phantoms(folder: Path, count: int) -> Path:
    """Writes phantoms as PNG files, and returns their CSV."""
    dataset = create_dataset("phantom", split="all")
    folder.mkdir(parents=True)
    with (folder / "phantoms.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "patient", *dataset.labels))
        for i in range(count):
            dataset.records.image(i).save(folder / f"{i}.png")
            labels = dataset.records.targets[i].astype(int).tolist()
            writer.writerow((f"{i}.png", dataset.records.patients[i], *labels))
    return folder / "phantoms.csv"


def main(table: Path | None, output: Path, images: int, epochs: int) -> None:
    summary = train(
        TrainConfig(
            data="table",
            root=str(table or write_phantoms(output / "phantoms", images)),
            test_fraction=0.2,  # of the patients
            model="efficientvit_ml_m0_mxa",
            init="efficientvit_ml_m0_mxa.r160_nih8k",  # labels of the same name keep their outputs
            img_size=160,
            epochs=epochs,
            output=output / "run",
        )
    )
    print(f"kept epoch {summary['epoch'] + 1}: validation macro AUC {summary['macro_auc']:.3f}")
    scores = evaluate(EvaluateConfig(models=(str(output / "run"),), output=output / "evaluation"))["models"][0]
    low, high = scores["macro_auc_interval"]
    print(f"test macro AUC {scores['macro_auc']:.3f} ({low:.3f} to {high:.3f}), {scores['images']} images")
    print(f"the report: {output / 'evaluation' / 'report.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="CSV, Parquet or Excel file; phantoms by default")
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned"))
    parser.add_argument("--images", type=int, default=300, help="how many phantoms are drawn")
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
