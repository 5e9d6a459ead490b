"""Tables that fit the terminal: columns that find no room side by side go into further tables, and no cell is cut."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Column = TypeVar("Column")

WITHOUT_END = 10_000
"""Columns of a terminal on which every table fits."""


def width_of(console: Console, table: Table) -> int:
    """The columns of the terminal that a table takes if nothing in it is wrapped."""
    return Measurement.get(console, console.options.update(width=WITHOUT_END), table).maximum


def print_in_parts(console: Console, columns: Sequence[Column], build: Callable[[Sequence[Column]], Table]) -> None:
    """Prints one table, or where it is too wide for the console as few as do.

    Args:
        console: Where to print.
        columns: What the table has a column for, beside those that every part begins with; at least one.
        build: Makes the table of some of them.
    """
    tables: list[Table] = []
    for parts in range(1, len(columns) + 1):
        size = -(-len(columns) // parts)  # about equally wide
        tables = [build(columns[start : start + size]) for start in range(0, len(columns), size)]
        if all(width_of(console, table) <= console.width for table in tables):
            break
    for table in tables:
        console.print(table)
