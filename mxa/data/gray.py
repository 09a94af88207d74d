"""Reduces one image to gray, whether it comes from a file or is in memory, and limits how large it may be."""

from __future__ import annotations

import math
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..utils.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["as_gray", "check_pixels", "input_gray", "load", "max_pixels", "to_gray", "undecodable", "upright_image"]

_GRAY_8 = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "YCbCr")
_GRAY_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}
_LUMA = np.float32([0.299, 0.587, 0.114])  # as PIL's convert("L")
_DONE = "mxa_gray"  # key in the info of an image that is gray in [0, 255] already
_BITS, _PHOTOMETRIC, _PLANES, _MIN_IS_WHITE, _SEPARATE = 258, 262, 284, 0, 2  # of TIFF
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


def to_gray(image: Image.Image | np.ndarray | torch.Tensor, name: str = "the image") -> Image.Image:
    """Reduces one image in memory to gray, by the rules that ``read_image`` has for files.

    Args:
        image: A PIL image of mode 1, L, LA, P, PA, RGB, RGBA, YCbCr, I;16, I or F. Or an array or tensor ``(H, W)``,
            with 1, 3 or 4 channels last or first. bool and uint8 are taken as they are, other integers as 0 to 65535,
            floating point as 0 to 1. Alpha is ignored, EXIF's orientation is applied, and an opened TIFF whose 0 is
            white is inverted.
        name: What an error calls the image.

    Returns:
        A PIL image of mode ``"L"``, or ``"F"`` with values in [0, 255] where the image is deeper than 8 bits. What
        ``to_gray`` or ``read_image`` returned is returned as it is.

    Raises:
        InputError: other channels or another shape, values that are not finite or out of range, more pixels than
            ``max_pixels``, or a file behind a PIL image that does not decode.
    """
    if isinstance(image, Image.Image) and _DONE in image.info and image.mode in ("L", "F"):
        return image
    try:
        upright = upright_image(image, name)
        if isinstance(upright, np.ndarray):
            return as_gray(upright @ _LUMA)
        return upright if _DONE in upright.info else as_gray(upright.convert("L"))
    except InputError:
        raise
    except Exception as error:  # whatever a decoder raises for one image
        raise undecodable(name, error) from None


def input_gray(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    """Reduces an image to gray as ``to_gray`` does, and also takes a PIL image of mode F in [0, 255]."""
    if isinstance(image, Image.Image) and image.mode == "F" and _DONE not in image.info:
        low, high = image.getextrema()
        if low >= 0 and 1 < high <= 255:
            return as_gray(image.copy())
    return to_gray(image)


def as_gray(values: np.ndarray | Image.Image) -> Image.Image:
    """Makes ``to_gray``'s result of float32 values ``(H, W)`` in [0, 255], or of a PIL image that has such values."""
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.info[_DONE] = True
    return image


def upright_image(image: Image.Image | np.ndarray | torch.Tensor, name: str) -> Image.Image | np.ndarray:
    """Loads and checks one image and turns it upright, with its colours.

    Returns:
        A PIL image of 8 bits, ``to_gray``'s result for a deeper gray one, or float32 values ``(H, W, 3)`` in [0, 255]
        for deeper colours.
    """
    if not isinstance(image, Image.Image):
        return _from_array(image, name)
    if _DONE in image.info and image.mode in ("L", "F"):
        return image
    check_pixels(name, *image.size)
    load(image)
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE  # PIL inverts 8 bits itself
    bits = max(np.ravel(tags.get(_BITS, 16)))
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _GRAY_8:
        return image
    if image.mode not in _GRAY_DEEP:
        raise InputError(f"{name} has channels {image.mode}; expected gray or RGB")
    top = 2**bits - 1 if 8 < bits < 16 else _GRAY_DEEP[image.mode]
    return as_gray(_scaled(np.array(image, np.float32), top, name, inverted))


def load(image: Image.Image) -> None:
    """Decodes a PIL image, with two kinds of TIFF that PIL alone gets wrong.

    libtiff gives numbers in the machine's byte order, and PIL swaps some of them again. Colours of 16 bits in separate
    planes are taken for 8 bits.
    """
    tags, tiles = getattr(image, "tag_v2", None), getattr(image, "tile", None)
    if tags is not None and tiles:
        planes = tags.get(_PLANES) == _SEPARATE and max(np.ravel(tags.get(_BITS, 1))) == 16
        for i, tile in enumerate(tiles):
            kind, *rest = tile.args
            if tile.codec_name == "libtiff":
                kind = _NATIVE.get(kind, kind)
            elif planes and len(kind) == 1:
                kind += ";16B" if tags.prefix == b"MM" else ";16L"
            tiles[i] = tile._replace(args=(kind, *rest))
    image.load()


def _from_array(image: np.ndarray | torch.Tensor, name: str) -> Image.Image | np.ndarray:
    first = hasattr(image, "detach")  # a tensor, where channels come first
    if first:
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "buif":
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"{name} is {kind}; expected a PIL image, an array or a tensor of numbers")
    places = [axis for axis in ((0, -1) if first else (-1, 0)) if image.ndim == 3 and image.shape[axis] in (1, 3, 4)]
    if (image.ndim != 2 and not places) or image.size == 0:
        raise InputError(f"{name} has shape {image.shape}; expected one image, (H, W) or with 1, 3 or 4 channels")
    if places:
        image = np.moveaxis(image, places[0], -1)
        image = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
    check_pixels(name, image.shape[1], image.shape[0])
    if image.dtype.kind == "b":
        image = image.astype(np.uint8) * 255
    if image.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(image))
    values = _scaled(image.astype(np.float32), 1 if image.dtype.kind == "f" else 65535, name)
    return as_gray(values) if values.ndim == 2 else values


