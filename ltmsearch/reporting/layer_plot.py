"""Plot of the layers: keep ratios along the front, and the loss and savings of merging.

The report's chapter on the layers explains it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ltmsearch.config.objective import CostAxis
from ltmsearch.errors import check_choice
from ltmsearch.io.figures import BLACK, BLUE, GREY, PALE, RED, TEMPLATE
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.reporting.importance import Estimate
from ltmsearch.reporting.numbers import cost_text
from ltmsearch.reporting.pareto_plot import DASHBOARD, Place
from ltmsearch.search.records import TrialRecord, form_key, form_letters

LIGHT = "#b5b5b5"
# One hue that only darkens, for colour-blind readers and for print; only no merging is white.
_SCALE = [[0.0, "#ffffff"], [0.001, "#e6f0f8"], [0.5, "#6aa9d4"], [1.0, "#08306b"]]
_ROW, _LINE = 24, 19
"""Heights in points: of a layer, and of a line of text above."""
_ABOVE, _BELOW, _PAGE_ABOVE = 80, 105, 40
"""Heights in points: of the title and headings, of the text below the columns, and of the headings in the report."""
_CHARACTERS = 160
"""Length of a line of text above."""
FEW = 4
"""Most points of a front whose columns have space for units."""


def layers_figure(findings: Findings, *, title: str = "", axis: CostAxis, place: Place = "file") -> go.Figure:
    """Draw the findings. The report shows no title."""
    check_choice("the place of a figure", place, Place)
    fitted = findings.importance.threshold is not None
    figure = make_subplots(1, 3, shared_yaxes=True, column_widths=[0.5, 0.3, 0.2], horizontal_spacing=0.025)
    figure.update_layout(template=TEMPLATE, font_size=13, showlegend=False, bargap=0.35)
    figure.add_trace(_keep_ratios(findings, axis), row=1, col=1)
    figure.add_trace(_losses(findings), row=1, col=2)
    figure.add_trace(_savings(findings), row=1, col=3)
    rows, ends = list(findings.layers), [len(findings.layers) - 0.5, -0.5]  # the first layer at the top
    named = {"type": "category", "categoryorder": "array", "categoryarray": rows, "tickvals": rows}
    figure.update_yaxes(range=ends, ticks="", showline=False, showgrid=False, **named)
    points = f"front, lowest cost first<br>trial, {axis.unit}, top-1 %" if len(findings.front) > FEW else ""
    below = {"text": points, "font": {"size": 13}}
    plain = {"type": "category", "ticks": "", "tickangle": 0, "showline": False, "showgrid": False}
    figure.update_xaxes(title=below, **plain, row=1, col=1)
    if findings.front:  # visible between the cells, to separate white rows
        ground = {"xref": "x domain", "yref": "y domain", "layer": "below", "line": {"width": 0}}
        figure.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, fillcolor=LIGHT, **ground)
    zero = {"zeroline": True, "zerolinecolor": BLACK, "zerolinewidth": 1, "gridcolor": PALE, "nticks": 5}
    for column in (2, 3):
        figure.update_xaxes(visible=fitted, **zero, row=1, col=column)
    _add_words(figure, findings)
    _fit(figure, findings, title, axis, place)
    return figure


def height(findings: Findings, place: Place = "file") -> int:
    """Height of the figure in points."""
    check_choice("the place of a figure", place, Place)
    return _above(findings, place) + _ROW * max(len(findings.layers), 8) + _BELOW


def _above(findings: Findings, place: Place) -> int:
    return _PAGE_ABOVE if place == "page" else _ABOVE + _LINE * len(_lines(findings))


def _lines(findings: Findings) -> Sequence[str]:
    return textwrap.wrap(" ".join(sentences(findings)), _CHARACTERS)


def _add_words(figure: go.Figure, findings: Findings) -> None:
    key = form_key(findings.front)
    headings = (f"{findings.amount}{key}, white: no merging", "loss added by merging, nats", "GFLOPs saved")
    for column, words in enumerate(headings, start=1):
        start = figure.get_subplot(1, column).xaxis.domain[0]
        corner = {"x": start, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=f"<b>{words}</b>", showarrow=False, yshift=4, **corner)
    importance = findings.importance
    few = f"{importance.trials} scored trials,<br>too few for estimates:<br>{importance.needed} are needed"
    missing = ("" if findings.front else "no front yet", few if importance.threshold is None else "")
    for column, words in enumerate(missing, start=1):
        middle = {"x": sum(figure.get_subplot(1, column).xaxis.domain) / 2, "xref": "paper", "y": 0.5, "yref": "paper"}
        if words:
            figure.add_annotation(text=words, showarrow=False, font={"color": GREY}, **middle)


def _fit(figure: go.Figure, findings: Findings, title: str, axis: CostAxis, place: Place) -> None:
    if place == "dashboard":
        figure.update_layout(DASHBOARD, margin={"l": 10, "r": 15, "t": 80, "b": 75}, title_text=title)
        if findings.front:
            points = [_point(r, axis, units=False) for r in findings.front]
            below = f"front, lowest cost first<br>trial, {axis.unit}, top-1 %"
            ticks = {"tickvals": list(range(len(points))), "ticktext": points}
            figure.update_xaxes(**ticks, title_text=below, title_font_size=11, row=1, col=1)
        for column in (2, 3):
            figure.update_xaxes(nticks=4, tickangle=0, row=1, col=column)
        for words in figure.select_annotations():  # headings in two lines, so that those of the columns do not meet
            text = words.text.replace(", ", ",<br>").replace(" by ", "<br>by ")
            words.update(text=text, align="left", font_size=11)
        return
    figure.update_layout(margin={"l": 60, "r": 25, "t": _above(findings, place), "b": _BELOW})
    if place == "file":
        small = {"text": "<br>".join(_lines(findings)), "font": {"size": 13, "color": GREY}}
        at = {"x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 15}}
        figure.update_layout(title={"text": title, "subtitle": small, **at})


def _keep_ratios(findings: Findings, axis: CostAxis) -> go.Heatmap:
    merged = [[1 - record.kept_share(layer) for record in findings.front] for layer in findings.layers]
    letters = form_letters(findings.front)
    words = [[_cell(record, layer, letters) for record in findings.front] for layer in findings.layers]
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
        hovertemplate="%{y}<br>%{x}<br>" + findings.amount + " %{text}<extra></extra>",
    )


def _cell(record: TrialRecord, layer: str, letters: Mapping[str, str]) -> str:
    return record.short_ratio(layer, letters) if record.schedule.keep_ratios[layer] < 1 else ""


def _point(record: TrialRecord, axis: CostAxis, *, units: bool) -> str:
    if units:
        return f"trial {record.trial}<br>{cost_text(record, axis)} {axis.unit}<br>{record.rescored_top1:.1f} %"
    digits = 2 if axis.name == "latency_ms" else 3
    return f"{record.trial}<br>{record.cost(axis.name):.{digits}f}<br>{record.rescored_top1:.1f}"


def _bars(shown: Sequence[tuple[str, Estimate]], marker: Any, hover: Sequence[str]) -> go.Bar:
    return go.Bar(
        x=[estimate.value for _, estimate in shown],
        y=[layer for layer, _ in shown],
        error_x={"array": [e.se for _, e in shown], "color": BLACK, "thickness": 1.2, "width": 3},
        orientation="h",
        marker={"color": marker},
        hovertext=hover,
        hoverinfo="text",
    )


def _losses(findings: Findings) -> go.Bar:
    shown = [(e, e.loss, e.top1) for e in findings.importance.layers if e.loss is not None and e.top1 is not None]
    hover = [
        f"{e.layer} to {e.keep_ratio:.3g}<br>loss {loss.value:+.4f} ± {loss.se:.4f} nats<br>"
        f"top-1 {top1.value:+.1f} ± {top1.se:.1f} points" + ("" if e.distinct else "<br>not significant")
        for e, loss, top1 in shown
    ]
    colours = [RED if e.distinct else LIGHT for e, _, _ in shown]
    return _bars([(e.layer, loss) for e, loss, _ in shown], colours, hover)


def _savings(findings: Findings) -> go.Bar:
    shown = [(e, e.gflops_saved) for e in findings.importance.layers if e.gflops_saved is not None]
    hover = [f"{e.layer} to {e.keep_ratio:.3g}<br>saves {saved.value:.4f} GFLOPs" for e, saved in shown]
    return _bars([(e.layer, saved) for e, saved in shown], BLUE, hover)
