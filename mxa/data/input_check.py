"""Says why a picture cannot be a radiograph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .gray import to_gray, upright_image

if TYPE_CHECKING:
    import torch

__all__ = ["check_radiograph"]

# Side of the reduced picture, and the least correlation of neighbours in it. Among 15,365 X-rays the lowest were
# 0.90, 0.82, 0.67, 0.52 and 0.21.
_LEAST_CORRELATION = {128: 0.8, 64: 0.7, 32: 0.55, 16: 0.4, 8: 0.05}
_LEAST_CONTRAST = 4.0  # standard deviation of gray levels; the X-rays have 10.5 and more
_MOST_SATURATED = 0.8  # share of the picture without margins; the X-rays have 0.57 and less
_LEAST_INSIDE = 0.1  # share of the picture within its black or white margins
_CHROMA, _MOST_COLOURED = 20, 0.1  # largest minus smallest of R, G and B; share of the picture. The X-rays have none
# One tint over the whole picture, as of a scanned film: the most of it, chroma per brightness, and the largest share of
# the picture that no tint explains. Tinted X-rays have 0.00, colour photographs 0.05 and more.
_MOST_TINT, _MOST_UNEXPLAINED = 0.5, 0.02


def check_radiograph(image: Image.Image | np.ndarray | torch.Tensor) -> str | None:
    """Says in one sentence why a picture cannot be a radiograph; None where nothing speaks against it.

    It sees what is constant or nearly so, black or white in most places, coloured, or noise, also noise that was
    enlarged or compressed. One pale tint over the whole picture, as of a scanned film, is not taken for colour. It does
    not tell a gray photograph of something else from a radiograph, nor the body part.
    ``examples/input_check_alarms.py`` counts false alarms: none among 15,365 X-rays (10,694 of NIH's ChestX-ray14 at
    128 to 512 pixels, 4,671 children's of Kermany et al. at 224).

    Args:
        image: What ``mxa.data.to_gray`` takes. Give it with its colours: in gray they are not seen.

    Raises:
        InputError: as ``mxa.data.to_gray``.
    """
    if _coloured(upright_image(image, "the image")) > _MOST_COLOURED:
        return "the picture is coloured, and a radiograph is gray"
    gray = to_gray(image)
    low, high = gray.getextrema()
    if low == high:
        return "every pixel has the same gray"
    values = _reduced(gray, 128) * (16 if gray.mode == "F" and high < 16 else 1)  # 12 bits in 16 are dark, not empty
    for what, empty in (("black", values <= 3), ("white", values >= 252)):
        if _is_empty(empty):
            return f"the picture is {what} in {empty.mean():.0%} of its area"
    for side, least in _LEAST_CORRELATION.items():
        if min(gray.size) >= side and _correlation(_reduced(gray, side)) < least:
            return "the picture is noise: its neighbouring pixels have too little in common for a radiograph"
    return "the picture has almost no contrast" if values.std() < _LEAST_CONTRAST else None


def _is_empty(empty: np.ndarray) -> bool:
    """True where most cells are empty, also within the margins, or where the margins leave very little."""
    rows, columns = (np.flatnonzero(~empty.all(axis)) for axis in (1, 0))
    if not len(rows):
        return True
    inside = empty[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return inside.mean() > _MOST_SATURATED or inside.size < _LEAST_INSIDE * empty.size


def _coloured(image: Image.Image | np.ndarray) -> float:
    """Share of the picture that is not gray."""
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "RGBA", "P", "PA", "YCbCr"):
            return 0.0
        image = image.convert("RGB")
        image = np.asarray(image.resize([min(side, 64) for side in image.size], Image.Resampling.BOX), float)
    return 0.0 if _tinted(image) else float((np.ptp(image, axis=2) > _CHROMA).mean())


def _tinted(image: np.ndarray) -> bool:
    """True where R, G and B follow from the gray, each by one smooth curve, and the colour is pale."""
    colours = image[:: image.shape[0] // 64 or 1, :: image.shape[1] // 64 or 1].reshape(-1, 3).astype(float)
    if np.ptp(colours, axis=1).mean() > _MOST_TINT * colours.max(1).mean():
        return False
    powers = np.vander(colours.mean(1), 3)
    rest = colours - powers @ np.linalg.lstsq(powers, colours)[0]
    return bool((np.ptp(rest, axis=1) > _CHROMA).mean() <= _MOST_UNEXPLAINED)


def _reduced(gray: Image.Image, side: int) -> np.ndarray:
    """Averages a gray picture over the cells of a grid of ``side`` x ``side``, or its own pixels where it has fewer."""
    size = [min(side, length) for length in gray.size]
    return np.asarray(gray.resize(size, Image.Resampling.BOX), np.float64)


def _correlation(values: np.ndarray) -> float:
    """Correlation of neighbours, the mean of rows and columns; 1 for a constant picture."""
    values = values - values.mean()
    variance = (values**2).mean()
    if variance == 0:
        return 1.0
    return float(((values[:, 1:] * values[:, :-1]).mean() + (values[1:] * values[:-1]).mean()) / (2 * variance))
