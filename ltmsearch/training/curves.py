"""Curves of a training: losses, top-1, information bottleneck and learning rate over the epochs.

Blue: weights as trained. Orange: their average over the steps (EMA). Black: training loss. Star: best top-1. Dashed
line: start of the IB loss.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.io.figures import write_drawing
from ltmsearch.training.epoch_records import EpochRecord, select_best

HEIGHT = 800
"""Height of the PNG, in points."""

MOST_MARKERS = 40
"""Epochs, at most, that are drawn with markers."""

# Colour-blind safe palette of Okabe and Ito, https://jfly.uni-koeln.de/color; dashes work in black and white.
_BLACK, _GREY, _BLUE, _ORANGE, _GREEN, _RED = "#000000", "#6b6b6b", "#0072B2", "#E69F00", "#009E73", "#D55E00"

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class _Line:
    name: str
    value: Callable[[EpochRecord], float | None]
    colour: str
    dash: str = "solid"
    hover_suffix: Callable[[EpochRecord], str] = lambda record: ""
    """Hover text behind the value."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    lines: tuple[_Line, ...]
    number_format: str
    """Format of values in hover texts."""
    y_range: Callable[[Sequence[float], Sequence[EpochRecord]], Range | None] = lambda values, records: None
    """Range of the y axis, computed from the finite values; None: plotly's default."""


def curves_figure(records: Iterable[EpochRecord], *, title: str) -> go.Figure:
    """Draw the curves of a training; colours are explained at the top of this module.

    Args:
        records: Epochs of one training, at least one.
        title: Title of the plot.

    Raises:
        ValueError: If there are no records.
    """
    records = sorted(records, key=lambda record: record.epoch)
    best = select_best(records)
    ib_start = next((record for record in records if record.ib_weight > 0), None)
    panels = [panel for panel in (_without_empty_lines(panel, records) for panel in _PANELS) if panel.lines]
    bottom: list[dict[str, int] | None] = [{}, {}] if len(panels) == 4 else [{"colspan": 2}, None]
    figure = make_subplots(rows=2, cols=2, specs=[[{}, {}], bottom], horizontal_spacing=0.1, vertical_spacing=0.21)
    figure.update_layout(_layout(title, _subtitle(records, ib_start)))
    for number, panel in enumerate(panels):
        row, column = number // 2 + 1, number % 2 + 1
        legend = f"legend{number + 1 if number else ''}"
        for line in panel.lines:
            figure.add_trace(_trace(line, panel.number_format, records, legend), row=row, col=column)
        _format_panel(figure, panel, records, legend, row, column)
        if ib_start is not None and ib_start is not records[0] and panel is not panels[-1]:
            dashed = {"color": _GREY, "width": 1.5, "dash": "dash"}
            figure.add_vline(x=ib_start.epoch - 0.5, line=dashed, opacity=1, row=row, col=column)
    star = {"symbol": "star", "size": 14, "color": _RED, "line": {"width": 1, "color": "#ffffff"}}
    top = {"name": "best", "x": [best.epoch], "y": [best.top1], "mode": "markers", "marker": star}
    figure.add_trace(go.Scatter(**top, legend="legend2", hovertemplate="%{y:.2f}"), row=1, col=2)
    return figure


def write_curves(records: Iterable[EpochRecord], folder: str | Path, *, title: str, png: bool = True) -> str | None:
    """Write `curves.html`, and `curves.png` if a browser is installed; see `write_drawing`.

    Args:
        records: Epochs of one training, at least one.
        folder: Folder to write to; created if missing.
        title: Title of the plot.
        png: Whether to write the PNG, which takes some seconds.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If there are no records.
    """
    return write_drawing(curves_figure(records, title=title), folder, "curves", title=title, height=HEIGHT, png=png)


def _without_empty_lines(panel: _Panel, records: Sequence[EpochRecord]) -> _Panel:
    lines = [line for line in panel.lines if any(line.value(record) is not None for record in records)]
    return replace(panel, lines=tuple(lines))


def _trace(line: _Line, number_format: str, records: Sequence[EpochRecord], legend: str) -> go.Scatter:
    return go.Scatter(
        name=line.name,
        x=[record.epoch for record in records],
        y=[line.value(record) for record in records],
        customdata=[line.hover_suffix(record) for record in records],
        mode="lines+markers" if len(records) <= MOST_MARKERS else "lines",
        line={"color": line.colour, "width": 2, "dash": line.dash},
        marker={"size": 6},
        legend=legend,
        hovertemplate=f"%{{y:{number_format}}}%{{customdata}}",
    )