def _scaled(values: np.ndarray, top: int, name: str, inverted: bool = False) -> np.ndarray:
    """Checks float32 values in [0, top] and maps them to [0, 255], in place."""
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name} has pixel values that are not finite (NaN or infinite)")
    if low < 0 or high > top:
        whole = "values outside 0 to 65535: scale them to 16 bit"
        raise InputError(f"{name} has {'floating-point values outside 0 to 1: scale them' if top == 1 else whole}")
    if inverted:
        np.subtract(top, values, out=values)
        high = top - low
    if top == 65535 and 0 < high < 4096:
        warnings.warn(f"{name} is 16 bit but uses 12 bits or fewer: it will look dark; scale it to 65535", stacklevel=4)
    values /= top
    values *= 255
    return values


def max_pixels() -> float:
    """The most pixels that an image may have, a file of any kind or in memory.

    It is the environment variable ``MXA_MAX_PIXELS``, or else Pillow's ``PIL.Image.MAX_IMAGE_PIXELS``, 89,478,485 by
    default and infinite if None. Pillow is told the variable's number.

    Raises:
        InputError: the variable is not a whole number above 0.
    """
    if text := os.environ.get("MXA_MAX_PIXELS"):
        if not text.isdecimal() or int(text) == 0:
            raise InputError("MXA_MAX_PIXELS must be a whole number above 0")
        Image.MAX_IMAGE_PIXELS = int(text)
    return Image.MAX_IMAGE_PIXELS or math.inf


def check_pixels(name: str, width: int, height: int) -> None:
    """Refuses an image of more than ``max_pixels``, before it is decoded.

    Raises:
        InputError: it has more.
    """
    if width * height > max_pixels():
        raise InputError(
            f"{name} has {width} x {height} pixels; at most {max_pixels():,} are read: make it smaller, or set "
            "MXA_MAX_PIXELS"
        )


def undecodable(name: str, error: Exception) -> InputError:
    """Makes the error for an image that its decoder fails on."""
    told = isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError) and str(error)
    limit = "; MXA_MAX_PIXELS sets the limit" if isinstance(error, Image.DecompressionBombError) else ""
    why = told or f"its decoder failed ({type(error).__name__})"
    return InputError(f"{name} does not decode as an image: {why}{limit}")
