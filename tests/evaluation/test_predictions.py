"""Files of scores: saved and read back, from other programs, and by study."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mxa.data import create_dataset
from mxa.data.records import Records
from mxa.evaluation.predictions import Predictions, by_study, of_records, read_predictions
from mxa.metrics import sigmoid
from mxa.utils.errors import InputError

NAN = float("nan")


@pytest.fixture
def scores(made_table) -> Predictions:
    records = create_dataset("table", made_table(), "all", views="all").records
    logits = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    return of_records(records, logits, {"model": "m", "weights_sha256": "abc"})


def same(one: Predictions, other: Predictions) -> None:
    assert one.labels == other.labels
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5)
    np.testing.assert_array_equal(one.targets, other.targets)
    columns = ["image", "patient", "study", "view", "sex", "split"]
    assert one.cases[columns].astype(str).equals(other.cases[columns].astype(str))


def test_a_file_holds_all_that_there_is(scores, tmp_path):
    scores.save(tmp_path / "p.parquet")
    found = read_predictions(str(tmp_path / "p.parquet"))
    same(found, scores)
    with pytest.raises(InputError, match=r"no file of scores .*none\.parquet"):
        read_predictions(tmp_path / "none.parquet")
    assert found.metadata == {"scores": "p.parquet", "model": "m", "weights_sha256": "abc"}
    assert found.cases["age"].isna().all()


def test_a_csv_of_probabilities_or_logits(scores, tmp_path):
    table = scores.cases.rename(columns={"image": "path", "split": "split"}).drop(columns="age")
    for i, name in enumerate(scores.labels):
        table[f"target:{name}"] = scores.targets[:, i]
    for form in ("{}", "probability:{}", "logit:{}"):
        columns = {form.format(n): scores.logits[:, i] for i, n in enumerate(scores.labels)}
        if "logit" not in form:
            columns = {n: sigmoid(v) for n, v in columns.items()}
        table.assign(**columns).to_csv(tmp_path / "s.csv", index=False)
        same(read_predictions(tmp_path / "s.csv"), scores)


def test_scores_of_another_program_find_their_images(scores, made_table, tmp_path):
    records = create_dataset("table", made_table(), "all", views="all").records
    table = pd.DataFrame({n: sigmoid(scores.logits[:, i]) for i, n in enumerate(scores.labels)})
    for names in (
        records.paths.astype(object),
        [p.split("/")[-1] for p in records.paths],
        [f"./{p}" for p in records.paths],
    ):
        shuffled = table.assign(image=names, scanner=["x", "y"] * 12).sample(frac=1, random_state=0)
        pd.concat([shuffled, shuffled.tail(1).assign(image="other.png")]).to_csv(tmp_path / "s.csv", index=False)
        found = read_predictions(tmp_path / "s.csv", records)
        same(found, scores)
        assert found.cases["scanner"].tolist() == ["x", "y"] * 12
    split = create_dataset("table", made_table(), "test", labels="Edema,Effusion,Fracture", views="all").records
    found = read_predictions(tmp_path / "s.csv", split)
    assert found.labels == ("Edema", "Effusion") and len(found) == 6
    shuffled.iloc[3:].to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(InputError, match=r"s\.csv has no score of 3 of 24 images, such as files/"):
        read_predictions(tmp_path / "s.csv", records)


def test_the_ends_of_probability_stay_in_order(tmp_path):
    (tmp_path / "s.csv").write_text(
        "path,Edema,target:Edema\n" + "".join(f"{i}.png,{p},1\n" for i, p in enumerate((0, 1e-300, 0.5, 1)))
    )
    logits = read_predictions(tmp_path / "s.csv").logits[:, 0]
    assert (np.diff(logits) > 0).all() and np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,Edema,target:Edema\n1.png,0.5,1\n", "has no column 'path'"),
        ("path,Edema,target:Edema\n1.png,1.5,1\n", "column 'Edema' holds values outside 0 to 1: call it logit:Edema"),
        ("path,probability:Edema,target:Edema\n1.png,-1,1\n", "call it logit:Edema if they are logits"),
        ("path,Edema,target:Edema\n1.png,0.5,2\n", "column 'target:Edema', row 1: a label cell is 1, 0, -1 or blank"),
        ("path,Edema,target:Edema\n1.png,0.5,1\n1.png,0.5,1\n", r"1\.png has more than one row"),
        ("path,logit:Edema\n1.png,0.5\n", "has no columns target:LABEL: name the collection, --data and --root"),
        ("path,logit:Edema,logit:Mass,target:Edema\n1.png,0.5,1,1\n", "has no column target:Mass"),
        ("path,target:Edema\n1.png,1\n", "has no scores: name a column logit:LABEL"),
    ],
)
def test_files_that_cannot_be_scored(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "s.csv")


def test_a_score_that_is_missing_is_named(tmp_path):
    (tmp_path / "s.csv").write_text("path,Edema,target:Edema\n1.png,0.5,1\n2.png,,0\n")
    with pytest.raises(InputError, match=r"not finite, such as Edema of 2\.png"):
        read_predictions(tmp_path / "s.csv").check()


def study_case() -> Predictions:
    cases = pd.DataFrame(
        {
            "image": list("abcde"),
            "patient": ["1", "1", "2", "1", "2"],
            "study": ["s", "s", "s", "t", "u"],
            "view": ["AP", "LATERAL", "PA", "AP", "AP"],
            "sex": ["F", "F", "M", "F", "M"],
            "age": [50.0, 50.0, 60.0, 51.0, 61.0],
            "split": ["test", "test", "test", "test", "val"],
        }
    )
    targets = np.array([[0, NAN], [1, NAN], [0, 0], [1, 1], [0, 1]])
    return Predictions(
        ("Edema", "Mass"), np.log([[1.0, 1.0], [3.0, 1.0], [1.0, 9.0], [4.0, 1.0], [1.0, 1.0]]), targets, cases
    )


def test_studies_by_hand():
    mean, most = by_study(study_case(), "mean"), by_study(study_case(), "max")
    for one in (mean, most):
        assert one.cases["image"].tolist() == ["a", "c", "d", "e"]  # patient 1's s is not patient 2's
        assert one.cases["view"].tolist() == ["", "PA", "AP", "AP"] and one.cases["age"].tolist() == [50, 60, 51, 61]
        np.testing.assert_array_equal(one.targets, [[1, NAN], [0, 0], [1, 1], [0, 1]])
    np.testing.assert_allclose(sigmoid(mean.logits)[:, 0], [(0.5 + 0.75) / 2, 0.5, 0.8, 0.5])
    np.testing.assert_allclose(sigmoid(most.logits)[:, 0], [0.75, 0.5, 0.8, 0.5])
    assert mean.metadata["level"] == "study, mean of its images"


def test_a_study_of_one_image_is_that_image():
    one = study_case()
    alone = Predictions(one.labels, one.logits, one.targets, one.cases.assign(study=list("abcde")))
    for how in ("mean", "max"):
        same(by_study(alone, how), alone)


def test_one_row_is_never_the_score_of_two_images(tmp_path):
    paths = [f"p{i}/study1/view1_frontal.jpg" for i in range(3)]
    records = Records(("Edema",), paths, np.zeros((3, 1)), list("abc"))
    (tmp_path / "s.csv").write_text("path,Edema\nelsewhere/view1_frontal.jpg,0.5\n")
    with pytest.raises(InputError, match="has no score of 3 of 3 images, such as p0/study1"):
        read_predictions(tmp_path / "s.csv", records)
    (tmp_path / "s.csv").write_text("path,Edema\na.png,0.5\n./a.png,0.6\n")
    with pytest.raises(InputError, match=r"a\.png has more than one row"):
        read_predictions(tmp_path / "s.csv", records)
    (tmp_path / "s.csv").write_text("path,logit:Edema,probability:Edema\na.png,0.5,0.6\n")
    with pytest.raises(InputError, match="both as logit: and as probability:"):
        read_predictions(tmp_path / "s.csv", records)


def test_views_sexes_and_ages_are_read_as_those_of_a_table(tmp_path):
    rows = "1.png,Lateral,Female,058Y,0.5,1\n2.png,Frontal,M,60,0.5,0\n"
    (tmp_path / "s.csv").write_text("path,view,sex,age,Edema,target:Edema\n" + rows)
    cases = read_predictions(tmp_path / "s.csv").cases
    assert cases["view"].tolist() == ["LATERAL", ""] and cases["sex"].tolist() == ["F", "M"]
    assert cases["age"].tolist() == [58, 60]
