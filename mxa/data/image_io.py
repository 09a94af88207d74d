"""Finds X-ray images, and reads one as gray."""

from __future__ import annotations

import contextlib
import logging
import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from ..utils.errors import InputError, name_some
from .dicom import DICOM_SUFFIXES, dicom_gray, is_dicom, open_dicom, read_dicom, read_header, unusual
from .gray import check_pixels, load, max_pixels, to_gray, undecodable
from .input_check import check_radiograph

__all__ = ["IMAGE_SUFFIXES", "find_images", "list_images", "read_checked", "read_image"]

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "PPM", "TIFF", "WEBP", "JPEG2000")  # Pillow loads the first five alone
_MOST_COUNTED = 10  # pages of a TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *_TIFF)
# The class of a DICOM object that is no image: those of the standard without "Image Storage" in their name (directory,
# curve, waveform, LUT, presentation state, raw data, segmentation, report, document, plan ...), and Siemens' CSA data.
_NO_PICTURE = re.compile(
    rb"\x02\0\x02\0UI..(?:1\.3\.12\.2\.1107\.5\.9\.1|1\.2\.840\.10008\.(?:1\.3\.10|5\.1\.1\.27|"
    rb"5\.1\.4\.(?:34|38|39|43|44|45)\.[\d.]+|5\.1\.4\.1\.1\.(?:4\.2|6\.2|"
    rb"(?:8|9|10|11|30|66|67|68|78|79|80|81|82|88|90|91|104|129|131|200|201)(?:\.[\d.]+)?|"
    rb"77\.1\.5\.[38]|481\.(?:[2-9]|1\d|2[0-25]))))(?![\d.])",
    re.DOTALL,
)


def read_image(path: str | Path | BinaryIO, size: tuple[int, int] | None = None) -> Image.Image:
    """Reads a PNG, JPEG, BMP, TIFF, WebP or DICOM file as one gray channel.

    Args:
        path: The file, or a binary stream of an image that is not DICOM. Palettes, alpha and RGB are reduced to gray;
            16-bit values are taken as 0 to 65535, packed 12-bit ones as 0 to 4095, and floating point as 0 to 1. EXIF's
            orientation is applied. A TIFF whose 0 is white is inverted.
        size: Height and width that the caller will reduce the image to. A JPEG is then decoded at full, half, quarter
            or eighth size: the smallest that is at least this large.

    Returns:
        A PIL image of mode ``"L"`` (8 bit), or ``"F"`` with values in [0, 255] where the file is deeper or a DICOM.
        ``mxa.data.to_gray`` does the same for an image in memory.

    Raises:
        InputError: no such file, not an image, cut short, several frames, channels other than gray or RGB, values that
            are not finite or out of range, more pixels than ``mxa.data.gray.max_pixels``, or a DICOM that
            ``mxa.data.dicom.read_dicom`` refuses.
    """
    if isinstance(path, (str, Path)) and is_dicom(path):
        return read_dicom(path)
    return to_gray(_decode(path, size, "L"), str(path))


def read_checked(
    path: Path, size: tuple[int, int] | None = None, identifiers: bool = False
) -> tuple[Image.Image, dict[str, Any]]:
    """Reads a file as ``read_image`` does, and describes it.

    Returns:
        The gray image, and a dict: ``warning``, logged too, says why a DICOM file is not a frontal chest X-ray, or why
        the picture cannot be a radiograph (``check_radiograph``); ``identifiers`` of a DICOM file, if asked.

    Raises:
        InputError: as ``read_image``.
    """
    about: dict[str, Any] = {}
    reasons: list[str | None] = []
    if is_dicom(path):
        header, image = read_header(path), open_dicom(path)
        gray = dicom_gray(image)
        reasons.append(unusual(header))
        about = {"identifiers": header.identifiers} if identifiers else {}
    else:
        image = _decode(path, size, "YCbCr")  # its first channel is what "L" would give
        gray = to_gray(image, str(path))
    warning = "; ".join(reason for reason in [*reasons, check_radiograph(image)] if reason)
    if warning:
        _logger.warning("%s: %s", path, warning)
    return gray, ({"warning": warning} if warning else {}) | about


