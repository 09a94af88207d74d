"""Pictures: each holds what was asked for, in its place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from mxa.explain import draw_comparison, draw_gallery, draw_panel, draw_rois, panels
from mxa.utils.errors import InputError

XRAY = Image.fromarray(np.full((120, 80), 100, dtype=np.uint8))
ROIS = {
    "stages.0.blocks.0.mixer.mxa.roi.head": torch.tensor([[0.1, 0.1, 0.9, 0.9]]),
    "stages.2.blocks.1.mixer.mxa.roi.head": torch.tensor([[0.2, 0.2, 0.6, 0.7]]),
    "stages.2.blocks.2.mixer.mxa.roi.head": torch.tensor([[0.3, 0.3, 0.8, 0.8]]),
}


def heat(y: int, x: int) -> torch.Tensor:
    """64 x 64, a small hill."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return (-((rows - y) ** 2 + (columns - x) ** 2) / 30.0).exp()


def colours(path, wanted, tolerance=12):
    """Share of the pixels of a PNG near a colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return (abs(pixels - np.array(wanted)).max(-1) < tolerance).mean()


def test_boxes(tmp_path):
    draw_rois(XRAY, ROIS, tmp_path / "a.png", "50 $ and $ a title")
    assert colours(tmp_path / "a.png", (255, 210, 63)) > 0.001  # the first stage
    assert colours(tmp_path / "a.png", (59, 206, 172)) > 0.001  # the last
    draw_gallery([XRAY] * 5, [ROIS] * 5, list("abcde"), tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.width > 1000 and picture.height > 900  # two rows of four
    assert colours(tmp_path / "g.png", (59, 206, 172)) > 0.0005  # the second block of the last stage
    draw_gallery(
        [XRAY] * 2, [{"layer1.mxa.roi.head": torch.tensor([[0.0, 0, 1, 1]])}] * 2, list("ab"), tmp_path / "f.png"
    )


@pytest.mark.parametrize("kind", ["I;16", "RGB", "array", "float", "tensor"])
def test_an_image_in_memory_is_drawn_as_its_gray(tmp_path, kind):
    ramp = np.add.outer(np.arange(60), np.arange(40)).astype(np.uint8) * 2
    forms = {
        "I;16": Image.fromarray(ramp.astype(np.uint16) * 257),
        "RGB": Image.fromarray(ramp).convert("RGB"),
        "array": ramp,
        "float": ramp / 255,
        "tensor": torch.from_numpy(ramp)[None],
    }
    draw_rois(Image.fromarray(ramp), ROIS, tmp_path / "a.png")
    draw_rois(forms[kind], ROIS, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=2)


def test_comparison_says_more_and_less(tmp_path):
    draw_comparison(XRAY, heat(20, 20) + 0.1, heat(40, 40)[::2, ::2] + 0.1, tmp_path / "c.png")
    for dark in ((103, 0, 31), (5, 48, 97)):  # the ends of the scale: red less, blue more
        assert colours(tmp_path / "c.png", dark, 40) > 0.0005
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    panel = pixels[:, int(0.76 * pixels.shape[1]) : int(0.95 * pixels.shape[1])]
    red = (panel[..., 0] - panel[..., 2] > 100).nonzero()
    blue = (panel[..., 2] - panel[..., 0] > 80).nonzero()
    assert red[0].mean() < blue[0].mean() and red[1].mean() < blue[1].mean()


def test_panel(tmp_path):
    maps = {"attention": heat(10, 10), "gate": torch.zeros(64, 64)}
    labels = {f"Label {i}": {"Grad-CAM": heat(30, 10 * i), "other": torch.zeros(64, 64)} for i in range(4)}
    draw_panel(XRAY, ROIS, maps, labels, tmp_path / "p.png", "x" * 300, (heat(1, 1), heat(9, 9)))
    draw_panel(XRAY, {}, {}, {}, tmp_path / "nothing.png")
    with Image.open(tmp_path / "p.png") as full, Image.open(tmp_path / "nothing.png") as least:
        assert full.width > 3.5 * least.width and full.height > 3 * least.height
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nothing.png", "p.png"]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as numbers ``(H, W, 3)`` of each of their pictures."""
    drawn = []
    save = panels._save

    def kept(figure, *args):
        save(figure, *args)
        pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3].astype(int)  # upwards, as the axes
        corners = [axes.get_window_extent().extents.astype(int) for axes in figure.axes]
        drawn.append((figure, [pixels[y1 + 3 : y2 - 3, x1 + 3 : x2 - 3] for x1, y1, x2, y2 in corners]))

    monkeypatch.setattr(panels, "_save", kept)
    return drawn


