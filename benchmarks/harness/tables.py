"""Tables on the terminal, and in Markdown."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(width=190, highlight=False)


def print_table(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table whose first column has names and the others numbers."""
    table = Table(title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}", table, sep="\n")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def leaves(found: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested results, with the names that lead to them."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{name}: ")
        elif isinstance(value, int | float):
            yield path + name, value
