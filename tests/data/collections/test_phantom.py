from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from mxa.data.collections.phantom import LABELS, PhantomSample, describe, draw
from mxa.data.collections.phantom_scene import OPACITIES, SceneParams, render

COLUMN = {name: i for i, name in enumerate(LABELS)}
DRAWN = [name for name in LABELS if name != "No Finding"]


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, patients, views = zip(*(describe(i) for i in range(3000)), strict=True)
    return np.stack(labels), np.array(patients), np.array(views)


@pytest.fixture(scope="module")
def samples() -> list[PhantomSample]:
    return [draw(i, size=64) for i in range(150)]


def positives(labels: np.ndarray) -> set[str]:
    return {name for name, on in zip(LABELS, labels, strict=True) if on}


def test_same_arguments_same_sample():
    a, b = draw(7, 96, seed=3), draw(7, 96, seed=3)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.boxes.keys() == b.boxes.keys()
    assert (a.view, a.patient) == (b.view, b.patient)


def test_seeds_and_indices_differ():
    images = [draw(index, 96, seed).image for index in range(6) for seed in range(2)]
    assert len({image.tobytes() for image in images}) == 12
    assert not np.array_equal([describe(i, 0)[0] for i in range(50)], [describe(i, 1)[0] for i in range(50)])


@pytest.mark.parametrize("size", [160, 224])
def test_image_is_gray_uint8_with_range(size):
    for index in range(4):
        image = draw(index, size).image
        assert image.dtype == np.uint8
        assert image.shape == (size, size)
        assert np.ptp(np.percentile(image, (2, 98))) > 100


def test_lungs_are_darker_than_mediastinum_and_belly():
    params = SceneParams(index=0, seed=0, patient=0, view="PA")
    image = render(params, set(), 200)[0].astype(float)
    lungs = image[70:110, 45:65].mean(), image[70:110, 140:160].mean()
    assert max(lungs) + 50 < min(image[90:150, 95:105].mean(), image[185:, 80:120].mean())


def test_labels_and_boxes_do_not_depend_on_size():
    for index in range(20):
        small, large = draw(index, 64), draw(index, 128)
        np.testing.assert_array_equal(small.labels, large.labels)
        assert small.boxes.keys() == large.boxes.keys()
        for name, boxes in small.boxes.items():
            np.testing.assert_array_equal(boxes, large.boxes[name])


def test_describe_agrees_with_draw(samples):
    for index, sample in enumerate(samples):
        labels, patient, view = describe(index)
        np.testing.assert_array_equal(labels, sample.labels)
        assert (patient, view) == (sample.patient, sample.view)
        assert labels.dtype == np.float32
        assert labels.shape == (14,)


def test_prevalences(table):
    labels, _, views = table
    prevalence = dict(zip(LABELS, labels.mean(0), strict=True))
    assert 0.3 < prevalence.pop("No Finding") < 0.5
    assert 0.33 < prevalence.pop("Lung Opacity") < 0.45
    assert all(0.02 < p < 0.3 for p in prevalence.values()), prevalence
    ap = views == "AP"
    assert 0.4 < ap.mean() < 0.65
    assert labels[ap, 1:].sum(1).mean() > labels[~ap, 1:].sum(1).mean()


def test_no_finding_and_lung_opacity_follow_from_the_others(table):
    alone = 0
    for labels in table[0]:
        on = positives(labels)
        assert ("No Finding" in on) == (not on - {"No Finding", "Support Devices"})
        children = on.intersection(OPACITIES)
        assert "Lung Opacity" in on or not children
        alone += "Lung Opacity" in on and not children
    assert alone > 30


def test_patients_have_one_to_three_consecutive_images(table):
    patients = table[1]
    assert set(np.diff(patients)) == {0, 1}
    assert set(Counter(patients[:2994].tolist()).values()) == {1, 2, 3}
    labels = table[0]
    same = np.flatnonzero(np.diff(patients) == 0)
    assert (labels[same] != labels[same + 1]).any(1).mean() > 0.3


def test_boxes_are_those_of_the_positive_findings(samples):
    seen = set()
    for sample in samples:
        assert set(sample.boxes) == positives(sample.labels) - {"No Finding"}
        seen |= sample.boxes.keys()
        for boxes in sample.boxes.values():
            assert boxes.dtype == np.float32
            assert boxes.ndim == 2 and boxes.shape[1] == 4 and len(boxes)
            assert boxes.min() >= 0 and boxes.max() <= 1
            assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert seen == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_a_finding_changes_the_image_inside_its_box(name):
    size = 128
    for index in range(8):
        _, patient, view = describe(index, seed=5)
        params = SceneParams(index, 5, patient, view)
        image, boxes = render(params, {name}, size)
        change = np.abs(image.astype(float) - render(params, set(), size)[0])
        inside = np.zeros_like(change, dtype=bool)
        for x0, y0, x1, y1 in boxes[name] * (size - 1):
            inside[int(y0) : int(y1) + 2, int(x0) : int(x1) + 2] = True
        assert change.max() >= 8
        assert change[inside].sum() >= 0.8 * change.sum()


def test_lung_opacity_holds_the_boxes_of_its_children():
    boxes = render(SceneParams(0, 0, 0, "PA"), {"Lung Opacity", "Lung Lesion", "Edema"}, 64)[1]
    np.testing.assert_array_equal(boxes["Lung Opacity"], np.concatenate((boxes["Edema"], boxes["Lung Lesion"])))


def test_findings_of_one_image_do_not_move_each_other():
    params = SceneParams(3, 0, 1, "AP")
    alone = render(params, {"Lung Lesion"}, 64)[1]["Lung Lesion"]
    np.testing.assert_array_equal(alone, render(params, set(DRAWN), 64)[1]["Lung Lesion"])


def test_samples_are_frozen_and_arguments_checked(samples):
    with pytest.raises(FrozenInstanceError):
        samples[0].view = "PA"
    with pytest.raises(ValueError, match="0 or more"):
        describe(-1)
    with pytest.raises(ValueError, match="0 or more"):
        draw(0, seed=-1)
    with pytest.raises(ValueError, match="32"):
        draw(0, size=16)
