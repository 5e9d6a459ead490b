"""Smaller figures of a report.

Circles are searched trials, squares start-up trials, diamonds baselines. Rings mark the trials of the front.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import plotly.graph_objects as go

from ltmsearch.config.objective import CostAxis, Measure
from ltmsearch.engine.paired import Difference
from ltmsearch.io.figures import BLACK, BLUE, GREY, RED, TEMPLATE
from ltmsearch.reporting.convergence import QUANTITIES, Growth, measured
from ltmsearch.reporting.numbers import costs_text, duration
from ltmsearch.reporting.pareto_plot import RING, STYLES, describe
from ltmsearch.search.records import Kind, TrialRecord


def growth_figure(growth: Growth, axis: CostAxis) -> go.Figure:
    """Draw the hypervolume after each trial as steps, with a mark where a trial raised it."""
    units = " × ".join([*(each.unit for each in axis.axes), "nats"])
    figure = _figure("trials, without rejected ones", f"hypervolume, {units}")
    line = {"color": BLACK, "width": 1.5, "shape": "hv"}
    places = list(range(1, len(growth.trials) + 1))
    figure.add_scatter(x=places, y=growth.values, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for kind in get_args(Kind):
        members = [(place, record, value) for place, record, value in growth.raised if record.kind == kind]
        words = [
            "<br>".join(
                (describe(r), costs_text(r, axis), measured(r, axis.measure, named=True), f"hypervolume {v:.4g}")
            )
            for _, r, v in members
        ]
        figure.add_trace(_marks(kind, [place for place, _, _ in members], [value for _, _, value in members], words))
    figure.update_xaxes(range=[0.5, len(places) + 0.5], **({"dtick": 1} if len(places) < 12 else {}))
    figure.update_yaxes(rangemode="tozero")
    return figure


def comparison_figure(
    records: Sequence[TrialRecord], x: str, y: str, *, front: Collection[int], budget: float | None = None
) -> go.Figure:
    """Draw two quantities in the same unit, with a dashed line where both are equal, and a budget on both axes."""
    figure, unit = _scatter(records, x, y, bars=budget is not None), QUANTITIES[x].unit
    ends = [getattr(r, name) for r in records for name in (x, y)]
    pad = 0.08 * (max(ends) - min(ends)) or 0.1 * max(ends) or 1.0
    view = [min(ends) - pad, max(ends) + pad]
    line = {"color": GREY, "width": 1.5, "dash": "dash"}
    figure.add_scatter(name="equal", x=view, y=view, mode="lines", line=line, hoverinfo="skip")
    figure.update_xaxes(range=view)
    figure.update_yaxes(range=view)
    if ringed := [r for r in records if r.trial in front]:
        points = {"x": [getattr(r, x) for r in ringed], "y": [getattr(r, y) for r in ringed]}
        figure.add_scatter(name="front", mode="markers", marker=RING, hoverinfo="skip", **points)
    if budget is not None:
        dotted = {"color": BLACK, "width": 1, "dash": "dot"}
        figure.add_vline(x=budget, line=dotted)
        figure.add_hline(y=budget, line=dotted, annotation_text=f"budget {budget:g} {unit}")
    return figure


def information_figure(records: Sequence[TrialRecord], term: str, measure: Measure) -> go.Figure:
    """Draw the measure of when trials ran over an information term."""
    figure = _scatter(records, term, measure)
    figure.update_xaxes(nticks=5, exponentformat="power", minexponent=2)
    return figure.update_layout(showlegend=False, margin_t=15)


def intervals_figure(rows: Sequence[tuple[TrialRecord, Difference]], axis: CostAxis) -> go.Figure:
    """Draw a row per network, the first at the top: a difference of top-1 with its interval, and a line at 0."""
    figure = _figure("top-1 less the best baseline's, points", "")
    named = [f"{record.name}<br>{axis.text(record.cost(axis.name))}" for record, _ in rows]
    figure.add_vline(x=0, line={"color": RED, "width": 1.5})
    for kind in get_args(Kind):
        own = [(name, record, d) for name, (record, d) in zip(named, rows, strict=True) if record.kind == kind]
        words = [f"{describe(r)}<br>{costs_text(r, axis)}<br>{d} points" for _, r, d in own]
        marks = _marks(kind, [d.value for _, _, d in own], [name for name, _, _ in own], words)
        half = [d.interval()[1] - d.value for _, _, d in own]
        marks.error_x = {"array": half, "color": GREY, "thickness": 1.5}
        figure.add_trace(marks)
    order = {"categoryorder": "array", "categoryarray": named, "autorange": "reversed"}
    figure.update_yaxes(type="category", ticks="", showline=False, automargin=True, **order)
    return figure


def times_figure(seconds: Mapping[str, float]) -> go.Figure:
    """Draw a bar for each part of a run, the first at the top."""
    figure = _figure("seconds", "")
    figure.add_bar(
        x=list(seconds.values()),
        y=list(seconds),
        orientation="h",
        marker={"color": BLUE},
        text=[duration(value) for value in seconds.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", ticks="", showline=False, showgrid=False, automargin=True)
    figure.update_xaxes(range=[0, 1.35 * max(seconds.values(), default=1.0) or 1.0])  # space for the labels
    return figure.update_layout(showlegend=False, bargap=0.35, margin_t=10)


def _scatter(records: Sequence[TrialRecord], x: str, y: str, *, bars: bool = False) -> go.Figure:
    figure = _figure(*(f"{QUANTITIES[name].title}, {QUANTITIES[name].unit}" for name in (x, y)))
    for kind in get_args(Kind):
        chosen = [r for r in records if r.kind == kind]
        words = [f"{describe(r)}<br>{measured(r, x, named=True)}<br>{measured(r, y, named=True)}" for r in chosen]
        marks = _marks(kind, [getattr(r, x) for r in chosen], [getattr(r, y) for r in chosen], words)
        if bars:
            errors = [getattr(r, QUANTITIES[x].error) or 0.0 for r in chosen]
            marks.error_x = {"array": errors, "color": GREY, "thickness": 1}
        figure.add_trace(marks)
    return figure


def _marks(kind: Kind, x: Sequence[float], y: Sequence[float] | Sequence[str], words: Sequence[str]) -> go.Scatter:
    symbol, colour, size = STYLES[kind]
    marker = {"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": "#ffffff"}}
    shown = {"hovertext": words, "hoverinfo": "text", "showlegend": bool(x)}
    return go.Scatter(name=kind, x=x, y=y, mode="markers", marker=marker, **shown)


def _figure(x: str, y: str) -> go.Figure:
    layout: dict[str, Any] = {
        "template": TEMPLATE,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 65, "r": 20, "t": 40, "b": 55},
        "xaxis_title_text": x,
        "yaxis_title_text": y,
    }
    return go.Figure().update_layout(**layout)
