"""Opens the files that tables come in: CSV with any usual delimiter, Parquet and Excel."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np
import pandas as pd

from ..utils.errors import InputError, name_some, require
from ..utils.json_files import parse_json

__all__ = ["METADATA", "open_parquet", "read_header", "read_lines", "read_metadata", "read_text_columns"]

METADATA = b"mxa"  # key of what a Parquet file of scores says of itself

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NOT_READ = (".xls", ".xlsb", ".ods", ".json", ".jsonl", ".feather", ".arrow", ".sav", ".dta", ".rds", ".pkl", ".zip")
_LONGEST = 1 << 20  # characters of a line
_LARGEST_SHEET = 1 << 30  # bytes of an Excel file, unpacked
_logger = logging.getLogger(__name__)


def read_header(path: Path) -> list[str]:
    """Returns the names of a table's columns; a column without a name is ``Unnamed: NUMBER``.

    Raises:
        InputError: it is not a table, or two columns share a name.
    """
    if path.suffix.lower() in _NOT_READ:
        raise InputError(f"{path} is not read as a table: save it as CSV or Parquet")
    if _is_parquet(path):
        with open_parquet(path) as file:
            names = list(map(_shown, file.schema_arrow.names))
    elif _is_excel(path):
        names = list(_read_excel(path)[0].columns)
    else:
        with _open_csv(path) as table:
            names = table.names
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} has more than one column {', '.join(map(repr, twice))}: rename or remove one")
    return names


def read_text_columns(path: Path, wanted: Collection[str] | None, numbers: Collection[str] = ()) -> pd.DataFrame:
    """Reads the columns of a table as text, a blank as ``""``.

    Numbers and truth values of a Parquet file keep their type. What pandas calls the index of a Parquet file is a
    column like the others.

    Args:
        path: The file, whose header ``read_header`` has read.
        wanted: Names of the columns; None is every column.
        numbers: Columns that are read as float32, if every cell of theirs is a number or blank.

    Raises:
        InputError: it is damaged, or a row of a CSV file has more or fewer cells than the header. The message gives the
            lines of the file; the header is on line 1.
    """
    if _is_parquet(path):
        return _read_parquet(path, wanted)
    if _is_excel(path):
        table, sheets = _read_excel(path)
        if sheets > 1:
            _logger.info("%s: only the first of %d sheets is read", path, sheets)
        return table if wanted is None else table[[name for name in table if name in wanted]]
    return _read_csv(path, wanted, numbers)


def read_lines(path: Path) -> list[str]:
    """Reads a text file as ``read_header`` reads a CSV file; blank lines are left out.

    Raises:
        InputError: it is not text.
    """
    with _csv_errors(path), _text(path, _encoding(path)) as file:
        return [line.strip() for line in _Lines(path, file) if line.strip()]


# CSV


class _Csv(NamedTuple):
    """A CSV file that is open behind its header."""

    file: TextIO
    lines: _Lines
    rows: Any  # a csv.reader over the lines
    names: list[str]  # without those at the end that are blank
    width: int  # with them
    delimiter: str


def _read_csv(path: Path, wanted: Collection[str] | None, numbers: Collection[str]) -> pd.DataFrame:
    with _open_csv(path) as table:
        empty = _check_rows(path, table)
    if table.delimiter != ",":
        _logger.info("%s: cells are separated by %s", path, _DELIMITERS[table.delimiter])

    def read(**types: Any) -> pd.DataFrame:
        with _open_csv(path) as table:
            places = [i for i, name in enumerate(table.names) if wanted is None or name in wanted]
            return pd.read_csv(
                table.file,
                sep=table.delimiter,
                header=None,
                names=[table.names[i] for i in places],
                index_col=False,
                usecols=places,
                keep_default_na=False,
                skipinitialspace=True,
                **types,
            )

    found = None
    if numbers:  # less than half the time and memory of text
        types = {**dict.fromkeys(wanted, object), **dict.fromkeys(numbers, "float32")}
        with suppress(ValueError):  # words
            found = read(dtype=types, na_values=dict.fromkeys(numbers, ("", "nan", "NaN", "NA")))
    found = read(dtype=object) if found is None else found
    return found.drop(index=empty).reset_index(drop=True) if empty else found


@contextmanager
def _open_csv(path: Path) -> Iterator[_Csv]:
    encoding = _encoding(path)
    with _csv_errors(path), _text(path, encoding) as file:
        first = file.readline(_LONGEST)
        told = first.rstrip("\r\n")[4:5] if first.lower().startswith("sep=") else ""  # Excel's own
        file.seek(0)
        delimiter = told if told in _DELIMITERS else _delimiter(list(islice(_Lines(path, file), 20)))
        file.seek(0)
        lines = _Lines(path, file)
        rows = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        if told:
            next(rows)
        header = [name.strip() for name in next((row for row in rows if any(map(str.strip, row))), [])]
        if not header:
            raise InputError(f"{path} is not a CSV table: it has no header")
        named = header[: max(i for i, name in enumerate(header) if name) + 1]
        names = [name or f"Unnamed: {i}" for i, name in enumerate(named)]
        yield _Csv(file, lines, rows, names, len(header), delimiter)


def _delimiter(lines: list[str]) -> str:
    """Finds the delimiter by which the first rows have as many cells as the header, the more the better."""

    def fits(delimiter: str) -> tuple[float, int]:
        try:
            header, *rows = (len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row)
        except (csv.Error, ValueError):
            return 0, 0
        return (sum(row == header for row in rows) / len(rows) if rows else 1, header) if header > 1 else (0, 0)

    return max(_DELIMITERS, key=fits)


def _check_rows(path: Path, table: _Csv) -> list[int]:
    """Compares the rows with the header, and returns the places of those that have no content.

    Where cells without a name end the header, either every row has them or none has: a row that is shorter than the
    others has lost a cell, maybe not the last.
    """
    width, named = table.width, len(table.names)
    lines: dict[int, list[int]] = {named: [], width: []}  # of rows that fit, where there are two ways to
    empty, ragged, odd, count, row, line = [], [], [], 0, [], table.rows.line_num + 1
    try:
        for row in table.rows:
            if len(row) != width or named < width or not row[0]:  # else as nearly every row is
                if len(row) < 2 and not any(row):
                    count -= 1  # pandas skips blank lines too
                elif not any(row) and len(row) <= width:
                    empty.append(count)
                elif len(row) not in lines or any(row[named:]):
                    ragged.append(str(line))
                    odd = odd or row
                elif named < width:
                    lines[len(row)].append(line)
            count += 1
            line = table.rows.line_num + 1
    except csv.Error:
        raise InputError(f"{path}: line {line}: a quote is not closed, or stands in the middle of a cell") from None
    mark = _DELIMITERS[table.delimiter].removesuffix("s")
    if ragged:
        if len(ragged) == count and len(odd) == width + 1 and not odd[-1]:
            raise InputError(
                f"{path}: every row has a {mark} at its end that the header lacks: remove it, or add it there"
            )
        why = "cut short" if len(odd) < named else f"a {mark} too many, or one in a cell without quotes"
        raise InputError(f"{_at_lines(path, ragged)}: {len(odd)} cells where the header has {named} ({why})")
    if all(lines.values()):
        few, many = sorted(lines, key=lambda cells: (len(lines[cells]), cells))
        why = f"a cell is missing, or the {mark} at the end" if few < many else f"a {mark} too many"
        raise InputError(f"{_at_lines(path, lines[few])}: {few} cells where the other rows have {many} ({why})")
    if row and not row[-1] and named == width and not table.lines.last.endswith(("\n", "\r")):
        warnings.warn(f"{path} ends in a blank cell without a line break: was the file cut?", stacklevel=2)
    return empty


def _at_lines(path: Path, lines: Sequence[int | str]) -> str:
    return f"{path}: line{'s' if len(lines) > 1 else ''} {name_some(list(map(str, lines)), 5)}"


@contextmanager
def _csv_errors(path: Path) -> Iterator[None]:
    """Turns what damaged text and archives raise into one error."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        where = _where_not_utf8(path) if error.encoding.startswith("utf-8") else "it is not whole"
        raise InputError(f"{path} is not a CSV table: {where}: save as UTF-8 (in Excel: CSV UTF-8)") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path} is not a CSV table: the gzip archive is damaged or cut short") from None
    except (csv.Error, OSError, ValueError) as error:  # pandas' errors are ValueErrors
        raise InputError(f"{path} is not a CSV table: {_first_line(error)}") from None


