"""Tables that fit the terminal: columns that do not fit move to further tables, and no cell is cut."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ltmsearch.errors import printable

Column = TypeVar("Column")

UNLIMITED = 10_000
"""Width of a terminal that every table fits."""


def width_of(console: Console, table: Table) -> int:
    """Width of a table in characters if nothing in it is wrapped."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum


def print_in_parts(console: Console, columns: Sequence[Column], build: Callable[[Sequence[Column]], Table]) -> None:
    """Print one table, or the smallest number of tables that fit the console; `build` makes a table of some columns."""
    tables: list[Table] = []
    for parts in range(1, len(columns) + 1):
        size = -(-len(columns) // parts)  # about equally wide
        tables = [build(columns[start : start + size]) for start in range(0, len(columns), size)]
        if all(width_of(console, table) <= console.width for table in tables):
            break
    for table in tables:
        console.print(table)


def make_table(*headings: str, **options: Any) -> Table:
    """Make a table without line breaks in cells: the first column left-aligned, the others right-aligned."""
    table = Table(**options)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def print_line(console: Console, text: str, *, wrap: bool = False) -> None:
    """Print text without markup or colours; without `wrap` on one line, so that paths can be copied.

    Characters that break or colour a line, which names of files may contain, are escaped.
    """
    console.print(printable(text), markup=False, highlight=False, soft_wrap=not wrap)
