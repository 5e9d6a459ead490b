"""Plot of the layers: their keep ratios along the front.

The report's chapter on the layers explains it.
"""

import textwrap
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ltmsearch.errors import check_choice
from ltmsearch.io.figures import GREY, TEMPLATE
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.reporting.front_table import RECOMMENDED
from ltmsearch.reporting.numbers import cost_text, points
from ltmsearch.reporting.pareto_plot import DASHBOARD, Place
from ltmsearch.search.records import TrialRecord, form_key, form_letters

LIGHT = "#b5b5b5"
# One hue that only darkens, for colour-blind readers and for print; only no merging is white.
_SCALE = [[0.0, "#ffffff"], [0.001, "#e6f0f8"], [0.5, "#6aa9d4"], [1.0, "#08306b"]]
_ROW, _LINE = 24, 19
"""Heights in points: of a layer, and of a line of text above."""
_ABOVE, _BELOW, _PAGE_ABOVE = 80, 105, 40
"""Heights in points: of the title and heading, of the text below the columns, and of the heading in the report."""
_CHARACTERS = 130
"""Length of a line of text above."""
FEW = 4
"""Most points of a front whose columns have space for units."""
_NAMES, _COLUMN = 220, 62
"""Widths in points: of the layers' names with the margins, and of a column."""


def layers_figure(findings: Findings, *, title: str = "", place: Place = "file") -> go.Figure:
    """Draw the keep ratio of each layer in each point of the front. The report shows no title."""
    check_choice("the place of a figure", place, Place)
    figure = go.Figure(_keep_ratios(findings))
    figure.update_layout(template=TEMPLATE, font_size=13, showlegend=False)
    rows, ends = list(findings.layers), [len(findings.layers) - 0.5, -0.5]  # the first layer at the top
    named = {"type": "category", "categoryorder": "array", "categoryarray": rows, "tickvals": rows}
    figure.update_yaxes(range=ends, ticks="", showline=False, showgrid=False, ticklabelstandoff=5, **named)
    below = {"text": _below(findings) if len(findings.front) > FEW else "", "font": {"size": 13}}
    plain = {"type": "category", "ticks": "", "tickangle": 0, "showline": False, "showgrid": False}
    figure.update_xaxes(title=below, visible=bool(findings.front), **plain)
    if findings.front:  # visible between the cells, to separate white rows
        ground = {"xref": "x domain", "yref": "y domain", "layer": "below", "line": {"width": 0}}
        figure.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, fillcolor=LIGHT, **ground)
    _add_words(figure, findings)
    _fit(figure, findings, title, place)
    return figure


def height(findings: Findings, place: Place = "file") -> int:
    """Height of the figure in points."""
    check_choice("the place of a figure", place, Place)
    return _above(findings, place) + _ROW * max(len(findings.layers), 8) + _BELOW


def least_width(findings: Findings) -> int:
    """Width in points in which the labels of the columns do not meet."""
    return _NAMES + _COLUMN * len(findings.front)


def _above(findings: Findings, place: Place) -> int:
    return _PAGE_ABOVE if place == "page" else _ABOVE + _LINE * len(_lines(findings))


def _lines(findings: Findings) -> Sequence[str]:
    return textwrap.wrap(" ".join(sentences(findings)), _CHARACTERS)


def _below(findings: Findings) -> str:
    unit = findings.axis.unit
    return f"front, lowest cost first: trial, {unit}, top-1 less the plain network's in points"


def _add_words(figure: go.Figure, findings: Findings) -> None:
    words = f"<b>{findings.amount}{form_key(findings.front)}, white: no merging</b>"
    corner = {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    figure.add_annotation(text=words, showarrow=False, yshift=4, **corner)
    if not findings.front:
        middle = {"x": 0.5, "xref": "paper", "y": 0.5, "yref": "paper", "font": {"color": GREY}}
        figure.add_annotation(text="no front yet", showarrow=False, **middle)


def _fit(figure: go.Figure, findings: Findings, title: str, place: Place) -> None:
    if place == "dashboard":
        figure.update_layout(DASHBOARD, margin={"l": 10, "r": 15, "t": 60, "b": 75}, title_text=title)
        if findings.front:
            columns = [_point(r, findings, units=False) for r in findings.front]
            figure.update_xaxes(tickvals=list(range(len(columns))), ticktext=columns)
            figure.update_xaxes(title_text=_below(findings).replace(": ", ":<br>"), title_font_size=11)
        figure.update_annotations(font_size=11)
        return
    figure.update_layout(margin={"l": 60, "r": 25, "t": _above(findings, place), "b": _BELOW})
    if place == "file":
        small = {"text": "<br>".join(_lines(findings)), "font": {"size": 13, "color": GREY}}
        at = {"x": 0.01, "y": 1, "yanchor": "top", "pad": {"t": 15}}
        figure.update_layout(title={"text": title, "subtitle": small, **at})


def _keep_ratios(findings: Findings) -> go.Heatmap:
    merged = [[1 - record.kept_share(layer) for record in findings.front] for layer in findings.layers]
    letters = form_letters(findings.front)
    words = [[_cell(record, layer, letters) for record in findings.front] for layer in findings.layers]
    return go.Heatmap(
        x=[_point(record, findings, units=len(findings.front) <= FEW) for record in findings.front],
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


def _point(record: TrialRecord, findings: Findings, *, units: bool) -> str:
    axis, verdict, size = findings.axis, findings.verdict, record.schedule.img_size
    mark = f"{RECOMMENDED} " if verdict is not None and verdict.recommended == record.trial else ""
    number, cost, difference = str(record.trial), cost_text(record, axis), points(record.difference)
    if units:
        number, cost = f"trial {number}", f"{cost} {axis.unit}"
        difference += " points" if difference else ""
    else:
        cost = f"{record.cost(axis.name):.{2 if axis.name == 'latency_ms' else 3}f}"
    lines = [f"{mark}{number}", cost, difference, "" if size is None else f"{size} px"]
    return "<br>".join(filter(None, lines))
