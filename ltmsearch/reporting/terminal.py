"""The results of a study in the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from ltmsearch.config.objective import CostAxis
from ltmsearch.io.console_tables import width_of
from ltmsearch.reporting.findings import Findings, findings_of, front_lines, verdict_lines
from ltmsearch.reporting.front_table import make_front_table
from ltmsearch.reporting.numbers import SHORT
from ltmsearch.reporting.verdict import Verdict
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run

AMOUNTS = ("keep ratios", "thresholds")
"""Headings of the column of words."""
ROOM_FOR_RATIOS = 24
"""Terminal columns that keep ratios need beside the numbers of a front."""
MAY_BE_LEFT_OUT = (*SHORT.values(), "IB weight")
"""Columns of the front's table that are left out where the terminal is too narrow for them."""


def print_results(console: Console, run: Run) -> None:
    """Print the front of a study and its findings; 80 columns are enough."""
    findings = findings_of(run)
    print_front(console, run.trials, axis=run.settings.axis, verdict=findings.verdict)
    print_findings(console, findings)


def print_front(
    console: Console, records: Iterable[TrialRecord], *, axis: CostAxis, verdict: Verdict | None = None
) -> None:
    """Print the front, best first, and below it the baselines.

    If not everything fits, the measure and the IB weight are left out. If keep ratios still do not fit beside the
    numbers, they follow in a second table, and with them the last numbers if the first table would be too wide too. 80
    columns are enough.
    """
    front = make_front_table(records, axis, verdict)
    end = len(front.front)
    ratios = [row.label or " | ".join(row.keep_ratios.values()) for row in front.rows]

    def table(names: Sequence[str], *, words: bool) -> Table:
        rows = [[row.cells[name] for name in names] for row in front.rows]
        if not words:
            return _table(names, rows, end)
        return _table((*names, front.amounts), [(*row, each) for row, each in zip(rows, ratios, strict=True)], end)

    columns = list(front.columns)
    if width_of(console, table(columns, words=True)) > console.width:
        columns = [name for name in columns if name not in MAY_BE_LEFT_OUT]
    tables, separate = [table(columns, words=True)], table(columns, words=False)
    if console.width < min(width_of(console, tables[0]), width_of(console, separate) + ROOM_FOR_RATIOS):
        fit = len(columns)
        while fit > 1 and width_of(console, separate) > console.width:
            fit -= 1
            separate = table(columns[:fit], words=False)
        tables = [separate, table(["trial", *columns[fit:]], words=True)]
    tables[0].title = front.title
    for each in tables:
        console.print(each)
    for line in front.captions:
        console.print(line, markup=False, highlight=False, style="dim")


def print_findings(console: Console, findings: Findings) -> None:
    """Print the layers of the front, and below them the verdict, so that a run ends with what its user should do.

    Both are paragraphs of at most 80 columns.
    """
    for lines in (front_lines(findings), verdict_lines(findings)):
        if lines:
            console.print()
            console.print(" ".join(lines), markup=False, highlight=False, width=min(80, console.width))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], front: int) -> Table:
    table = Table()
    for heading in headings:
        words = heading in AMOUNTS
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for place, row in enumerate(rows):
        table.add_row(*row, end_section=place == front - 1)
    return table
