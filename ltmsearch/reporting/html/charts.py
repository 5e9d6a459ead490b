"""The smaller figures of a report: how a search went, from the records of `course` and the times of a run.

How they read: marks are those of the front's picture, circles searched trials, squares start-up trials, diamonds
baselines; where a figure has a ring, it is around a trial of the front. Dashed lines are where both axes are equal.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, get_args

import plotly.graph_objects as go

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.convergence import Growth, Pair
from ltmsearch.reporting.html.parts import duration, with_error
from ltmsearch.reporting.pareto_plot import STYLES
from ltmsearch.search.records import Kind, TrialRecord

_BLACK, _GREY, _PALE, _BLUE = "#000000", "#6b6b6b", "#ececec", "#0072B2"


def growth_figure(growth: Growth, axis: CostAxis) -> go.Figure:
    """Draws the hypervolume after each trial as steps, with a mark where a trial raised it."""
    places = list(range(1, len(growth.trials) + 1))
    figure = go.Figure(layout=_layout("trials, without rejected ones", f"hypervolume, {axis.unit} × points of top-1"))
    line = {"color": _BLACK, "width": 1.5, "shape": "hv"}
    steps: dict[str, Any] = {"mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"}
    figure.add_scatter(x=places, y=growth.values, **steps)
    for kind in get_args(Kind):
        members = [(place, record, value) for place, record, value in growth.raised if record.kind == kind]
        words = [
            f"{_name(r)}<br>{axis.text(r.cost(axis.name))}, top-1 {r.top1:.1f} %<br>hypervolume {value:.4g}"
            for _, r, value in members
        ]
        figure.add_trace(_marks(kind, [place for place, _, _ in members], [value for _, _, value in members], words))
    figure.update_xaxes(range=[0.5, len(places) + 0.5], **({"dtick": 1} if len(places) < 12 else {}))
    figure.update_yaxes(rangemode="tozero")
    return figure


def scores_figure(pairs: Sequence[Pair], front: Collection[int]) -> go.Figure:
    """Draws first against final scores.

    Args:
        pairs: Of `first_and_final`.
        front: Numbers of the trials on the front.
    """
    figure = go.Figure(layout=_layout("top-1 when the trial ran, %", "top-1 with the final weights, %"))
    _diagonal(figure, pairs)
    _rings(figure, [pair for pair in pairs if pair.record.trial in front])

    def words(pair: Pair) -> str:
        r = pair.record
        return f"{_name(r)}<br>when it ran {with_error(pair.x, r.top1_se)} %<br>final {r.score} %"

    _by_kind(figure, pairs, words)
    return figure


def latency_figure(pairs: Sequence[Pair], axis: CostAxis, front: Collection[int]) -> go.Figure:
    """Draws predicted against measured latency, with the budget on both axes.

    Args:
        pairs: Of `predicted_and_measured`.
        axis: With the budget.
        front: Numbers of the trials on the front.
    """
    figure = go.Figure(layout=_layout("measured, ms", "predicted, ms"))
    _diagonal(figure, pairs)
    _rings(figure, [pair for pair in pairs if pair.record.trial in front])

    def words(pair: Pair) -> str:
        measured = with_error(pair.x, pair.record.latency_measured_se_ms, digits=2)
        return (
            f"{_name(pair.record)}<br>measured {measured} ms<br>predicted {pair.y:.2f} ms ({pair.y / pair.x - 1:+.1%})"
        )

    _by_kind(figure, pairs, words, error_x=lambda pair: pair.record.latency_measured_se_ms or 0.0)
    if axis.budget is not None:
        dotted = {"color": _BLACK, "width": 1, "dash": "dot"}
        figure.add_vline(x=axis.budget, line=dotted)
        figure.add_hline(y=axis.budget, line=dotted, annotation_text=f"budget {axis.budget:g} ms")
    return figure


def information_figure(pairs: Sequence[Pair], term: str) -> go.Figure:
    """Draws top-1 over an information term.

    Args:
        pairs: Of `information`.
        term: What the term is called.
    """
    figure = go.Figure(layout=_layout(f"{term}, nats", "top-1 when the trial ran, %"))
    _by_kind(figure, pairs, lambda pair: f"{_name(pair.record)}<br>{term} {pair.x:.4g} nats<br>top-1 {pair.y:.1f} %")
    figure.update_xaxes(nticks=5, exponentformat="power", minexponent=2)
    figure.update_layout(showlegend=False, margin={"t": 15})
    return figure


def times_figure(seconds: Mapping[str, float]) -> go.Figure:
    """Draws one bar for each part of a run, the first on top.

    Args:
        seconds: Part → its wall time.
    """
    figure = go.Figure(layout=_layout("seconds", ""))
    figure.add_bar(
        x=list(seconds.values()),
        y=list(seconds),
        orientation="h",
        marker={"color": _BLUE},
        text=[duration(value) for value in seconds.values()],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", ticks="", showline=False, showgrid=False, automargin=True)
    figure.update_xaxes(range=[0, 1.35 * max(seconds.values(), default=1.0) or 1.0])  # room for the words
    figure.update_layout(showlegend=False, bargap=0.35, margin={"t": 10})
    return figure


def for_page(figure: go.Figure, *, top: int, bottom: int | None = None) -> go.Figure:
    """The same figure without its title, which a page tells in its own words.

    Args:
        figure: What is changed.
        top: Points above the plot.
        bottom: Points below it; None: as they are.
    """
    margin = {"t": top} if bottom is None else {"t": top, "b": bottom}
    return figure.update_layout(title=None, margin=margin)


def _by_kind(figure: go.Figure, pairs: Iterable[Pair], words: Any, error_x: Any = None) -> None:
    pairs = list(pairs)
    for kind in get_args(Kind):
        members = [pair for pair in pairs if pair.record.kind == kind]
        marks = _marks(kind, [p.x for p in members], [p.y for p in members], [words(pair) for pair in members])
        if error_x is not None:
            marks.error_x = {"array": [error_x(pair) for pair in members], "color": _GREY, "thickness": 1}
        figure.add_trace(marks)


def _marks(kind: Kind, x: Sequence[float], y: Sequence[float], words: Sequence[str]) -> go.Scatter:
    symbol, colour, size = STYLES[kind]
    return go.Scatter(
        name=kind,
        x=x,
        y=y,
        mode="markers",
        marker={"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": "#ffffff"}},
        hovertext=words,
        hoverinfo="text",
        showlegend=bool(x),
    )


def _rings(figure: go.Figure, pairs: Sequence[Pair]) -> None:
    ring = {"symbol": "circle-open", "size": 18, "color": _BLACK, "line": {"width": 2}}
    x, y = [pair.x for pair in pairs], [pair.y for pair in pairs]
    if pairs:
        figure.add_scatter(name="front", x=x, y=y, mode="markers", marker=ring, hoverinfo="skip")


def _diagonal(figure: go.Figure, pairs: Sequence[Pair]) -> None:
    """Where both measures are equal; both axes then show the same range."""
    ends = [value for pair in pairs for value in (pair.x, pair.y)]
    if not ends:
        return
    pad = 0.08 * (max(ends) - min(ends)) or 1.0
    view = [min(ends) - pad, max(ends) + pad]
    line = {"color": _GREY, "width": 1.5, "dash": "dash"}
    figure.add_scatter(name="equal", x=view, y=view, mode="lines", line=line, hoverinfo="skip")
    figure.update_xaxes(range=view)
    figure.update_yaxes(range=view)


def _name(record: TrialRecord) -> str:
    return f"<b>trial {record.trial}</b>, {record.label or record.kind}"


def _layout(x: str, y: str) -> dict[str, Any]:
    grid = {"showgrid": True, "gridcolor": _PALE}
    return {
        "template": "simple_white",
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": _BLACK},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": _BLACK}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 65, "r": 20, "t": 40, "b": 55},
        "xaxis": {"title": {"text": x}, **grid},
        "yaxis": {"title": {"text": y}, **grid},
    }
