"""A table reads to the same records however it is written; splits, boxes and labels hold whatever the rows are."""

from __future__ import annotations

import csv
import gzip
import io
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mxa.data.create import read_collection
from mxa.data.records import Records
from mxa.data.splits import cut, divide
from mxa.labels import split_names
from mxa.utils.errors import InputError

from .helpers import boxes_of

always = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LABELS = ("Edema", "Effusion, left", "Nodule; small", 'a "mass"', "Œdème | x")
SPELT = {1.0: ("1", "1.0", "yes", "Y", "True", " pos "), 0.0: ("0", "0.00", "No", "absent"), -1.0: ("-1", "uncertain")}


@st.composite
def tables(draw):
    count = draw(st.integers(1, 12))
    labels = draw(st.lists(st.sampled_from(LABELS), min_size=1, unique=True))
    cells = st.sampled_from([1.0, 0.0, -1.0, None])
    note = st.text(st.characters(exclude_categories=["C"], include_characters=',;|\t\n"'), max_size=8)
    return [
        {"path": f"img/{i}.png", "patient": f"p{draw(st.integers(0, 4))}", "note, free": draw(note)}
        | {name: draw(cells) for name in labels}
        for i in range(count)
    ], labels


def by_path(records: Records, labels: list[str]) -> dict[str, tuple]:
    targets = np.nan_to_num(records.with_labels(labels).targets, nan=9).tolist()
    return dict(zip(records.paths.tolist(), zip(records.patients.tolist(), targets, strict=True), strict=True))


@always
@given(tables(), st.data())
def test_a_table_reads_the_same_however_it_is_written(tmp_path, table, data):
    rows, labels = table
    expected = {
        row["path"]: (row["patient"], [9 if row[name] is None else row[name] for name in labels]) for row in rows
    }
    header = data.draw(st.permutations(list(rows[0])))
    rows = data.draw(st.permutations(rows))
    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=data.draw(st.sampled_from(",;\t|")),
        quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerow(header)
    for row in rows:
        spelt = {name: data.draw(st.sampled_from(SPELT.get(row[name], ("", "NA")))) for name in labels}
        slashed = {"path": row["path"].replace("/", data.draw(st.sampled_from("/\\")))}
        writer.writerow([(row | spelt | slashed)[name] for name in header])
    content = file.getvalue().encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))
    path = tmp_path / "own.csv"
    path.write_bytes(gzip.compress(content) if data.draw(st.booleans()) else content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a blank cell at the end
        assert by_path(read_collection("table", path, labels=labels), labels) == expected


@always
@given(tables(), st.data())
def test_a_row_with_a_cell_too_many_or_too_few_is_always_refused(tmp_path, table, data):
    rows, _ = table
    lines = [list(rows[0]), *(["" if cell is None else str(cell) for cell in row.values()] for row in rows)]
    odd = data.draw(st.integers(1, len(rows)))
    place = data.draw(st.integers(0, len(lines[0]) - 1))
    if data.draw(st.booleans()):
        lines[odd].insert(place, data.draw(st.sampled_from(["", "1", "x"])))
    else:
        del lines[odd][place]
    with (tmp_path / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    with pytest.raises(InputError, match=r"own\.csv: (line \d+: \d+ cells where the header has|every row has a comma)"):
        read_collection("table", tmp_path / "own.csv")


@always
@given(st.binary(max_size=300), st.sampled_from(["own.csv", "own.csv.gz", "own.parquet", "own.xlsx"]))
def test_no_bytes_are_a_traceback(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        read_collection("table", tmp_path / name)


@always
@given(tables(), st.integers(0, 1000), st.sampled_from(["csv", "parquet", "csv.gz", "xlsx"]), st.data())
def test_a_file_cut_anywhere_is_refused_or_has_fewer_rows(tmp_path, table, at, kind, data):
    frame = pd.DataFrame(table[0]).astype(object)
    path = tmp_path / f"own.{kind}"
    getattr(frame, {"csv.gz": "to_csv", "csv": "to_csv", "parquet": "to_parquet", "xlsx": "to_excel"}[kind])(
        path, index=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = by_path(read_collection("table", path, labels=table[1]), table[1])
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * at // 1001])
        try:
            found = by_path(read_collection("table", path, labels=table[1]), table[1])
        except InputError:
            return
    last = list(found)[-1]  # what was cut within its last cell cannot be known
    assert kind == "csv" and {k: v for k, v in found.items() if k != last}.items() <= whole.items()


names = st.lists(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).filter(lambda s: s.strip()), min_size=1
)


@always
@given(names)
def test_names_survive_their_list(wanted):
    text = ",".join('"' + name.replace('"', '""') + '"' for name in wanted)
    assert split_names(text) == [name.strip() for name in wanted]


@always
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 1)), min_size=1), st.randoms())
def test_a_cut_keeps_patients_whole_in_any_order(rows, random):
    def pieces(rows):
        patients = [f"p{p}" for p, *_ in rows]
        records = Records(("a", "b"), [str(i) for i in range(len(rows))], np.float32([r[1:] for r in rows]), patients)
        divided = divide(records, 20)
        return {(patient, split) for patient, split in zip(patients, divided.splits.tolist(), strict=True)}

    found = pieces(rows)
    assert len(found) == len({patient for patient, _ in found})
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert pieces(shuffled) == found
    assert not cut(np.array(["a", "b"]), np.zeros((2, 1)), 0).any()


number = st.one_of(st.floats(), st.floats(-10, 1100), st.just(""), st.text(max_size=3))


@always
@given(number, number, number, number)
def test_a_box_lies_in_its_image_or_is_refused(tmp_path, x, y, w, h):
    with (tmp_path / "BBox_List_2017.csv").open("w", newline="") as file:
        header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
        csv.writer(file).writerows([header, ["1.png", "Mass", x, y, w, h]])
    try:
        ((x1, y1, x2, y2),) = boxes_of(tmp_path)["1.png"]["Mass"]
    except InputError:
        return
    assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1
    assert abs(x1 - float(x) / 1024) < 0.01 and abs(y2 - (float(y) + float(h)) / 1024) < 0.01
