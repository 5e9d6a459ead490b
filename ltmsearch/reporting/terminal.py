"""The results of a study in the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from ltmsearch.config.objective import CostAxis
from ltmsearch.io.console_tables import width_of
from ltmsearch.reporting.findings import Findings, find, sentences
from ltmsearch.reporting.front_table import make_front_table
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run

AMOUNTS = ("keep ratios", "thresholds")
"""Headings of the column of words."""
ROOM_FOR_RATIOS = 24
"""Terminal columns that keep ratios need beside the numbers of a front."""
LEFT_OUT = ("loss", "IB weight")
"""Columns of the front's table without space in 80 columns."""


def print_results(console: Console, run: Run) -> None:
    """Print the front of a study and its findings; 80 columns are enough."""
    axis = run.settings.axis
    print_front(console, run.trials, axis=axis)
    print_findings(console, find(run.trials, axis.costs))


def print_front(console: Console, records: Iterable[TrialRecord], *, axis: CostAxis) -> None:
    """Print the front, best first, and below it the baselines.

    If keep ratios do not fit beside the numbers, they follow in a second table, and with them the last numbers if the
    first table would be too wide too. 80 columns are enough.
    """
    front = make_front_table(records, axis)
    columns = [name for name in front.columns if name not in LEFT_OUT]
    numbers = [[row.cells[name] for name in columns] for row in front.rows]
    ratios = [row.label or " | ".join(row.keep_ratios.values()) for row in front.rows]
    side_by_side = [(*cells, words) for cells, words in zip(numbers, ratios, strict=True)]
    tables = [_table((*columns, front.amounts), side_by_side, len(front.front))]
    separate = _table(columns, numbers, len(front.front))
    if console.width < min(width_of(console, tables[0]), width_of(console, separate) + ROOM_FOR_RATIOS):
        fit = len(columns)
        while fit > 1 and width_of(console, separate) > console.width:
            fit -= 1
            separate = _table(columns[:fit], [cells[:fit] for cells in numbers], len(front.front))
        rest = [(cells[0], *cells[fit:], words) for cells, words in zip(numbers, ratios, strict=True)]
        tables = [separate, _table(("trial", *columns[fit:], front.amounts), rest, len(front.front))]
    tables[0].title = front.title
    for table in tables:
        console.print(table)
    for line in front.captions:
        console.print(line, markup=False, highlight=False, style="dim")


def print_findings(console: Console, findings: Findings) -> None:
    """Print the findings as one paragraph of at most 80 columns."""
    console.print(" ".join(sentences(findings)), markup=False, highlight=False, width=min(80, console.width))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], front: int) -> Table:
    table = Table()
    for heading in headings:
        words = heading in AMOUNTS
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for place, row in enumerate(rows):
        table.add_row(*row, end_section=place == front - 1)
    return table
