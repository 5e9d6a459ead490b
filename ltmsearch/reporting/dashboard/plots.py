"""A study's plots at the size that the dashboard gives them: half of its page, 450 points high."""

from collections.abc import Sequence
from typing import Any

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.layer_plot import layers_figure
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.search.records import TrialRecord, select_front

HEIGHT = 450
"""Of the place of a plot, in points; its width is that of half a window, from 550 points on."""
_TITLE = {"x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"l": 10, "t": 10}}


def plots(records: Sequence[TrialRecord], axis: CostAxis) -> dict[str, Any]:
    """The plots of a study by their names in the dashboard, as plotly's figures.

    Args:
        records: All trials.
        axis: What the front weighs against top-1.
    """
    return {"front": _front(records, axis), "layers": _layers(records, axis)}


def _front(records: Sequence[TrialRecord], axis: CostAxis) -> Any:
    figure = front_figure(records, title="Front with the final weights", axis=axis)
    reads = figure.layout.title.subtitle.text
    figure.update_layout(
        height=HEIGHT,
        font_size=11,
        margin={"l": 50, "r": 15, "t": 72, "b": 95},
        title={
            **_TITLE,
            "font": {"size": 15},
            "subtitle": {"text": reads.replace("; ", ";<br>"), "font": {"size": 11}},
        },
        legend={"font": {"size": 11}, "x": 0, "xref": "container"},
        xaxis_title_text=axis.title.partition(" (")[0],
    )
    named = len(select_front(records, axis.name))  # the words of the front come first; baselines have none here
    figure.update_traces(selector={"mode": "markers+text"}, textfont_size=11)
    for words in figure.select_traces(selector={"mode": "markers+text"}):
        words.text = [*words.text[:named], *[""] * (len(words.text) - named)]
    return figure


def _layers(records: Sequence[TrialRecord], axis: CostAxis) -> Any:
    findings = find(records, axis.name)
    figure = layers_figure(findings, title="Layers of the front", axis=axis)
    figure.update_layout(
        height=HEIGHT,
        font_size=11,
        margin={"l": 10, "r": 15, "t": 80, "b": 75},
        title={**_TITLE, "font": {"size": 15}, "subtitle": {"text": ""}},
    )
    if findings.front:
        short = [f"{r.trial}<br>{r.cost(axis.name):.3f}<br>{r.rescored_top1:.1f}" for r in findings.front]
        under = f"front, cheapest first<br>trial, {axis.unit}, top-1 %"
        figure.update_xaxes(
            tickvals=list(range(len(short))), ticktext=short, title_text=under, title_font_size=11, row=1, col=1
        )
    for column in (2, 3):
        figure.update_xaxes(nticks=4, tickangle=0, row=1, col=column)
    for words in figure.select_annotations():  # headings in two lines, or those of the columns would meet
        words.update(text=words.text.replace(", ", ",<br>").replace(" by ", "<br>by "), align="left", font_size=11)
    return figure