def _decode(path: str | Path | BinaryIO, size: tuple[int, int] | None, mode: str) -> Image.Image:
    """Decodes a file that is not DICOM, as it is stored; a colour JPEG of another ``size`` as ``mode``."""
    max_pixels()
    try:
        with _open(path) as image:
            check_pixels(str(path), *image.size)
            if (frames := _frames(image)) > 1 and image.format != "MPO":
                many = f"{frames} or more" if frames == _MOST_COUNTED else frames
                raise InputError(f"{path} has {many} frames; expected one image: export the frame you want")
            if image.format == "PNG":
                _check_png(path)
            if size is not None and image.format == "JPEG":
                image.draft(mode, (size[1], size[0]))
            load(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no image {path}") from None
    except Exception as error:  # whatever a decoder raises for one image
        raise undecodable(str(path), error) from None
    return image


def _open(path: str | Path | BinaryIO) -> Image.Image:
    """Opens a file that is not DICOM; a TIFF whose 0 is white also where PIL refuses it."""
    at = 0 if isinstance(path, (str, Path)) else path.tell()
    Image.preinit()  # else the first image loads every plugin that Pillow has
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        if isinstance(path, (str, Path)):
            data = bytearray(Path(path).read_bytes())
        else:
            path.seek(at)
            data = bytearray(path.read())
        if not data.startswith(_TIFF):
            raise
    if _white_to_black(data):
        with contextlib.suppress(UnidentifiedImageError):
            image = Image.open(BytesIO(data), formats=["TIFF"])
            image.tag_v2[262] = 0  # as it was: to_gray inverts
            return image
    raise InputError(f"{path} is cut short, or a kind of TIFF that is not read: save it with 8 or 16 bits, or as PNG")


def _white_to_black(data: bytearray) -> bool:
    """Makes a TIFF's 0 black, in its first directory. False if it is that already, or has signed 16 bits.

    Which value of those would be black is not known.
    """
    order, change = "<" if data.startswith(b"II") else ">", None
    with contextlib.suppress(struct.error):
        (at,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        tags = {}
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
            tags[tag] = value
            if (tag, kind, value) == (262, 3, 0):
                change = entry + 8
        if change and (tags.get(258), tags.get(339)) != (16, 2):
            struct.pack_into(f"{order}H", data, change, 1)
            return True
    return False


def _check_png(path: str | Path | BinaryIO) -> None:
    """Compares a PNG with its checksums, which PIL does not look at where the pixels are.

    Raises:
        SyntaxError: one differs.
    """
    at = 0 if isinstance(path, (str, Path)) else path.tell()  # a stream goes on there
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()
    if at:
        path.seek(at)


def _frames(image: Image.Image) -> int:
    """Counts frames; of a TIFF no more than ``_MOST_COUNTED``, since it may chain pages without end."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    count = 1
    with contextlib.suppress(EOFError):
        while count < _MOST_COUNTED:
            image.seek(count)
            count += 1
    return count


def is_hidden(path: Path) -> bool:
    """True for what systems and tools leave beside images: ``.ipynb_checkpoints``, ``__MACOSX``, ``._1.png``."""
    return any(name.startswith(".") or name == "__MACOSX" for name in path.parts)


def is_image(path: Path) -> bool:
    """True for a file with a suffix of an image, or with the content of one (see ``list_images``)."""
    suffix = path.suffix.lower()
    return path.is_file() and ((suffix in IMAGE_SUFFIXES and suffix not in DICOM_SUFFIXES) or _holds_image(path))


def list_images(folder: Path) -> list[Path]:
    """Lists the image files below a folder, sorted; hidden ones are left out.

    Files with a suffix of an image count. So do, by their content, DICOM files under any other name, and PNG, JPEG and
    TIFF files without a suffix. DICOM objects of a class that is no image do not, whatever their name: directories,
    reports, presentation states, documents, waveforms, segmentations and so on. One line is logged with the number and
    names of the other files.
    """
    files = [p for p in sorted(Path(folder).rglob("*")) if not is_hidden(p.relative_to(folder)) and p.is_file()]
    images = [p for p in files if is_image(p)]
    if passed := sorted({*files} - {*images}):
        names = name_some([str(p.relative_to(folder)) for p in passed], 5)
        _logger.info("%s: %d files are not images and are passed over: %s", folder, len(passed), names)
    return images


def _holds_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return path.suffix.lower() in IMAGE_SUFFIXES  # reading it will say why not
    if head[128:132] == b"DICM":
        return not _NO_PICTURE.search(head)
    return path.suffix.lower() in IMAGE_SUFFIXES or (not path.suffix and head.startswith(_MAGIC))


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
                raise InputError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}, or DICOM under another name)")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no such file or folder: {path}")
    if not found:
        raise InputError("no image to predict: name files or folders")
    return found