def coloured(pixels) -> float:
    """Share of the pixels that are not gray."""
    return (np.ptp(pixels, axis=-1) > 8).mean()


def test_the_x_ray_is_seen_beside_and_under_a_map(tmp_path, figures):
    draw_panel(XRAY, {}, {"attention": heat(32, 32) + 0.5}, {"Mass": {"Grad-CAM": heat(32, 32)}}, tmp_path / "p.png")
    bare, attention, below, grad_cam = figures[0][1][:4]
    assert coloured(bare) == coloured(below) == 0
    for shown in (attention, grad_cam):
        assert 0.02 < coloured(shown) < 0.5
        assert (abs(shown - 100).max(-1) < 3).mean() > 0.4  # the X-ray's own gray


def test_a_row_of_maps_has_one_scale(tmp_path, figures):
    labels = {"Mass": {"Grad-CAM": heat(32, 32)}, "Edema": {"Grad-CAM": heat(32, 32) * 0.1}}
    draw_panel(XRAY, {}, {}, labels, tmp_path / "p.png")
    figure, pictures = figures[0]
    titles = [axes.get_title() for axes in figure.axes]
    mass, edema = (pictures[titles.index(f"{name}: Grad-CAM")] for name in labels)
    assert coloured(mass) > 0.02 and coloured(edema) == 0
    assert len(figure.axes) == 7  # two rows of three pictures, and one scale


def test_every_picture_names_the_model_and_what_it_is_not_for(tmp_path, figures):
    draw_rois(XRAY, ROIS, tmp_path / "a.png", model="m0_mxa")
    draw_gallery([XRAY], [ROIS], ["a"], tmp_path / "b.png", "m0_mxa")
    draw_panel(XRAY, ROIS, {}, {}, tmp_path / "c.png", model="m0_mxa")
    draw_comparison(XRAY, heat(20, 20), heat(40, 40), tmp_path / "d.png", names=("m0", "m0_mxa"))
    footers = [figure.get_supxlabel() for figure, _ in figures]
    assert footers == ["m0_mxa: not for diagnosis"] * 3 + ["m0 and m0_mxa: not for diagnosis"]


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot write the picture"):
        draw_rois(XRAY, ROIS, tmp_path / "none" / "a.png")


def test_names_of_findings_do_not_cover_each_other():
    boxes, line = [(10, 50, 40, 90), (12, 52, 38, 88), (11, 50, 60, 70), (70, 50, 90, 60), (10, 2, 50, 100)], 5.0
    names = ["Infiltration 0.26", "Atelectasis 0.16", "Mass", "Edema", "Effusion 0.31"]
    bottoms = panels._free_lines(boxes, names, line)
    spans = [(x1, x1 + 0.4 * line * len(name), y) for (x1, *_), name, y in zip(boxes, names, bottoms, strict=True)]
    for (start, end, y), (other_start, other_end, other_y) in itertools.combinations(spans, 2):
        assert end <= other_start or other_end <= start or abs(y - other_y) >= line
    assert bottoms[0] == 50 and bottoms[1] < 50 and bottoms[3] == 50  # above the box where that is free
    assert bottoms[4] == 105  # no room above: below