def _format_panel(
    figure: go.Figure, panel: _Panel, records: Sequence[EpochRecord], legend: str, row: int, column: int
) -> None:
    first, last = records[0].epoch, records[-1].epoch
    pad = max(0.5, 0.02 * (last - first))
    # With few epochs, plotly would label half epochs.
    x: dict[str, Any] = {"dtick": 1} if last - first < 12 else {}
    x |= {
        "range": [first - pad, last + pad],
        "matches": "x",
        "title": {"text": "epoch", "standoff": 4, "font": {"size": 13}},
    }
    drawn = [value for record in records for line in panel.lines if (value := line.value(record)) is not None]
    y_range = panel.y_range([value for value in drawn if math.isfinite(value)], records)
    grid = {"showgrid": True, "gridcolor": "#ececec"}
    figure.update_xaxes(unifiedhovertitle={"text": "epoch %{x}"}, **x, **grid, row=row, col=column)
    figure.update_yaxes(exponentformat="power", range=y_range, **grid, row=row, col=column)
    subplot = figure.get_subplot(row, column)
    corner = {"x": subplot.xaxis.domain[0], "y": subplot.yaxis.domain[1], "xanchor": "left", "yanchor": "bottom"}
    cut = "" if y_range is None or max(drawn) <= y_range[1] else f"; values above {y_range[1]:.3g} not shown"
    heading = {"text": f"<b>{panel.title}</b>{cut}", "yshift": 24, "showarrow": False}
    figure.add_annotation(xref="paper", yref="paper", **heading, **corner)
    figure.update_layout({legend: {"orientation": "h", **corner}})


def _loss_range(values: Sequence[float], records: Sequence[EpochRecord]) -> Range | None:
    """Cut off validation losses of thousands, which BatchNorm statistics of the first epochs can cause."""
    low, high = min(values), 1.5 * max(record.train_loss for record in records)
    return (low - 0.05 * (high - low), high) if low < high < max(values) else None


def _range_from_zero(values: Sequence[float], records: Sequence[EpochRecord]) -> Range:
    return 0, 1.08 * max(values) or 1


def _top5(value: float | None) -> str:
    return "" if value is None else f", top-5 {value:.2f}"


_PANELS = (
    _Panel(
        title="Loss, nats",
        lines=(
            _Line(name="training, all terms", value=lambda r: r.train_loss, colour=_BLACK, dash="dot"),
            _Line(name="validation", value=lambda r: r.loss, colour=_BLUE),
            _Line(name="validation, EMA", value=lambda r: r.ema_loss, colour=_ORANGE),
        ),
        number_format=".4f",
        y_range=_loss_range,
    ),
    _Panel(
        title="Validation top-1, %",
        lines=(
            _Line(name="as trained", value=lambda r: r.top1, colour=_BLUE, hover_suffix=lambda r: _top5(r.top5)),
            _Line(name="EMA", value=lambda r: r.ema_top1, colour=_ORANGE, hover_suffix=lambda r: _top5(r.ema_top5)),
        ),
        number_format=".2f",
    ),
    _Panel(
        title="Information bottleneck, nats",
        lines=(
            _Line(name="I(X̃;X)", value=lambda r: r.mi_x, colour=_GREEN),
            _Line(name="I(X̃;Y)", value=lambda r: r.mi_y, colour=_BLUE, dash="dash"),
            _Line(name="IB = I(X̃;X) − I(X̃;Y)", value=lambda r: r.ib, colour=_RED),
        ),
        number_format=".4f",
    ),
    _Panel(
        title="Learning rate",
        lines=(_Line(name="at the end of the epoch", value=lambda r: r.lr, colour=_BLACK),),
        number_format=".3g",
        y_range=_range_from_zero,
    ),
)


def _subtitle(records: Sequence[EpochRecord], ib_start: EpochRecord | None) -> str:
    best = select_best(records)
    weights = "averaged weights, EMA" if best.weights == "EMA" else "weights as trained"
    text = f"best top-1 {best.top1:.2f} % after epoch {best.epoch} of {records[-1].epoch} ({weights})"
    if ib_start is not None:
        line = "" if ib_start is records[0] else " (dashed line)"
        text += f"; IB loss from epoch {ib_start.epoch} on{line}, weight {ib_start.ib_weight:g}"
    return text


def _layout(title: str, subtitle: str) -> dict[str, Any]:
    small = {"text": subtitle, "font": {"size": 13, "color": _GREY}}
    return {
        "template": "simple_white",
        "title": {"text": title, "subtitle": small, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": _BLACK},
        "hovermode": "x unified",
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": _BLACK}},
        "margin": {"l": 60, "r": 25, "t": 130, "b": 60},
    }