def _where_not_utf8(path: Path) -> str:
    with _binary(path) as file, suppress(gzip.BadGzipFile, EOFError, zlib.error):
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number} is not UTF-8"
    return "it is not UTF-8, or its gzip archive is damaged"


def _encoding(path: Path) -> str:
    """Finds the encoding by a byte order mark; UTF-8 without one."""
    with _csv_errors(path), _binary(path) as file:
        start = file.read(4)
    if start.startswith(b"PK\3\4"):
        raise InputError(f"{path} is not a CSV table: it is a zip archive or an Excel file (then name it .xlsx)")
    if start == b"PAR1":
        raise InputError(f"{path} is a Parquet table in a gzip archive: unpack it")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and start[2:] != b"\0\0":
        return "utf-16"
    if b"\0" in start:
        what = "it is UTF-16 without a mark, UTF-32 or no text"
        raise InputError(f"{path} is not a CSV table: {what}: save as UTF-8 (in Excel: CSV UTF-8)")
    return "utf-8-sig"


def _binary(path: Path) -> BinaryIO:
    """Opens a file, unpacked if its content is gzip's: browsers unpack a download, and keep its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[TextIO]:
    with _binary(path) as file, io.TextIOWrapper(file, encoding, newline="") as text:
        yield text


class _Lines:
    """The lines of a text file; ``last`` is the one that was read last."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file, self.number, self.last = path, file, 0, ""

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(_LONGEST):
            self.number += 1
            if "\0" in line or len(line) == _LONGEST:
                what = "holds a NUL byte" if "\0" in line else "has over a million characters"
                raise InputError(f"{self.path} is not a CSV table: line {self.number} {what}")
            self.last = line
            yield line


