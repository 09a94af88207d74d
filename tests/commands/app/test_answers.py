"""What the page says and draws, without a browser and without Gradio."""

from __future__ import annotations

import re
import time
import weakref
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mxa
from mxa.commands.app.answers import Answer, Layer, answer, open_models
from mxa.commands.app.films import Film, Films, read_film
from mxa.commands.app.render import show_answers, show_error
from mxa.models.hub import SHIPPED
from mxa.models.load import load_model
from mxa.utils.errors import InputError


@pytest.fixture(scope="module")
def models(headed, exported, tmp_path_factory):
    blocks = tmp_path_factory.mktemp("blocks")
    mxa.models.save_pretrained(load_model(SHIPPED), blocks)
    named = {"small": SHIPPED, "headed": headed, "exported": exported, "blocks": blocks}
    return open_models({name: str(argument) for name, argument in named.items()})


@pytest.fixture(scope="module")
def read(models, film) -> Film:
    return read_film(film, [model.reader() for model in models.values()])


def asked(models, read, name, point="youden") -> Answer:
    return answer(name, models[name], read, point)


@pytest.mark.parametrize("name", ["small", "exported"])
def test_the_probabilities_are_those_of_predict(models, read, film, name):
    found = asked(models, read, name)
    right = mxa.predict(film, models[name])
    assert list(found.probabilities) == list(right)
    assert list(found.probabilities.values()) == pytest.approx(list(right.values()), abs=1e-6)
    assert "532 validation images" in found.notes[0]


def test_positive_is_what_reaches_its_threshold(models, read):
    for point, most in (("youden", 15), ("specificity95", 5)):
        found = asked(models, read, "small", point)
        thresholds = models["small"].info.calibration.thresholds[point]
        assert found.thresholds == thresholds
        assert {*found.positive} == {k for k, least in thresholds.items() if found.probabilities[k] >= least}
        assert len(found.positive) < most
    assert not asked(models, read, "headed").positive
    assert "not calibrated" in asked(models, read, "headed").notes[0]


def test_layers_of_each_kind_of_model(models, read):
    blocks = asked(models, read, "blocks").layers
    assert [layer.title for layer in blocks][:3] == [
        "Regions of all MXA blocks",
        "Attention, mean",
        "Region of stage 1, block 1",
    ]
    assert [name for name, _ in blocks[0].boxes] == ["stage 1"] + 2 * ["stage 2"] + 3 * ["stage 3"]
    assert blocks[2].boxes[0][1] == blocks[0].boxes[0][1]
    assert len(blocks) == 8
    small = asked(models, read, "small")
    assert len(small.layers) == 8 and small.layers[0].title in small.positive
    headed = asked(models, read, "headed")
    assert [layer.title for layer in headed.layers] == sorted(
        headed.probabilities, key=lambda label: -headed.probabilities[label]
    )
    for layer in (*blocks, *small.layers, *headed.layers):
        assert layer.heat is None or (layer.heat.min() >= 0 and layer.heat.max() == pytest.approx(1))
        assert all(0 <= edge <= 1 for _, box in layer.boxes for edge in box)
    exported = asked(models, read, "exported")
    assert exported.layers == () and "exported: it gives probabilities alone" in exported.notes[1]


