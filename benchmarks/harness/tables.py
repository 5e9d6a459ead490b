"""Tables on the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

console = Console(width=190, highlight=False)


def make_table(title: str, *headings: str, left: int = 1) -> Table:
    """Table whose first `left` columns are names and the others numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < left else "right", no_wrap=True)
    return table


def print_table(title: str, headings: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> None:
    """Print a table."""
    table = make_table(title, *headings, left=left)
    for row in rows:
        table.add_row(*row)
    console.print(table)
