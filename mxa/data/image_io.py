"""Finds X-ray images, and reads one as gray."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..utils.errors import InputError
from .dicom import is_dicom, read_dicom, read_header, unusual

__all__ = ["IMAGE_SUFFIXES", "describe_dicom", "find_images", "list_images", "read_image"]

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")

_GRAY_8 = ("1", "L", "P", "LA", "PA", "RGB", "RGBA")
_GRAY_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}


def read_image(path: str | Path | BinaryIO, size: tuple[int, int] | None = None) -> Image.Image:
    """Reads a PNG, JPEG, BMP, TIFF, WebP or DICOM file as one gray channel.

    Args:
        path: The file, or a binary stream of an image that is not DICOM. Palettes, alpha and RGB are reduced to gray;
            16-bit values are taken as 0 to 65535 and floating point as 0 to 1. EXIF's orientation is applied.
        size: Height and width that the caller will reduce the image to. A JPEG is then decoded at full, half, quarter
            or eighth size: the smallest that is at least this large.

    Returns:
        A PIL image of mode ``"L"`` (8 bit), or ``"F"`` with values in [0, 255] where the file is deeper or a DICOM.

    Raises:
        InputError: no such file, not an image, cut short, several frames, channels other than gray or RGB, values that
            are not finite or out of range, or a DICOM that ``mxa.data.dicom.read_dicom`` refuses.
    """
    if isinstance(path, (str, Path)) and is_dicom(path):
        return read_dicom(path)
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                raise InputError(f"{path} has {frames} frames; expected one image: export the frame you want")
            if size is not None and image.format == "JPEG":
                image.draft("L", (size[1], size[0]))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no image {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} does not decode as an image: {error}") from None
    if image.mode in _GRAY_8:
        return image.convert("L")
    if image.mode not in _GRAY_DEEP:
        raise InputError(f"{path} has channels {image.mode}; expected gray or RGB")
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path} has pixel values that are not finite (NaN or infinite)")
    if image.mode == "F" and (values.min() < 0 or values.max() > 1):
        raise InputError(f"{path} has floating-point values outside 0 to 1: scale them")
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise InputError(f"{path} has values outside 0 to 65535: scale them to 16 bit")
    if image.mode != "F" and 0 < values.max() < 4096:
        warnings.warn(f"{path} is 16 bit but uses 12 bits or fewer: it will look dark; scale it to 65535", stacklevel=2)
    return Image.fromarray((values / _GRAY_DEEP[image.mode]).clip(0, 1) * 255)


def is_hidden(path: Path) -> bool:
    """True for what systems and tools leave beside images: ``.ipynb_checkpoints``, ``__MACOSX``, ``._1.png``."""
    return any(name.startswith(".") or name == "__MACOSX" for name in path.parts)


def is_image(path: Path) -> bool:
    """True for a file with a suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def list_images(folder: Path) -> list[Path]:
    """Lists the image files below a folder, sorted; hidden ones are left out."""
    return sorted(p for p in Path(folder).rglob("*") if is_image(p) and not is_hidden(p.relative_to(folder)))


def describe_dicom(path: Path, identifiers: bool = False) -> dict[str, Any]:
    """Describes a DICOM file: ``warning``, logged too, if it is not a frontal chest X-ray; ``identifiers`` if asked."""
    header = read_header(path)
    reason = unusual(header)
    if reason:
        _logger.warning("%s: %s", path, reason)
    return ({"warning": reason} if reason else {}) | ({"identifiers": header.identifiers} if identifiers else {})


def find_images(files: tuple[Path, ...]) -> list[Path]:
    """Lists the files given, and the images below the folders given, each folder sorted.

    Raises:
        InputError: something does not exist, or there is no image.
    """
    found = []
    for path in map(Path, files):
        if path.is_dir():
            inside = list_images(path)
            if not inside:
                raise InputError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no such file or folder: {path}")
    if not found:
        raise InputError("no image to predict: name files or folders")
    return found
