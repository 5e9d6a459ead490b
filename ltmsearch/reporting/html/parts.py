"""What a report is made of, as plain data: chapters of words, tables and figures; and how numbers read in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ltmsearch.config.objective import CostAxis
from ltmsearch.search.records import TrialRecord


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table of words; the first cell of a row names it."""

    caption: str
    headings: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """Rows, in groups with a line between them."""

    @property
    def empty(self) -> bool:
        """Whether it has no row."""
        return not any(self.groups)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with what it is to those who cannot see it."""

    anchor: str
    figure: str
    """JSON, as plotly's JavaScript takes it."""
    alternative: str
    """What it shows, in words."""
    height: int = 460
    """In points."""
    least_width: int = 0
    """In points: what it scrolls at inside its box, where the page is narrower."""
    most_width: int = 0
    """In points; 0: as wide as the page."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading and what stands under it."""

    anchor: str
    heading: str
    paragraphs: tuple[str, ...]
    """How to read the figures, or why there is none."""
    plots: tuple[Plot, ...] = ()
    tables: tuple[DataTable, ...] = ()
    """The numbers of the figures, or more; folded up."""


def plain_table(caption: str, headings: Sequence[str], *groups: Sequence[Sequence[Any]]) -> DataTable:
    """A table of whatever has a text; None is an empty cell."""
    cells = [tuple(tuple("" if c is None else str(c) for c in row) for row in group) for group in groups]
    return DataTable(caption=caption, headings=tuple(headings), groups=tuple(cells))


def duration(seconds: float) -> str:
    """A time for people: 12.3 s, 4 min 5 s or 1 h 2 min."""
    whole = round(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def called(record: TrialRecord) -> str:
    """What a trial is beside its number: the label of a baseline or start-up trial, or its kind."""
    return record.label or record.kind


def cost_text(record: TrialRecord, axis: CostAxis) -> str:
    """A trial's cost without its unit."""
    return f"{record.cost(axis.name):.{4 if axis.name == 'gflops' else 2}f}"


def with_error(value: float | None, error: float | None, digits: int = 1) -> str:
    """A number and its standard error, where there is one; empty without a number."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def four_digits(value: float | None) -> str:
    """A number of any size; empty without one."""
    return "" if value is None else f"{value:.4g}"
