"""CSV tables that are read back exactly or refused: a truncated file is always an error.

pandas does not read them, because it fills short rows and guesses types.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import MEGA, read_whole, write_atomic

Converter = Callable[[str], Any]
"""Converts the text of a field; raises `ValueError` if it cannot."""
MOST_BYTES = 256 * MEGA
"""Largest table that is read; a row of `trials.csv` has about 2,000 bytes, and few studies have more than some thousand
rows."""


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A header and rows as CSV. None becomes an empty field, and floats keep every digit."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write the `csv_text` of a table atomically."""
    return write_atomic(path, csv_text(columns, rows))


def read_rows(path: str | Path, converters: Mapping[str, Converter], *, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a CSV with exactly these columns: converted rows, each with its location for error messages.

    Args:
        path: The file.
        converters: Column → converter of its fields, in the order of the columns.
        key: Column whose values must be unique.

    Raises:
        InputError: The file is missing, damaged, or another table.
    """
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    converted: list[tuple[str, dict[str, Any]]] = []
    seen: set[Any] = set()
    try:
        header = next(reader, [])
        if header != list(converters):
            raise InputError(f"{path} must have the columns {','.join(converters)}, but has {','.join(header)[:200]!r}")
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            values = _converted(place, row, converters)
            if values[key] in seen:
                raise InputError(f"{place}: each {key} must be unique, but {values[key]} is repeated")
            seen.add(values[key])
            converted.append((place, values))
    except csv.Error as error:
        raise InputError(f"{path} must be a complete CSV file in UTF-8, but reading it fails: {error}") from None
    if converted and not text.endswith("\n"):  # 12.3 could be a truncated 12.34
        raise InputError(f"{path} must be a complete CSV file, but its last line is truncated")
    return converted


def _converted(place: str, row: list[str], converters: Mapping[str, Converter]) -> dict[str, Any]:
    if len(row) != len(converters):
        raise InputError(f"{place}: a row must have {len(converters)} fields, but has {len(row)}")
    values = {}
    for (name, converter), text in zip(converters.items(), row, strict=True):
        try:
            values[name] = converter(text)
        except (OverflowError, ValueError) as error:
            raise InputError(f"{place}, {name}: {shortened(str(error), 200)}") from None
    return values


def optional(converter: Converter) -> Converter:
    """The same converter for a column with gaps: an empty field is None."""
    return lambda text: converter(text) if text else None


def whole(text: str) -> int:
    """An integer of 64 bits, the limit of data frames.

    Raises:
        ValueError: The text is not such an integer.
    """
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError(f"must fit into 64 bits, but got {text[:20]}…")
    return number


def _text(path: str | Path) -> str:
    try:
        return read_whole(Path(path), most=MOST_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} must be a CSV file, but does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a complete CSV file in UTF-8, but reading it fails: {error}") from None
