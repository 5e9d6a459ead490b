"""CSV tables that are read back exactly or refused: a file cut off in the middle never passes for a whole one.

Not read by pandas, which fills short rows and guesses types.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltmsearch.errors import InputError, shortened
from ltmsearch.io.files import MEGA, read_whole, write_atomic

Converter = Callable[[str], Any]
"""Makes a value of a field's text; raises `ValueError` where it cannot."""
MOST_BYTES = 256 * MEGA
"""Of a table; a row of `trials.csv` has about 2,000, and a study rarely more than some thousand rows."""


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes a header and rows, atomically. None becomes an empty field, and floats keep every digit."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_atomic(path, stream.getvalue())


def read_rows(path: str | Path, converters: Mapping[str, Converter], *, key: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a CSV with exactly these columns, converted, each with its place for messages.

    Args:
        path: The file.
        converters: Column → what makes a value of its text, in the order of the columns.
        key: The column whose values must all differ.

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
                raise InputError(f"{place}: each {key} must stand once, but {values[key]} is there again")
            seen.add(values[key])
            converted.append((place, values))
    except csv.Error as error:
        raise InputError(f"{path} must be a whole CSV file in UTF-8, but reading it gives: {error}") from None
    if converted and not text.endswith("\n"):  # 12.3 would pass for 12.34
        raise InputError(f"{path} must be a whole CSV file, but its last line has no end")
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
    """The same for a column with gaps: an empty field is None."""
    return lambda text: converter(text) if text else None


def whole(text: str) -> int:
    """A whole number that fits into 64 bits, as those of a data frame must.

    Raises:
        ValueError: If it is none.
    """
    number = int(text)
    if abs(number) >= 2**63:
        raise ValueError(f"must fit into 64 bits, but got {text[:20]}…")
    return number


def _text(path: str | Path) -> str:
    try:
        return read_whole(Path(path), most=MOST_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} must be a CSV file, but there is none") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a whole CSV file in UTF-8, but reading it gives: {error}") from None
