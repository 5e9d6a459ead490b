"""CSV tables that are read back exactly or refused: a truncated file is always an error.

pandas does not read them, because it fills short rows and guesses types.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ltmsearch.errors import InputError
from ltmsearch.io.files import MEGA, read_whole, write_atomic

MOST_BYTES = 256 * MEGA
"""Largest table that is read; a row of `trials.csv` has about 2,000 bytes, and few studies have more than some thousand
rows."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value  # pydantic would also read "1.0"


Count = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


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


def read_rows(path: str | Path, columns: Sequence[str], *, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a CSV with exactly these columns: rows of text, None if empty, each with its location for error messages.

    Fields of column `key` must be unique.

    Raises:
        InputError: The file is missing, damaged, or another table.
    """
    text = _text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    seen: set[str | None] = set()
    try:
        header = next(reader, [])
        if header != list(columns):
            raise InputError(f"{path} must have the columns {','.join(columns)}, but has {','.join(header)[:200]!r}")
        for fields in reader:
            place = f"{path}, line {reader.line_num}"
            if len(fields) != len(header):
                raise InputError(f"{place}: a row must have {len(header)} fields, but has {len(fields)}")
            row = {name: field or None for name, field in zip(header, fields, strict=True)}
            if row[key] in seen:
                raise InputError(f"{place}: each {key} must be unique, but {row[key]} is repeated")
            seen.add(row[key])
            rows.append((place, row))
    except csv.Error as error:
        raise InputError(f"{path} must be a complete CSV file in UTF-8, but reading it fails: {error}") from None
    if rows and not text.endswith("\n"):  # 12.3 could be a truncated 12.34
        raise InputError(f"{path} must be a complete CSV file, but its last line is truncated")
    return rows


def _text(path: str | Path) -> str:
    try:
        return read_whole(Path(path), most=MOST_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} must be a CSV file, but does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a complete CSV file in UTF-8, but reading it fails: {error}") from None
