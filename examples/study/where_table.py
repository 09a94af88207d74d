"""Makes the tables of ``where.py``: adds the cases of its folders to one file, and puts the file into Markdown.

python examples/study/where_table.py docs/results/study/where [--from FOLDER...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from mxa.evaluation.predictions import read_metadata
from mxa.evaluation.report.rows import markdown
from mxa.metrics.localization_table import MACRO, THIRDS, CaseScore, localization_table

KEYS = ["arm", "size", "seed", "image", "finding", "method"]
METRICS = ("pointing", "hit_0.25", "iou", "energy")


def gather(folders: list[Path], known: Path) -> pd.DataFrame:
    """The cases of every run, a row each, with the run's arm and the side of its images, after those that are known."""
    frames = [pd.read_parquet(known)] if known.exists() else []
    for folder in folders:
        for path in sorted(folder.glob("*.csv")):
            run = path.with_suffix(".parquet")
            about = read_metadata(run) if run.exists() else {"arm": "no model", "size": 0, "seed": 0}
            own = {"arm": about["arm"], "size": about["size"], "seed": about["seed"]}
            frames.append(pd.read_csv(path, dtype={"patient": str}).assign(**own))
    return pd.concat(frames, ignore_index=True).drop_duplicates(KEYS, keep="last")


def tables(cases: pd.DataFrame) -> str:
    """Every arm: all findings, each finding, and by the size of the boxes."""
    rows = []
    for (size, arm), some in cases.groupby(["size", "arm"], sort=False):
        own = [CaseScore(**row) for row in some[list(CaseScore._fields)].to_dict("records")]
        for row in localization_table(own):
            rows.append({"size": size or "-", "arm": arm, "seeds": some["seed"].nunique(), **row})
    heads = ("side", "arm", "seeds", "what", "pointing", "IoU > 0.25", "IoU", "energy")
    body = [
        (r["size"], r["arm"], r["seeds"], r["method"], *(cell(r, metric) for metric in METRICS))
        for r in rows
        if r["finding"] == MACRO
    ]
    parts = ["Mean over the eight findings.\n", markdown((heads, body))]
    findings = [
        *dict.fromkeys(r["finding"] for r in rows if r["finding"] not in (MACRO, "all cases", *THIRDS)),
        *THIRDS,
    ]
    every = {(r["size"], r["arm"], r["method"], r["finding"]): r for r in rows}
    for metric, title in (("pointing", "Pointing"), ("hit_0.25", "IoU > 0.25")):
        counts = [next(r["n"] for r in rows if r["finding"] == finding) for finding in findings]
        heads = ("side", "arm", "what", *(f"{f} ({n})" for f, n in zip(findings, counts, strict=True)))
        body = [
            (*key, *(cell(every.get((*key, f)), metric) for f in findings))
            for key in dict.fromkeys(k[:3] for k in every)
        ]
        parts += [f"{title}, by finding and by size of box (cases):\n", markdown((heads, body))]
    return "\n".join(parts)


def cell(row: dict | None, metric: str) -> str:
    if row is None or row[metric] is None:
        return "-"
    low, high = row[f"{metric}_interval"]
    return f"{row[metric]:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of cases.parquet and table.md")
    parser.add_argument("--from", dest="folders", type=Path, nargs="+", help="outputs of where.py")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    cases = args.output / "cases.parquet"
    if args.folders:
        gather(args.folders, cases).to_parquet(cases, compression="zstd", index=False)
    (args.output / "table.md").write_text(tables(pd.read_parquet(cases)))


if __name__ == "__main__":
    main()
