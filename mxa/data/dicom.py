"""Reads a DICOM radiograph as gray. No tag about the patient is loaded, and no error quotes what pydicom says."""

from __future__ import annotations

import contextlib
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from ..utils.errors import InputError, require
from .dicom_values import shown, word
from .gray import as_gray, max_pixels
from .views import not_frontal

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.pixels.decoders.base import Decoder

__all__ = [
    "DICOM_SUFFIXES",
    "DicomHeader",
    "dicom_gray",
    "is_dicom",
    "load_tags",
    "open_dicom",
    "read_dicom",
    "read_header",
    "sealed",
    "unusual",
]

_T = TypeVar("_T")
DICOM_SUFFIXES = (".dcm", ".dicom")
_INFLATED_LIMIT = 256 << 20  # bytes that a deflated file may grow to
_RUN_LENGTHS = re.compile(r"RLE segment .*?(\d+) vs\. (\d+) bytes")  # pydicom's warning of a longer one
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_DAMAGED = "does not read as DICOM, it is damaged or cut short"
_FILL = 128  # zero bytes that writers append to pixels to fill a block

_IDENTIFIERS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_WORDS = ("Modality", "BodyPartExamined", "ViewPosition", "PresentationIntentType")
_REQUIRED = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel"),
    "PhotometricInterpretation",
)
_LAYOUT = ("SOPClassUID", "Modality", "NumberOfFrames", "PlanarConfiguration", "PixelData")
_GRAYS = (
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
_COLOURS = tuple(
    f"{before}{colour}PaletteColorLookupTable{after}"
    for colour in ("Red", "Green", "Blue")
    for before, after in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)

_RADIOGRAPHS = ("", "CR", "DX", "DR", "RG", "OT", "SC")
_CHEST = re.compile("CHEST|THORA|TORA[XC]|LUNG|RIB")


@dataclass(frozen=True)
class DicomHeader:
    """What a DICOM file says about its image, without anything about the patient.

    Attributes:
        modality, body_part, view, intent: Modality, BodyPartExamined, ViewPosition and PresentationIntentType in upper
            case, ``""`` where missing.
        identifiers: SOPInstanceUID, StudyInstanceUID and SeriesInstanceUID, where present.
    """

    modality: str = ""
    body_part: str = ""
    view: str = ""
    intent: str = ""
    identifiers: dict[str, str] = field(default_factory=dict)


def is_dicom(path: str | Path) -> bool:
    """True if the name ends in .dcm or .dicom, or the file exists and has ``DICM`` at byte 128."""
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return True
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"
    return False


def read_header(path: str | Path) -> DicomHeader:
    """Reads the modality, body part, view, intent and identifiers of a DICOM file, without its pixels.

    Raises:
        InputError: no such file, not DICOM, damaged, or pydicom is not installed.
    """

    def read() -> DicomHeader:
        ds = load_tags(path, ["SOPClassUID", *_WORDS, *_IDENTIFIERS])
        identifiers = {keyword: str(ds.get(keyword)) for keyword in _IDENTIFIERS if ds.get(keyword)}
        return DicomHeader(*(word(ds, keyword) for keyword in _WORDS), identifiers)

    return sealed(path, read)


def unusual(header: DicomHeader) -> str | None:
    """Says in one sentence why a file is not a frontal chest radiograph; None where nothing speaks against it.

    The modalities CR, DX, DR and RG pass, and so do OT, SC and a missing one, as exports have them. A body part passes
    if it is missing or contains chest, thora, torax, torac, lung or rib. A view passes unless it is lateral, oblique or
    decubitus.
    """
    if header.modality not in _RADIOGRAPHS:
        seen = f"modality {header.modality} is not a radiograph"
    elif header.body_part and not _CHEST.search(header.body_part):
        seen = f"body part {header.body_part} is not the chest"
    elif kind := not_frontal(header.view):
        seen = f"view {header.view} is {kind}"
    elif header.intent == "FOR PROCESSING":
        seen = "the pixels are FOR PROCESSING, raw detector values"
    else:
        return None
    return f"{seen}; the models expect frontal chest X-rays"


def read_dicom(path: str | Path) -> Image.Image:
    """Reads a single-frame DICOM file as one gray channel, as a viewer shows it.

    Stored values go through the modality LUT, or the rescale without one. Then comes the first of these that the file
    has: the first VOI LUT; the first window, if it reads and its width is positive; the values' minimum to maximum. A
    window's function is LINEAR_EXACT, SIGMOID or, for any other name, LINEAR. A VOI LUT has the bits that its highest
    entry needs, whatever it declares. MONOCHROME1 is inverted at the end. Padding pixels are left out of minimum and
    maximum, and come out black. Colour is reduced as PIL's ``convert("L")`` does.

    A warning says that the image is constant, that a window does not read, that a VOI LUT's range cannot be known, or
    that pixels use more bits than the tags say.

    Returns:
        A PIL image of mode ``"F"``, Rows x Columns, with values in [0, 255]; a constant image without a window is 0.

    Raises:
        InputError: no such file, not DICOM, cut short, no pixels, several frames, a required tag missing, a compression
            without a decoder, a rescale that does not read, more pixels than ``mxa.data.gray.max_pixels``, more or
            fewer than the tags say, values that are not finite, or pydicom is not installed.
    """
    return dicom_gray(open_dicom(path))


def open_dicom(path: str | Path) -> Image.Image:
    """Reads what ``read_dicom`` reads, but leaves colour as it is: mode ``"RGB"``, else ``"F"``."""
    notes: list[str] = []
    image = sealed(path, lambda: _read_pixels(path, notes))
    for note in notes:  # only now: warnings are off while pydicom works
        warnings.warn(f"{path}: {note}", stacklevel=3)
    return image


def dicom_gray(image: Image.Image) -> Image.Image:
    """Reduces what ``open_dicom`` returned to gray, mode ``"F"``."""
    return image if image.mode == "F" else as_gray(image.convert("L").convert("F"))


def sealed(path: str | Path, read: Callable[[], _T], wrong: str = _DAMAGED) -> _T:
    """Calls ``read`` and holds back warnings, log lines and exceptions, which can quote tag values.

    Held back is what pydicom and highdicom say. An ``InputError`` passes.

    Raises:
        InputError: no such file, or ``read`` failed; the message says that the file ``wrong``.
    """
    require("pydicom", "dicom")
    require("pydicom.pixels", "dicom")  # now, so that its loggers exist and are muted too
    thread = threading.get_ident()

    def mute(record: logging.LogRecord) -> bool:
        return record.thread not in (thread, None)

    every = [logger for logger in list(logging.root.manager.loggerDict.values()) if isinstance(logger, logging.Logger)]
    loggers = [logger for logger in every if logger.name.split(".")[0] in ("pydicom", "highdicom")]
    for logger in loggers:
        logger.addFilter(mute)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except InputError:
        raise
    except FileNotFoundError:
        failure = f"no image {path}"
    except Exception as error:
        failure = f"{path} {wrong} ({type(error).__name__}): export it again"
    finally:
        for logger in loggers:
            logger.removeFilter(mute)
    raise InputError(failure)  # outside the except clause, so that no __context__ keeps the original text


def load_tags(path: str | Path, keywords: Sequence[str]) -> Dataset:
    """Loads tags of a file, and sets a missing transfer syntax. A deflated file is inflated here, up to a limit.

    Call it, and read the values, inside ``sealed``.
    """
    from pydicom import dcmread, uid
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.tag import Tag

    tags = [Tag(keyword) for keyword in keywords]
    with open(path, "rb") as file:
        bare = read_preamble(file, force=True) is None
        if bare and Path(path).suffix.lower() not in DICOM_SUFFIXES:
            raise InputError(f"{path} is not a DICOM file")
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            data = BytesIO(inflater.decompress(file.read(), _INFLATED_LIMIT))
            if not inflater.eof:
                raise InputError(f"{path} is cut short, or inflates to more than {_INFLATED_LIMIT >> 20} MB: not read")
            ds = read_dataset(data, False, True, specific_tags=tags)
            ds.file_meta = FileMetaDataset()
        else:
            file.seek(0)
            ds = dcmread(file, force=True, specific_tags=tags, stop_before_pixels="PixelData" not in keywords)
    if bare and "SOPClassUID" not in ds:
        raise InputError(f"{path} is not a DICOM file")
    if not ds.file_meta.get("TransferSyntaxUID"):
        little = ds.original_encoding[1]
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    return ds


def _read_pixels(path: str | Path, notes: list[str]) -> Image.Image:
    """Returns gray (mode F, in [0, 255]) or RGB, and adds what is worth a warning to ``notes``."""
    from pydicom.pixels import apply_color_lut, convert_color_space
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import RLELossless

    ds = load_tags(path, (*_LAYOUT, *_REQUIRED, *_GRAYS, *_COLOURS))
    decoder = _checked_decoder(path, ds)
    run_length = ds.file_meta.TransferSyntaxUID == RLELossless
    plugin = "pydicom" if run_length else ""  # pylibjpeg-rle panics on damage, and that is not an Exception
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        options = dict(decoding_plugin=plugin, correct_unused_bits=False, **as_pixel_options(ds))
        stored, properties = decoder.as_array(ds, index=0, **options)
    for warning in told:
        sizes = _RUN_LENGTHS.search(str(warning.message))
        if sizes and int(sizes[1]) - int(sizes[2]) >= min(ds.Rows, ds.Columns):
            raise InputError(
                f"{path} does not read: its data has more pixels than its tags say ({ds.Rows} x {ds.Columns}): "
                "export it again"
            )
    stored = _without_unused_bits(stored, int(ds.BitsStored), notes)
    kind = str(properties["photometric_interpretation"])
    if kind in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
        gray = shown(path, ds, stored, notes)
        if gray.min() == gray.max():
            notes.append("every pixel has the same gray")
        return as_gray(gray)
    bits = ds.BitsStored
    if kind == "PALETTE COLOR":
        stored, bits = apply_color_lut(stored, ds), ds.RedPaletteColorLookupTableDescriptor[2]
    elif kind != "RGB":
        stored = convert_color_space(stored, kind, "RGB")
    if not 1 <= bits <= 32:
        raise InputError(f"{path} says {bits} bits for its colours: export it again")
    if bits != 8 or stored.dtype != np.uint8:
        rows = [np.rint((row / (2**bits - 1)).clip(0, 1) * 255).astype(np.uint8) for row in stored]
        stored = np.stack(rows)  # row by row: a copy in floating point is eight times as large
    return Image.fromarray(stored)


def _without_unused_bits(stored: np.ndarray, bits: int, notes: list[str]) -> np.ndarray:
    """Clears the bits above the stored ones, or makes them the sign, and notes where they held anything else."""
    unused = 8 * stored.dtype.itemsize - bits
    if unused <= 0:
        return stored
    cleared = np.left_shift(stored, unused)
    np.right_shift(cleared, unused, out=cleared)
    if any(((old != new) & (old != new & (1 << bits) - 1)).any() for old, new in zip(stored, cleared, strict=True)):
        notes.append(f"its pixels use more than the {bits} bits that its tags say: those above are left out")
    return cleared


def _checked_decoder(path: str | Path, ds: Dataset) -> Decoder:
    """Returns pydicom's decoder for the file, after every check that does not need decoding."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import RLELossless

    if "PixelData" not in ds:
        modality = word(ds, "Modality") or "unknown"
        raise InputError(f"{path} has no pixel data (modality {modality}): not an image, or cut short: export it again")
    if missing := [keyword for keyword in _REQUIRED if ds.get(keyword) in (None, "")]:
        raise InputError(f"{path} lacks {', '.join(missing)}: export it again")
    if (frames := int(ds.get("NumberOfFrames") or 1)) > 1:
        raise InputError(f"{path} has {frames} frames; expected one image: export the frame you want")
    rows, columns, samples = int(ds.Rows), int(ds.Columns), int(ds.SamplesPerPixel)
    if not 0 < rows * columns <= max_pixels():
        raise InputError(
            f"{path} says {rows} x {columns} pixels; expected 1 to {max_pixels()}: export it smaller, or set "
            "MXA_MAX_PIXELS"
        )
    syntax, decoder = ds.file_meta.TransferSyntaxUID, None
    with contextlib.suppress(NotImplementedError):
        decoder = get_decoder(syntax)
    if decoder is None or not decoder.is_available:
        name = syntax.name if syntax.type else "an unknown transfer syntax"
        raise InputError(f'{path} is stored as {name}, with no decoder: pip install "mxa[dicom]" or convert it to PNG')
    if syntax.is_encapsulated != ds["PixelData"].is_undefined_length:
        raise InputError(f"{path} does not store its pixels as its transfer syntax says: export it again")
    if not syntax.is_encapsulated:
        expected = get_expected_length(ds)
        if len(ds.PixelData) < expected:
            raise InputError(f"{path} is cut short: {len(ds.PixelData)} of {expected} bytes of pixels: export it again")
        excess = ds.PixelData[expected + expected % 2 :]
        if len(excess) > _FILL or any(excess):  # a row or column more than the tags say would be sheared or lost
            raise InputError(
                f"{path} does not read: it has {len(excess)} bytes of pixels more than its tags say "
                f"({rows} x {columns}): export it again"
            )
    elif syntax != RLELossless:
        frame = get_frame(ds.PixelData, 0, number_of_frames=1)
        if frame.startswith(b"\xff\xd8") and not _has_end(frame):  # decoders fill the rest with gray
            raise InputError(f"{path} is cut short: its JPEG data has no end: export it again")
        if (size := _coded_size(frame)) != (rows, columns, samples):
            said = "no JPEG header" if size is None else "a header of {} x {}, {} channels".format(*size)
            raise InputError(
                f"{path} says {rows} x {columns}, {samples} channels; its data has {said}: export it again"
            )
    return decoder


def _coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Reads rows, columns and samples from the header of a JPEG, JPEG-LS or JPEG 2000 stream; None without one."""
    frame = _codestream(frame)
    if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) >= 42:  # SOC, SIZ
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, 8)
        return y1 - y0, x1 - x0, struct.unpack_from(">H", frame, 40)[0]
    for marker, at in _segments(frame):
        if marker in (0xDE, 0xF7) or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # DHP, SOFn
            return (*struct.unpack_from(">2H", frame, at + 5), frame[at + 9])
    return None


def _codestream(frame: bytes) -> bytes:
    """Returns what a JP2 file has in its boxes; any other frame as it is."""
    at = 0
    while frame.startswith(_JP2) and at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return frame[at + (16 if length == 1 else 8) :]
        if length < 8:
            break
        at += length
    return frame


def _has_end(frame: bytes) -> bool:
    """True if a JPEG's last scan ends. What follows the end does not count, as padding, nor does a thumbnail before."""
    scan = next((at for marker, at in _segments(frame) if marker == 0xDA), len(frame))
    return frame.rfind(b"\xff\xd9", scan) > frame.rfind(b"\xff\xda", scan)


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Goes through the marker segments of a JPEG or JPEG-LS stream: each marker and its offset, the first scan last."""
    at = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", frame, at)
        if marker != 0xFF:
            yield marker, at
        if marker == 0xDA:
            return
        at += 1 if marker == 0xFF else 2 + length  # a run of 0xFF is fill