def test_an_image_that_does_not_read_is_called_by_its_name_alone(models, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(InputError) as error:
        read_film(path, [models["small"].reader()])
    assert str(error.value).startswith("notes.png does not decode as an image")
    assert str(tmp_path) not in str(error.value)


def test_what_is_kept_is_small_and_says_what_is_odd(models, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((1500, 3000, 3), (200, 20, 20), np.uint8)).save(path)
    found = read_film(path, [models["small"].reader()])
    assert found.size == (1024, 512) and len(found.picture) < 100_000
    assert "coloured" in found.warning
    assert "Look twice: the picture is coloured" in show_answers(found, [asked(models, found, "small")])


def rows(html: str) -> list[list[str]]:
    body = re.findall(r"<tr>(.*?)</tr>", html.split("</thead>")[1])
    return [[unescape(re.sub("<[^>]+>", "", c)) for c in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in body]


def test_the_table_goes_from_the_most_probable_down(models, read):
    found = asked(models, read, "small")
    table = rows(show_answers(read, [found]))
    assert [float(row[2]) for row in table] == sorted((float(row[2]) for row in table), reverse=True)
    assert {row[0].replace(" ", "_") for row in table if row[4] == "yes"} == {
        label.replace(" ", "_") for label in found.positive
    }
    assert {row[0] for row in table if row[4] == "-"} == {"Pneumonia", "Edema", "Hernia"}


def test_two_models_are_compared_by_the_names_of_their_labels(models, read):
    one, two = asked(models, read, "small"), asked(models, read, "headed")
    html = show_answers(read, [one, two])
    table = rows(html)
    at = next(i for i, row in enumerate(table) if row[0] == "Effusion")  # the other model says Pleural Effusion
    assert table[at][1] == "A" and float(table[at][3]) == pytest.approx(one.probabilities["Effusion"], abs=6e-4)
    assert table[at + 1][0] == "B"
    assert float(table[at + 1][2]) == pytest.approx(two.probabilities["Pleural Effusion"], abs=6e-4)
    hernia = next(i for i, row in enumerate(table) if row[0] == "Hernia")
    assert table[hernia + 1] == ["B", "not among its findings"]
    assert html.count("<figure") == 2 and html.count("not for diagnosis") == 2


def test_two_labels_that_mean_the_same_are_both_shown(read):
    found = Answer("m", {"Effusion": 0.25, "Pleural Effusion": 0.5}, {}, (), (), ())
    assert [row[0] for row in rows(show_answers(read, [found]))] == ["Pleural Effusion", "Effusion"]


def test_nothing_of_a_film_is_logged(models, tmp_path, caplog, recwarn):
    path = tmp_path / "dark.png"
    Image.fromarray((np.arange(10_000).reshape(100, 100) % 3000).astype(np.uint16)).save(path)
    found = read_film(path, [models["small"].reader()])
    assert found.warning.startswith("dark.png is 16 bit but uses 12 bits")
    assert not caplog.records and not [w for w in recwarn if "dark.png" in str(w.message)]


def test_names_from_outside_are_shown_as_they_are(models, read):
    html = show_answers(read, [asked(models, read, "headed")])
    assert "Mass &amp; &lt;b&gt;more&lt;/b&gt;" in html and "<b>more" not in html
    odd = Answer("<i>m", {"x": 0.5}, {}, (), (Layer("<i>", (("<i>", (0, 0, 1, 1)),)),), ("<i>",))
    bad = Film('"><script>\x1b', "data:", (4, 4), {}, "<script>")
    html = show_answers(bad, [odd, odd]) + show_error("<script>")
    assert "<script" not in html and "<i>" not in html and "\x1b" not in html


def test_films_are_forgotten(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mxa.commands.app.films.time.monotonic", lambda: now[0])
    films = Films(seconds=10, most=2)
    one, two = (Film(str(i), "", (1, 1), {}) for i in range(2))
    films.keep("a", one)
    assert films.of("a") is one and films.of("b") is None
    now[0] = 8.0
    films.keep("a", two)
    now[0] = 17.0
    assert films.of("a") is two  # kept anew at 8
    now[0] = 18.5
    assert films.of("a") is None
    for page in "abc":
        films.keep(page, one)
    assert [films.of(page) for page in "abc"] == [None, one, one]
    films.drop("c")
    films.drop("c")
    assert films.of("c") is None


def test_films_are_forgotten_where_nobody_asks():
    films = Films(seconds=0.2)
    gone = weakref.ref(film := Film("a", "", (1, 1), {}))
    films.keep("a", film)
    films.keep("b", Film("b", "", (1, 1), {}))
    del film
    assert gone() is not None
    deadline = time.monotonic() + 20
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone() is None


def test_the_examples_are_those_of_the_repository():
    from mxa.commands.app.serve import _examples

    assert [path.suffix for path in _examples(None)] == [".jpg"] * 4
    with pytest.raises(InputError, match="no such file or folder"):
        _examples(Path("nowhere"))
