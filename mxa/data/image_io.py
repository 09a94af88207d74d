"""Reading one X-ray image as gray."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError

__all__ = ["IMAGE_SUFFIXES", "read_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_GRAY_8 = ("1", "L", "P", "LA", "PA", "RGB", "RGBA")
_GRAY_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}


def read_image(path: str | Path) -> Image.Image:
    """Reads a PNG, JPEG, BMP, TIFF or WebP file as one gray channel.

    Args:
        path: The file. Palettes, alpha and RGB-stored gray are reduced to gray; 16-bit values are taken as 0 to 65535
            and floating point as 0 to 1.

    Returns:
        A PIL image of mode ``"L"`` (8 bit), or ``"F"`` with values in [0, 255] where the file is deeper.

    Raises:
        InputError: no such file, not an image, cut short, a channel layout that is no gray, or values that are not
            finite.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        raise InputError(f"no image {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        hint = "; DICOM is not read yet, convert it to PNG" if Path(path).suffix.lower() in (".dcm", ".dicom") else ""
        raise InputError(f"{path} does not decode as an image: {error}{hint}") from None
    if image.mode in _GRAY_8:
        return image.convert("L")
    if image.mode not in _GRAY_DEEP:
        raise InputError(f"{path} has channels {image.mode}; expected gray or RGB")
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path} has pixel values that are not finite (NaN or infinite)")
    if image.mode == "F" and (values.min() < 0 or values.max() > 1):
        raise InputError(f"{path} has floating-point values outside 0 to 1: scale them")
    if image.mode != "F" and 0 < values.max() < 4096:
        warnings.warn(f"{path} is 16 bit but uses 12 bits or fewer: it will look dark; scale it to 65535", stacklevel=2)
    return Image.fromarray((values / _GRAY_DEEP[image.mode]).clip(0, 1) * 255)
