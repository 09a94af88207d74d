"""How well students agree with their teacher on validation images, without a label.

Where a label has few positives, an AUC of the validation patients says little of a student. The teacher's logits say
more: every image has one of every label.

    mxa evaluate RUN... --data table --root versions/table.csv --split val --output OUT
    python examples/study/agreement.py finetune/teacher.parquet OUT/predictions/*.parquet --output agreement.csv

writes a row a student: for each label Spearman's correlation of its logits with the teacher's, and their mean.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from mxa.evaluation.predictions import Predictions, read_predictions


def agreement(student: Predictions, teacher: Predictions) -> dict[str, float]:
    """Spearman's correlation of the logits, by label, over the student's images.

    Raises:
        KeyError: the teacher lacks an image of the student.
    """
    place = {image: row for row, image in enumerate(teacher.cases["image"])}
    rows = [place[image] for image in student.cases["image"]]
    shared = [label for label in student.labels if label in teacher.labels]
    pairs = [
        (student.logits[:, student.labels.index(label)], teacher.logits[rows, teacher.labels.index(label)])
        for label in shared
    ]
    return {label: spearmanr(*pair).statistic for label, pair in zip(shared, pairs, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("students", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    teacher, found = read_predictions(args.teacher), []
    for path in args.students:
        by_label = agreement(read_predictions(path), teacher)
        mean = float(np.mean(list(by_label.values())))
        print(f"{path.stem}: {mean:.3f}")
        found.append({"student": path.stem, "mean": mean, **by_label})
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in found)


if __name__ == "__main__":
    main()
