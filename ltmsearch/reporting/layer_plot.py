"""What a search learned of each layer, as a picture: what the front merges, what that costs and what it saves.

How the picture reads: a row for each layer, in the order of the net. On the left a column for each point of the front,
cheapest first, with the keep ratio of every layer; white is plain, and the darker, the fewer tokens are kept. In the
middle what merging at the layer adds to the loss, with one standard error each way: vermilion where it can be told from
zero, grey where not. On the right what it saves.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.config.objective import CostAxis
from ltmsearch.io.figures import WrittenDrawing, write_drawing
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.search.records import TrialRecord, form_key

_BLACK, _GREY, _LIGHT, _PALE, _BLUE, _RED = "#000000", "#6b6b6b", "#b5b5b5", "#e4e4e4", "#0072B2", "#D55E00"
# One hue that only darkens, for colour-blind readers and for print; white is plain alone.
_SCALE = [[0.0, "#ffffff"], [0.001, "#e6f0f8"], [0.5, "#6aa9d4"], [1.0, "#08306b"]]
_ERROR = {"color": _BLACK, "thickness": 1.2, "width": 3}
_ROW, _LINE = 24, 19
"""Heights in points: of a layer, and of a line of text above."""
_ABOVE, _BELOW = 80, 105
"""Heights in points: of the title and headings, and of what stands under the columns."""
_CHARACTERS = 160
"""In a line of text above."""
FEW = 4
"""Up to so many points have room for units beneath them."""


def layers_figure(findings: Findings, *, title: str, axis: CostAxis) -> go.Figure:
    """Draws the findings; how they read is told at the top of this module.

    Args:
        findings: Of a study.
        title: First line over the plot.
        axis: What the front's costs are.
    """
    heading = [f"keep ratio{form_key(findings.front)}, white: plain", "loss added by merging, nats", "GFLOPs saved"]
    widths = [0.5, 0.3, 0.2]
    figure = make_subplots(1, 3, shared_yaxes=True, column_widths=widths, horizontal_spacing=0.025)
    figure.update_layout(_layout(findings, title))
    figure.add_trace(_keep_ratios(findings, axis), row=1, col=1)
    figure.add_trace(_losses(findings), row=1, col=2)
    figure.add_trace(_savings(findings), row=1, col=3)
    rows, ends = list(findings.layers), [len(findings.layers) - 0.5, -0.5]  # the first layer on top
    named = {"type": "category", "categoryorder": "array", "categoryarray": rows, "tickvals": rows}
    figure.update_yaxes(range=ends, ticks="", showline=False, **named)
    points = f"front, cheapest first<br>trial, {axis.unit}, top-1 %" if len(findings.front) > FEW else ""
    under = {"text": points, "font": {"size": 13}}
    figure.update_xaxes(title=under, type="category", ticks="", tickangle=0, showline=False, row=1, col=1)
    if findings.front:  # seen between the cells, or white rows could not be told apart
        ground = {"xref": "x domain", "yref": "y domain", "layer": "below", "line": {"width": 0}}
        figure.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, fillcolor=_LIGHT, **ground)
    zero = {"zeroline": True, "zerolinecolor": _BLACK, "zerolinewidth": 1, "showgrid": True, "gridcolor": _PALE}
    for column in (2, 3):
        fitted = findings.importance.threshold is not None
        figure.update_xaxes(visible=fitted, nticks=5, **zero, row=1, col=column)
    for column, words in enumerate(heading, start=1):
        start = figure.get_subplot(1, column).xaxis.domain[0]
        corner = {"x": start, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=f"<b>{words}</b>", showarrow=False, yshift=4, **corner)
    for column, words in ((1, "" if findings.front else "no front yet"), (2, _missing(findings))):
        middle = {"x": sum(figure.get_subplot(1, column).xaxis.domain) / 2, "xref": "paper", "y": 0.5, "yref": "paper"}
        if words:
            figure.add_annotation(text=words, showarrow=False, font={"color": _GREY}, **middle)
    return figure


def write_layers(
    findings: Findings, folder: str | Path, *, title: str, axis: CostAxis, png: bool = True
) -> WrittenDrawing:
    """Writes `layers.html` and, where a browser is found, `layers.png`, as `write_drawing` does.

    Args:
        findings: Of a study.
        folder: Where to write; made when missing.
        title: First line over the plot.
        axis: What the front's costs are.
        png: Whether a PNG is wanted; it takes some seconds.

    Raises:
        OSError: The folder cannot be written.
    """
    figure = layers_figure(findings, title=title, axis=axis)
    height = _above(findings) + _ROW * max(len(findings.layers), 8) + _BELOW
    return write_drawing(figure, folder, "layers", title=title, height=height, png=png)


def _keep_ratios(findings: Findings, axis: CostAxis) -> go.Heatmap:
    merged = [[1 - record.schedule.keep_ratios[layer] for record in findings.front] for layer in findings.layers]
    words = [[_cell(record, layer) for record in findings.front] for layer in findings.layers]
    return go.Heatmap(
        x=[_point(record, axis, units=len(findings.front) <= FEW) for record in findings.front],
        y=findings.layers,
        z=merged,
        zmin=0,
        zmax=0.8,
        colorscale=_SCALE,
        showscale=False,
        text=words,
        texttemplate="%{text}",
        xgap=1,
        ygap=1,
        hovertemplate="%{y}<br>%{x}<br>keep ratio %{text}<extra></extra>",
    )


def _cell(record: TrialRecord, layer: str) -> str:
    return record.short_ratio(layer) if record.schedule.keep_ratios[layer] < 1 else ""


def _point(record: TrialRecord, axis: CostAxis, *, units: bool) -> str:
    digits = 2 if axis.name == "latency_ms" else 4 if units else 3
    cost, top1 = f"{record.cost(axis.name):.{digits}f}", f"{record.rescored_top1:.1f}"
    name = f"trial {record.trial}" if units else str(record.trial)
    return "<br>".join([name, f"{cost} {axis.unit}", f"{top1} %"] if units else [name, cost, top1])


def _losses(findings: Findings) -> go.Bar:
    shown = [e for e in findings.importance.layers if e.loss is not None]
    return go.Bar(
        x=[e.loss.value for e in shown if e.loss],
        y=[e.layer for e in shown],
        error_x={"array": [e.loss.se for e in shown if e.loss], **_ERROR},
        orientation="h",
        marker={"color": [_RED if e.distinct else _LIGHT for e in shown]},
        customdata=[
            (e.keep_ratio, e.loss.se, e.top1.value, e.top1.se, "" if e.distinct else "<br>not to be told from zero")
            for e in shown
            if e.loss and e.top1
        ],
        hovertemplate="%{y} to %{customdata[0]:.3g}<br>loss %{x:+.4f} ± %{customdata[1]:.4f} nats<br>"
        "top-1 %{customdata[2]:+.1f} ± %{customdata[3]:.1f} points%{customdata[4]}<extra></extra>",
    )


def _savings(findings: Findings) -> go.Bar:
    shown = [e for e in findings.importance.layers if e.gflops_saved is not None]
    return go.Bar(
        x=[e.gflops_saved.value for e in shown if e.gflops_saved],
        y=[e.layer for e in shown],
        error_x={"array": [e.gflops_saved.se for e in shown if e.gflops_saved], **_ERROR},
        orientation="h",
        marker={"color": _BLUE},
        customdata=[e.keep_ratio for e in shown],
        hovertemplate="%{y} to %{customdata:.3g}<br>saves %{x:.4f} GFLOPs<extra></extra>",
    )


def _missing(findings: Findings) -> str:
    importance = findings.importance
    if importance.threshold is not None:
        return ""
    return f"{importance.trials} scored trials,<br>too few to tell layers apart:<br>it takes {importance.needed}"


def _lines(findings: Findings) -> Sequence[str]:
    return textwrap.wrap(" ".join(sentences(findings)), _CHARACTERS)


def _above(findings: Findings) -> int:
    return _ABOVE + _LINE * len(_lines(findings))


def _layout(findings: Findings, title: str) -> dict[str, Any]:
    small = {"text": "<br>".join(_lines(findings)), "font": {"size": 13, "color": _GREY}}
    return {
        "template": "simple_white",
        "title": {"text": title, "subtitle": small, "x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 15}},
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": _BLACK},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": _BLACK}},
        "margin": {"l": 60, "r": 25, "t": _above(findings), "b": _BELOW},
        "showlegend": False,
        "bargap": 0.35,
    }