# Parquet and Excel


def _is_parquet(path: Path) -> bool:
    """Says so by the name, or by the content: pandas' ``.parquet.gzip`` is packed within."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return True
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _is_excel(path: Path) -> bool:
    return path.suffix.lower() in (".xlsx", ".xlsm")


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Opens a ``pyarrow.parquet.ParquetFile``; what reading it raises is an InputError."""
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is not a Parquet table: {_first_line(error)}") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads the metadata of a Parquet file of scores; empty where another program wrote it.

    Raises:
        InputError: it is not a Parquet file, or the metadata are damaged.
    """
    if path.suffix.lower() not in (".parquet", ".pq"):
        return {}
    with open_parquet(path) as file:
        text = (file.schema_arrow.metadata or {}).get(METADATA, b"{}")
    return parse_json(text, f"the metadata of {path}")


def _read_parquet(path: Path, wanted: Collection[str] | None) -> pd.DataFrame:
    with open_parquet(path) as file:
        shown = {name: _shown(name) for name in file.schema_arrow.names}
        names = [name for name in shown if wanted is None or shown[name] in wanted]
        table = file.read(names).replace_schema_metadata()  # pandas' index is there
        table = table.to_pandas(integer_object_nulls=True)[names].rename(columns=shown)
        for column in table:
            if table[column].dtype.kind not in "fiub":
                table[column] = _as_text(table[column])
    return table


def _shown(name: str) -> str:
    """Names an index that has no name as the column of a CSV file without a name."""
    return re.sub(r"^__index_level_(\d+)__$", r"Unnamed: \1", name)


def _as_text(column: pd.Series) -> pd.Series:
    text = column.astype(object).where(column.notna(), "")
    return text.map(lambda cell: str(_plain(cell)))


def _plain(cell: Any) -> Any:
    """Makes lists of arrays and text of bytes."""
    if isinstance(cell, np.ndarray):
        return list(map(_plain, cell.tolist()))
    return cell.decode(errors="replace") if isinstance(cell, bytes) else cell


def _read_excel(path: Path) -> tuple[pd.DataFrame, int]:
    """Reads the first sheet as text, and counts the sheets."""
    require("openpyxl", "excel")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST_SHEET:
                raise InputError(f"{path} is too large for an Excel file: save it as CSV")
        with pd.ExcelFile(path, engine="openpyxl") as book:
            sheets = len(book.sheet_names)
            sheet = pd.read_excel(book, header=None, dtype=object, na_filter=False)
    except InputError:
        raise
    except Exception as error:  # openpyxl raises whatever the XML makes it
        raise InputError(f"{path} is not an Excel table: {_first_line(error)}") from None
    sheet = sheet.apply(_as_text)
    filled = sheet.apply(lambda column: column.str.strip() != "")
    sheet, filled = sheet[filled.any(axis=1)], filled[filled.any(axis=1)]
    if sheet.empty:
        raise InputError(f"{path} is not an Excel table: it has no header")
    last = filled.columns[filled.iloc[0]].max()
    if over := [str(row + 1) for row in filled.index[filled.loc[:, last + 1 :].any(axis=1)]]:
        where = f"row{'s' if len(over) > 1 else ''} {name_some(over, 5)}"
        remedy = "name its column in the first row, or clear it"
        raise InputError(f"{path}: {where}: a cell to the right of the header's last name: {remedy}")
    sheet = sheet.loc[:, filled.any(axis=0)]
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(sheet.iloc[0])]
    return sheet.iloc[1:].set_axis(names, axis=1).reset_index(drop=True), sheets


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
