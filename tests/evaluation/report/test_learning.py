"""Pictures of training runs."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from mxa.evaluation.report.learning import learning_figure
from mxa.evaluation.report.plots import COLOURS


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_every_row_is_seen_however_few_epochs(epochs):
    rng = np.random.default_rng(0)
    rows = {name: rng.uniform(0.5 + i / 10, 0.52 + i / 10, (2, epochs)) for i, name in enumerate("abc")}
    figure = learning_figure({"macro AUC": rows}, "seeds")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255  # upwards, as the axes
    x1, y1, x2, y2 = (int(edge) for edge in figure.axes[0].get_window_extent().extents)
    inside = pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
    for colour in COLOURS[:3]:
        assert (np.abs(inside - to_rgb(colour)).max(-1) < 0.02).any()
    low, high = figure.axes[0].get_xlim()
    assert low < 1 and high > epochs and all(tick == round(tick) for tick in figure.axes[0].get_xticks())
