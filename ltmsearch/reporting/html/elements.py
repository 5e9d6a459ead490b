"""What the report is made of, as plain records: chapters of text, plots and tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ltmsearch.reporting.examples import Example
from ltmsearch.search.records import TrialRecord


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table of text; the first cell of a row names it."""

    caption: str
    headings: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """Rows, in groups separated by a line."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its description for readers who cannot see it."""

    anchor: str
    figure: go.Figure
    alternative: str
    """Description in words."""
    height: int = 460
    """In points."""
    least_width: int = 0
    """In points; on a narrower page the plot scrolls in its box."""
    most_width: int = 0
    """In points; 0: the width of the page."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading and the content below it."""

    anchor: str
    heading: str
    paragraphs: tuple[str, ...]
    """Explanation of the figures, or the reason why there is none."""
    plots: tuple[Plot, ...] = ()
    examples: tuple[Example, ...] = ()
    """Images with their merges."""
    tables: tuple[DataTable, ...] = ()
    """Numbers of the figures, folded."""


def make_table(caption: str, headings: Sequence[str], *groups: Sequence[Sequence[Any]]) -> DataTable:
    """A table of any values; None is an empty cell."""
    cells = [tuple(tuple("" if c is None else str(c) for c in row) for row in group) for group in groups]
    return DataTable(caption=caption, headings=tuple(headings), groups=tuple(cells))


def named(record: TrialRecord) -> tuple[int, str]:
    """First two cells of a trial in a table: its number and its name or kind."""
    return record.trial, record.label or record.kind
