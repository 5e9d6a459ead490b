"""Curves of a training: losses, top-1, information bottleneck and learning rate over the epochs.

Blue: weights as trained. Orange: their average over the steps (EMA). Black: training loss. Star: best top-1. Dashed
line: start of the IB loss.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.io.figures import BLACK, BLUE, GREY, ORANGE, RED, TEMPLATE, write_drawing
from ltmsearch.training.epoch_records import EpochRecord, select_best

HEIGHT = 800
"""Height of the PNG, in points."""

MOST_MARKERS = 40
"""Epochs, at most, that are drawn with markers."""


class _Line(NamedTuple):
    name: str
    field: str
    """Field of `EpochRecord`."""
    colour: str
    dash: str = "solid"


class _Panel(NamedTuple):
    title: str
    number_format: str
    """Format of values in hover texts."""
    lines: tuple[_Line, ...]


_PANELS = (
    _Panel(
        "Loss, nats",
        ".4f",
        (
            _Line("training, all terms", "train_loss", BLACK, "dot"),
            _Line("validation", "loss", BLUE),
            _Line("validation, EMA", "ema_loss", ORANGE),
        ),
    ),
    _Panel(
        "Validation top-1, %",
        ".2f",
        (_Line("as trained", "top1", BLUE), _Line("EMA", "ema_top1", ORANGE)),
    ),
    _Panel(
        "Information bottleneck, nats",
        ".4f",
        (
            _Line("I(X̃;X)", "mi_x", "#009E73"),
            _Line("I(X̃;Y)", "mi_y", BLUE, "dash"),
            _Line("IB = I(X̃;X) − I(X̃;Y)", "ib", RED),
        ),
    ),
    _Panel("Learning rate", ".3g", (_Line("at the end of the epoch", "lr", BLACK),)),
)


def curves_figure(records: Iterable[EpochRecord], *, title: str) -> go.Figure:
    """Draw the curves of a training; colours are explained at the top of this module.

    Raises:
        ValueError: If there are no records.
    """
    records = sorted(records, key=lambda record: record.epoch)
    best = select_best(records)
    ib_start = next((record for record in records if record.ib_weight > 0), None)
    panels = [panel for panel in _PANELS if any(_values(line, records) for line in panel.lines)]
    bottom: list[dict[str, int] | None] = [{}, {}] if len(panels) == 4 else [{"colspan": 2}, None]
    figure = make_subplots(rows=2, cols=2, specs=[[{}, {}], bottom], horizontal_spacing=0.1, vertical_spacing=0.21)
    small = {"text": _subtitle(records, ib_start), "font": {"size": 13, "color": GREY}}
    figure.update_layout(
        template=TEMPLATE,
        title={"text": title, "subtitle": small, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        font={"size": 13},
        hovermode="x unified",
        margin={"l": 60, "r": 25, "t": 130, "b": 60},
    )
    for number, panel in enumerate(panels):
        cell = {"row": number // 2 + 1, "col": number % 2 + 1}
        legend = f"legend{number + 1 if number else ''}"
        for line in panel.lines:
            if _values(line, records):
                figure.add_trace(_trace(line, panel.number_format, records, legend), **cell)
        _format_panel(figure, panel, records, legend, cell)
        if ib_start is not None and ib_start is not records[0] and panel is not panels[-1]:
            dashed = {"color": GREY, "width": 1.5, "dash": "dash"}
            figure.add_vline(x=ib_start.epoch - 0.5, line=dashed, opacity=1, **cell)
    star = {"symbol": "star", "size": 14, "color": RED, "line": {"width": 1, "color": "#ffffff"}}
    top = {"name": "best", "x": [best.epoch], "y": [best.top1], "mode": "markers", "marker": star}
    figure.add_trace(go.Scatter(**top, legend="legend2", hovertemplate="%{y:.2f}"), row=1, col=2)
    return figure


def write_curves(records: Iterable[EpochRecord], folder: str | Path, *, title: str, png: bool = True) -> str | None:
    """Write `curves.html`, and `curves.png` if a browser is installed; see `write_drawing`.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If there are no records.
    """
    return write_drawing(curves_figure(records, title=title), folder, "curves", title=title, height=HEIGHT, png=png)


def _values(line: _Line, records: Sequence[EpochRecord]) -> list[float]:
    return [value for record in records if (value := getattr(record, line.field)) is not None]


def _trace(line: _Line, number_format: str, records: Sequence[EpochRecord], legend: str) -> go.Scatter:
    top5 = [getattr(record, line.field.replace("top1", "top5")) for record in records]
    return go.Scatter(
        name=line.name,
        x=[record.epoch for record in records],
        y=[getattr(record, line.field) for record in records],
        customdata=["" if value is None or "top1" not in line.field else f", top-5 {value:.2f}" for value in top5],
        mode="lines+markers" if len(records) <= MOST_MARKERS else "lines",
        line={"color": line.colour, "width": 2, "dash": line.dash},
        marker={"size": 6},
        legend=legend,
        hovertemplate=f"%{{y:{number_format}}}%{{customdata}}",
    )


def _format_panel(
    figure: go.Figure, panel: _Panel, records: Sequence[EpochRecord], legend: str, cell: dict[str, int]
) -> None:
    first, last = records[0].epoch, records[-1].epoch
    pad = max(0.5, 0.02 * (last - first))
    figure.update_xaxes(
        range=[first - pad, last + pad],
        dtick=1 if last - first < 12 else None,  # plotly would label half epochs
        matches="x",
        title={"text": "epoch", "standoff": 4, "font": {"size": 13}},
        unifiedhovertitle={"text": "epoch %{x}"},
        **cell,
    )
    y_axis: dict[str, Any] = {"rangemode": "tozero" if panel is _PANELS[-1] else "normal"}
    cut = ""
    if panel is _PANELS[0] and (y_range := _loss_range(panel, records)):
        y_axis["range"] = y_range
        cut = f"; values above {y_range[1]:.3g} not shown"
    figure.update_yaxes(exponentformat="power", **y_axis, **cell)
    subplot = figure.get_subplot(**cell)
    corner = {"x": subplot.xaxis.domain[0], "y": subplot.yaxis.domain[1], "xanchor": "left", "yanchor": "bottom"}
    heading = {"text": f"<b>{panel.title}</b>{cut}", "yshift": 24, "showarrow": False}
    figure.add_annotation(xref="paper", yref="paper", **heading, **corner)
    figure.update_layout({legend: {"orientation": "h", **corner}})


def _loss_range(panel: _Panel, records: Sequence[EpochRecord]) -> tuple[float, float] | None:
    """Cut off validation losses of thousands, which BatchNorm statistics of the first epochs can cause."""
    values = [value for line in panel.lines for value in _values(line, records) if math.isfinite(value)]
    low, high = min(values), 1.5 * max(record.train_loss for record in records)
    return (low - 0.05 * (high - low), high) if low < high < max(values) else None


def _subtitle(records: Sequence[EpochRecord], ib_start: EpochRecord | None) -> str:
    best = select_best(records)
    weights = "averaged weights, EMA" if best.weights == "EMA" else "weights as trained"
    text = f"best top-1 {best.top1:.2f} % after epoch {best.epoch} of {records[-1].epoch} ({weights})"
    if ib_start is not None:
        line = "" if ib_start is records[0] else " (dashed line)"
        text += f"; IB loss from epoch {ib_start.epoch} on{line}, weight {ib_start.ib_weight:g}"
    return text
