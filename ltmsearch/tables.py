"""CSV tables that are read back exactly or refused: a file cut off in the middle never passes for a whole one.

Not read by pandas, which fills short rows and guesses types.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltmsearch.errors import InputError
from ltmsearch.files import write_atomic

Converter = Callable[[str], Any]
"""Makes a value of a field's text; raises `ValueError` where it cannot."""


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
    header, rows, whole = _read(path)
    if header != list(converters):
        raise InputError(f"{path} must have the columns {','.join(converters)}, but has {','.join(header)[:200]!r}")
    converted = []
    seen: set[Any] = set()
    for place, row in rows:
        if len(row) != len(converters):
            raise InputError(f"{place}: a row must have {len(converters)} fields, but has {len(row)}")
        values = {}
        for (name, converter), text in zip(converters.items(), row, strict=True):
            try:
                values[name] = converter(text)
            except ValueError as error:
                raise InputError(f"{place}, {name}: {error}") from None
        if values[key] in seen:
            raise InputError(f"{place}: each {key} must stand once, but {values[key]} is there again")
        seen.add(values[key])
        converted.append((place, values))
    if rows and not whole:  # 12.3 would pass for 12.34
        raise InputError(f"{path} must be a whole CSV file, but its last line has no end")
    return converted


def optional(converter: Converter) -> Converter:
    """The same for a column with gaps: an empty field is None."""
    return lambda text: converter(text) if text else None


def _read(path: str | Path) -> tuple[list[str], list[tuple[str, list[str]]], bool]:
    """The header, each row with its place, and whether the last line has an end."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} must be a CSV file, but there is none") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a whole CSV file in UTF-8, but reading it gives: {error}") from None
    return header, rows, text.endswith("\n")
