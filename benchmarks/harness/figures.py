"""Figures of the benchmarks: panels of lines and marks, written by `ltmsearch.io.figures`.

A script draws from the results that it writes as JSON, so that `benchmarks/figures.py` can draw them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.io.figures import write_drawing

BLUE, ORANGE, GREEN, YELLOW, PINK, SKY, GREY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000",
)  # fmt: skip
"""Colours of Okabe and Ito."""


@dataclass(kw_only=True)
class Series:
    """Points of one panel."""

    x: Sequence[float]
    y: Sequence[float]
    color: str
    name: str = ""
    """Text in the legend; empty: none. Series of one name share an entry."""
    mode: str = "lines+markers"
    dash: str = "solid"
    size: int = 7
    opacity: float = 1.0
    error_x: Sequence[float] | None = None
    error_y: Sequence[float] | None = None
    band: Sequence[float] | None = None
    """Half width of a shaded band around the line."""
    second: bool = False
    """Use the second y axis."""


@dataclass(kw_only=True)
class Panel:
    """One panel of a figure."""

    title: str
    series: list[Series]
    x_axis: dict[str, Any] = field(default_factory=dict)
    y_axis: dict[str, Any] = field(default_factory=dict)
    second_axis: dict[str, Any] | None = None
    """Second y axis, where there is one."""
    lines: Sequence[tuple[str, float, str]] = ()
    """Reference lines: `x` or `y`, place, colour."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, with what its files need."""

    figure: go.Figure
    stem: str
    """Name of the files."""
    title: str
    """Title of the page."""
    height: int = 560
    """Points of the PNG."""


def log_axis(title: str = "", *, numbers: Sequence[int] = (1, 2, 5)) -> dict[str, Any]:
    """Logarithmic axis with marks at these multiples of the powers of ten."""
    places = [number * 10.0**power for power in range(-4, 6) for number in numbers]
    return {"type": "log", "title": title, "tickvals": places, "tickformat": ",~g", "tickangle": 0}


def draw(title: str, panels: Sequence[Panel], *, columns: int = 2, share_y: bool = False) -> go.Figure:
    """Figure of some panels, row by row."""
    rows = -(-len(panels) // columns)
    second = any(panel.second_axis for panel in panels)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[panel.title for panel in panels],
        shared_yaxes=share_y,
        specs=[[{"secondary_y": second}] * columns for _ in range(rows)],
        horizontal_spacing=0.05 if share_y else 0.18 if second else 0.12,
        vertical_spacing=0.34 / rows,
    )
    named: set[str] = set()
    for number, panel in enumerate(panels):
        place = {"row": 1 + number // columns, "col": 1 + number % columns}
        for series in panel.series:
            if series.band is not None:
                figure.add_trace(_band(series), **place)
            figure.add_trace(_scatter(series, series.name not in named), secondary_y=series.second or None, **place)
            named.add(series.name)
        for axis, at, color in panel.lines:
            add = figure.add_vline if axis == "x" else figure.add_hline
            add(**{axis: at}, line={"color": color, "width": 1.5, "dash": "dash"}, **place)
        figure.update_xaxes(**panel.x_axis, **place)
        figure.update_yaxes(**panel.y_axis, secondary_y=False, **place)
        if panel.second_axis is not None:
            figure.update_yaxes(**panel.second_axis, showgrid=False, secondary_y=True, **place)
    figure.update_layout(
        title=title,
        template="plotly_white",
        font={"size": 13},
        margin={"l": 70, "r": 20, "t": 90, "b": 100},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0.5, "xanchor": "center"},
    )
    return figure


def _scatter(series: Series, first: bool) -> go.Scatter:
    errors = {"color": series.color, "thickness": 1.5, "width": 4}
    return go.Scatter(
        x=list(series.x),
        y=list(series.y),
        mode=series.mode,
        name=series.name,
        legendgroup=series.name,
        showlegend=bool(series.name) and first,
        line={"color": series.color, "dash": series.dash, "width": 2.5},
        marker={"color": series.color, "size": series.size, "opacity": series.opacity},
        error_x=None if series.error_x is None else {"array": list(series.error_x), **errors},
        error_y=None if series.error_y is None else {"array": list(series.error_y), **errors},
    )


def _band(series: Series) -> go.Scatter:
    assert series.band is not None
    edges = list(zip(series.x, series.y, series.band, strict=True))
    outline = [(x, y + half) for x, y, half in edges] + [(x, y - half) for x, y, half in reversed(edges)]
    return go.Scatter(
        x=[x for x, _ in outline],
        y=[y for _, y in outline],
        fill="toself",
        fillcolor=series.color,
        opacity=0.15,
        mode="lines",
        line={"width": 0},
        showlegend=False,
        hoverinfo="skip",
    )


def save_figure(drawing: Drawing, folder: Path, *, png: bool = True) -> None:
    """Write a figure as a page and, where a browser is found, as a PNG."""
    stem = drawing.stem
    note = write_drawing(drawing.figure, folder, stem, title=drawing.title, height=drawing.height, png=png)
    print(f"written: {folder / stem}.html", *([note or f"and {stem}.png"] if png else []))
