"""Curves of what is set by hand, as plain data: baselines at costs around the budget. File `baselines.csv` of a run.

A baseline that is fitted to the budget says nothing about points of the front that cost less.
"""

from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Literal

from pydantic import ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ltmsearch.errors import InputError
from ltmsearch.io.csv_tables import Count, Finite, NonNegative, Percent, read_rows, write_rows
from ltmsearch.io.yaml_models import first_line

BASELINES = "baselines.csv"
"""File in a run directory."""

Curve = Literal["one ratio", "one number of tokens", "smaller images"]
"""One keep ratio for all layers, in the first form; one number of tokens that all layers remove, as in ToMe; the plain
network on smaller images."""


@pydantic_dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One network of a curve, with the final weights on the reported images."""

    label: str
    """Unique, such as "uniform 0.87"."""
    curve: Curve
    trial: Count | None = None
    """The trial that is this network; None for one that is on the curve only."""
    gflops: NonNegative
    report_top1: Percent
    report_top1_se: NonNegative | None = None
    difference: Finite
    """Top-1 less the plain network's, in points."""
    difference_se: NonNegative | None = None


_COLUMNS = tuple(each.name for each in fields(CurvePoint))


def write_curves(points: Iterable[CurvePoint], path: Path) -> Path:
    """Write the table atomically."""
    return write_rows(path, _COLUMNS, map(astuple, points))


def read_curves(path: Path) -> list[CurvePoint]:
    """Read such a table; empty where there is none, as before the final scores.

    Raises:
        InputError: If it is damaged or another table.
    """
    if not path.exists():
        return []
    points = []
    for place, row in read_rows(path, _COLUMNS, key="label"):
        try:
            points.append(CurvePoint(**row))
        except ValidationError as error:
            raise InputError(f"{place}: {first_line(error)}") from None
    return points
