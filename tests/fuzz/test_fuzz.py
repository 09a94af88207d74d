"""Damaged files of every kind: an InputError or a right result, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .kinds import KINDS
from .mutations import hostile_values, mutate

ROOT = Path(__file__).resolve().parents[2]


def fuzz(tmp_path: Path, count: int, seed: int, kinds: list[str]) -> list[dict]:
    """Runs the child and returns what was done, a row a kind; fails with the first files that went wrong."""
    report = tmp_path / "report.jsonl"
    command = [sys.executable, "-m", "tests.fuzz.child", str(count), str(seed), str(report), *kinds]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    rows = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    wrong = [f"{r['kind']} {r['number']}, seed {r['seed']}: {r['wrong']}" for r in rows if "number" in r]
    done = [row for row in rows if "done" in row]
    assert not wrong, f"{len(wrong)} files went wrong\n\n" + "\n".join(wrong[:5])
    assert child.returncode == 0 and len(done) == len(kinds), child.stderr[-3000:]
    return done


def test_fifty_damaged_files_of_every_kind(tmp_path):
    assert all(row["done"] == 50 for row in fuzz(tmp_path, 50, 0, list(KINDS)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_damaged_files(tmp_path, kind):
    fuzz(tmp_path, 10_000, 1, [kind])


def test_the_damage_is_damage_and_the_same_for_a_seed():
    data = bytes(range(256)) * 8
    text = json.dumps({"a": {"b": [1, 2]}, "c": 0.5}).encode()
    for damage, content in ((mutate, data), (hostile_values, text)):
        found = [damage(content, np.random.default_rng([0, i])) for i in range(200)]
        assert found == [damage(content, np.random.default_rng([0, i])) for i in range(200)]
        assert sum(one != content for one in found) > 180


WRONG = {
    "lambda folder: 1 / 0": "ZeroDivisionError",
    "lambda folder: [None for _ in iter(int, 1)]": "Hangs",
    "lambda folder: os.system('true')": "RanCode",
    "lambda folder: bytearray(4 << 30)": "MemoryError",
    "lambda folder: 2": "a wrong result",
    "lambda folder: os._exit(3)": None,
}


def test_the_child_sees_what_is_wrong(tmp_path):
    code = f"""
import os, sys
from tests.fuzz import child
def first_right(read):
    right = [lambda folder: 1]
    return lambda folder: right.pop()(folder) if right else read(folder)
def make(folder):
    (folder / "x").write_text("content")
    return [folder / "x"]
def judge(result, right, folder):
    assert result == 1
child.SECONDS = 1
child.KINDS = {{read: child.Kind(make, first_right(eval(read)), judge) for read in {list(WRONG)!r}}}
sys.argv = ["child", "1", "0", {str(tmp_path / "report")!r}, *child.KINDS]
child.main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    rows = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    *seen, last = WRONG
    assert [row["kind"] for row in rows] == [read for read in seen for _ in range(2)] and WRONG[last] is None
    for wrong, counted in zip(rows[::2], rows[1::2], strict=True):
        assert WRONG[wrong["kind"]] in wrong["wrong"] and counted["wrong"] == 1
