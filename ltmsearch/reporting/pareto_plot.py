"""Plot of the front among all trials; the report's chapter on the front explains its marks.

x is the cost of the front, y top-1 less the plain network's, in points. If the front was measured, a line leads from
each point to a bar at the measured latency, red if it is over the budget. A second cost of the front is shown as
colour; points that are on the front only by that one have a thinner ring.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import plotly.graph_objects as go

from ltmsearch.config.objective import CostAxis
from ltmsearch.errors import check_choice
from ltmsearch.io.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, TEMPLATE
from ltmsearch.reporting.numbers import breaks_budget, points, trial_facts
from ltmsearch.reporting.pareto_layout import UNSCORED, FrontLayout, Group, Label, front_layout
from ltmsearch.reporting.verdict import Verdict
from ltmsearch.schedules.schedule import amount_of
from ltmsearch.search.curve_points import Curve, CurvePoint
from ltmsearch.search.records import FORM_LETTERS, TrialRecord

Place = Literal["file", "page", "dashboard"]
"""Where a figure is shown: alone, in the report below its own heading, or in half of the dashboard's page."""
DASHBOARD: dict[str, Any] = {
    "height": 450,
    "font": {"size": 11},
    "title": {"x": 0, "xref": "container", "y": 1, "yanchor": "top", "pad": {"l": 10, "t": 10}, "font": {"size": 15}},
}
"""Layout of a plot in the dashboard: half a window wide, at least 550 points."""

# The symbols can be told apart without colour.
STYLES: dict[Group, tuple[str, str, int]] = {
    "searched": ("circle", BLUE, 10),
    "start-up": ("square", ORANGE, 10),
    "baseline": ("diamond", RED, 13),
    "over budget": ("line-ns", GREY, 14),
    "below range": ("line-ns", GREY, 14),
    "failed": ("x-thin", RED, 10),
}
CURVES: dict[Curve, tuple[str, str]] = {
    "one ratio": (RED, "solid"),
    "one number of tokens": (PINK, "dash"),
    "smaller images": (GREEN, "dot"),
}
"""Colour and dash of the curves of baselines."""
RING: dict[str, Any] = {"symbol": "circle-open", "size": 18, "color": BLACK, "line": {"width": 2}}
"""Mark around a trial of the front."""
LABELS = "label"
"""Name of the annotations beside marks."""
LABEL: dict[str, Any] = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.8)", "yanchor": "bottom"}
"""Look of the words beside a line."""


def front_figure(
    records: Iterable[TrialRecord],
    *,
    title: str = "",
    axis: CostAxis,
    verdict: Verdict | None = None,
    curves: Sequence[CurvePoint] = (),
    place: Place = "file",
) -> go.Figure:
    """Draw all trials of a study, over GFLOPs with the curves of its baselines. The report shows no title."""
    check_choice("the place of a figure", place, Place)
    records = list(records)
    layout = front_layout(records, axis, verdict, curves)
    figure = go.Figure(layout=_figure_layout(layout, title, axis))
    _add_curves(figure, layout)
    for (group, final), members in layout.marks.items():
        # One entry in the legend per group, with its filled mark if it has any.
        in_legend = final or (group, True) not in layout.marks
        figure.add_trace(_trace(group, final, members, layout, axis, in_legend))
    _add_front(figure, layout, axis)
    small = place == "dashboard"
    # Names of baselines have no space in the dashboard.
    labels = [label for label in layout.labels if label.record in layout.front or not small]
    _add_labels(figure, labels, layout, axis, size=11 if small else 14)
    _add_measured(figure, layout, axis)
    _add_lines(figure, layout, axis)
    if place == "page":
        figure.update_layout(title=None, margin_t=20)
    elif place == "dashboard":
        _fit_dashboard(figure, layout, axis)
    return figure


def describe(record: TrialRecord) -> str:
    """Name of a trial in a hover box."""
    return f"<b>trial {record.trial}</b>, {record.label or record.kind}"


def _hover(record: TrialRecord) -> str:
    lines = [describe(record), *([] if record.score else [f"{record.state}: no score"])]
    lines += [f"{name}: {value}" for name, value in trial_facts(record)]
    amounts = f"{amount_of(record.schedule.operator)}s, 1 = no merging:"
    return "<br>".join([*lines, amounts, *(f"  {s}: {r}" for s, r in record.by_stage(FORM_LETTERS))])


def _trace(
    group: Group, final: bool, members: Sequence[TrialRecord], layout: FrontLayout, axis: CostAxis, in_legend: bool
) -> go.Scatter:
    symbol, colour, size = STYLES[group]
    scored = group not in UNSCORED
    by_cost: dict[str, Any] = {}
    if scored and axis.second is not None:
        size += 1
        by_cost = {"color": [r.cost(axis.second.name) for r in members], "coloraxis": "coloraxis"}
    filled = {"symbol": symbol, "size": size, "color": colour, "line": {"color": "#ffffff", "width": 1}}
    hollow = {"symbol": f"{symbol}-open", "size": size - 1, "color": colour, "line": {"width": 1.5}}
    return go.Scatter(
        name=f"rejected: {group}" if group in ("over budget", "below range") else group,
        x=[r.cost(axis.name) for r in members],
        y=[layout.heights[r.trial] if scored else 0.5 for r in members],
        yaxis="y" if scored else "y2",
        mode="markers",
        marker=(filled if final else hollow) | by_cost,
        legendgroup=group,
        showlegend=in_legend,
        hovertext=[_hover(r) for r in members],
        hoverinfo="text",
    )


def _add_curves(figure: go.Figure, layout: FrontLayout) -> None:
    """Below the marks: what is set by hand at other costs, each kind from its cheapest network to the plain one."""
    for curve, line in layout.curves.items():
        colour, dash = CURVES[curve]
        figure.add_scatter(
            name=f"by hand: {curve}",
            x=[x for x, _, _ in line],
            y=[y for _, y, _ in line],
            mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": dash},
            marker={"size": 5, "color": colour},
            hovertext=[words for _, _, words in line],
            hoverinfo="text",
        )


def _add_front(figure: go.Figure, layout: FrontLayout, axis: CostAxis) -> None:
    x, y = [cost for cost, _ in layout.line], [height for _, height in layout.line]
    together: dict[str, Any] = {"legendgroup": "front", "hoverinfo": "skip"}  # the mark in the ring has a hover box
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": BLACK, "width": 1.5}, showlegend=False, **together)
    for name, (ring, members) in _rings(layout, axis).items():
        figure.add_scatter(
            name=name,
            x=[r.cost(axis.name) for r in members],
            y=[layout.heights[r.trial] for r in members],
            error_y={"array": [r.difference_se or 0 for r in members], "color": BLACK, "thickness": 1.2},
            mode="markers",
            marker=ring,
            **together,
        )


def _add_labels(figure: go.Figure, labels: Iterable[Label], layout: FrontLayout, axis: CostAxis, size: int) -> None:
    """Write beside their marks the words of labels, in a size in points."""
    for label in labels:
        (right, up), at = label.offset, {"x": label.record.cost(axis.name), "y": layout.heights[label.record.trial]}
        beside: dict[str, Any] = {"showarrow": False, "xshift": right, "yshift": up}
        if label.led:
            beside = {"showarrow": True, "ax": right, "ay": -up, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": GREY}
            beside |= {"standoff": 9, "startstandoff": 2}
        figure.add_annotation(name=LABELS, text=label.words, font_size=size, **at, **beside)


def _rings(layout: FrontLayout, axis: CostAxis) -> dict[str, tuple[dict[str, Any], list[TrialRecord]]]:
    """Name in the legend → look and trials; the first is always there."""
    alike, second = layout.not_better, [r for r in layout.by_second if r not in layout.not_better]
    rings: dict[str, tuple[dict[str, Any], list[TrialRecord]]] = {
        "front, ± 1 standard error": (RING, [r for r in layout.front if r not in alike and r not in second])
    }
    if alike:
        thin = RING | {"color": GREY, "line": {"width": 1}}
        rings["front, not significantly better than a cheaper point"] = thin, list(alike)
    if axis.second is not None and second:
        rings[f"front only by {axis.second.unit}"] = RING | {"line": {"width": 1}}, second
    return rings


def _add_lines(figure: go.Figure, layout: FrontLayout, axis: CostAxis) -> None:
    """Draw and name the budgets, the plain network, and baselines that cost more than the view shows."""
    for limit, name, dash in ((axis.budget, "budget", "dash"), (axis.lowest, "lowest budget", "dot")):
        if limit is not None:
            figure.add_vline(x=limit, line={"color": BLACK, "width": 1.5, "dash": dash})
            foot = {"x": limit, "y": 0, "yref": "y domain", "xanchor": "left", "align": "left"}
            figure.add_annotation(text=f"{name}<br>{limit:g} {axis.unit}", **foot, **LABEL)
    if layout.heights:
        figure.add_hline(y=0, line={"color": GREY, "width": 1.5})
        left = LABEL | {"bgcolor": "rgba(255,255,255,0)", "x": 0.01, "xref": "paper", "xanchor": "left"}
        figure.add_annotation(text=layout.plain, y=0, font_color=GREY, **left)
    for record in layout.beyond:
        height = layout.heights[record.trial]
        figure.add_hline(y=height, line={"color": RED, "width": 1.5, "dash": "dot"})
        edge = {"x": 1, "xref": "paper", "y": height, "xanchor": "right", "align": "right", "yshift": 6}
        text = f"{record.name}: {points(height)} points<br>{axis.text(record.cost(axis.name))} →"
        figure.add_annotation(text=text, **edge, **LABEL)


def _add_measured(figure: go.Figure, layout: FrontLayout, axis: CostAxis) -> None:
    timed = [r for r in layout.front if axis.name == "latency_ms" and r.latency_measured_ms is not None]
    for broken, colour, name in ((False, BLACK, "measured"), (True, RED, "measured: over budget")):
        members = [r for r in timed if breaks_budget(r, axis) == broken]
        if not members:
            continue
        for record in members:
            ends, height = [record.cost(axis.name), record.latency_measured_ms], [layout.heights[record.trial]] * 2
            quiet: dict[str, Any] = {"showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(x=ends, y=height, mode="lines", line={"color": colour, "width": 1}, **quiet)
        figure.add_scatter(
            name=name,
            x=[r.latency_measured_ms for r in members],
            y=[layout.heights[r.trial] for r in members],
            error_x={"array": [r.latency_measured_se_ms or 0 for r in members], "color": colour, "thickness": 1},
            mode="markers",
            marker={"symbol": "line-ns", "size": 14, "color": colour, "line": {"width": 2.5, "color": colour}},
            hovertext=[_hover(r) for r in members],
            hoverinfo="text",
        )


def _figure_layout(layout: FrontLayout, title: str, axis: CostAxis) -> dict[str, Any]:
    subtitle = "filled: reported images, final weights; open: search images, when the trial ran"
    if layout.hidden:
        scored, hidden = sum(r.score is not None for r in layout.hidden), len(layout.hidden)
        subtitle += f"<br>not in view: {hidden - scored} without a score, {scored} scored (double-click to show all)"
    if layout.unplaced:
        subtitle += f"<br>not shown: {len(layout.unplaced)} scored, with no plain network on the same images"
    small = {"text": subtitle, "font": {"size": 13, "color": GREY}}
    strip = {"range": [0, 1], "domain": [0, 0.08], "tickvals": [0.5], "ticktext": ["no score"], "ticks": ""}
    beside = {"text": axis.second.unit if axis.second else "", "side": "right"}
    below = 0.1 if any(group in UNSCORED for group, _ in layout.marks) else 0  # space for the strip
    return {
        "template": TEMPLATE,
        "title": {"text": title, "subtitle": small, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        "margin": {"l": 75, "r": 30, "t": 105, "b": 110},
        "xaxis": {"title": axis.title, "range": layout.x_range, "anchor": "y2" if below else "y"},
        "yaxis": {
            "title": "top-1 less the plain network's, points",
            "range": layout.y_range,
            "domain": [below, 1],
            "zeroline": False,
        },
        "yaxis2": {"fixedrange": True, "showgrid": False, **strip},
        "coloraxis": {"colorscale": "Viridis", "colorbar": {"title": beside, "thickness": 14, "outlinewidth": 0}},
    }


def _fit_dashboard(figure: go.Figure, layout: FrontLayout, axis: CostAxis) -> None:
    reading = figure.layout.title.subtitle.text.replace("; ", ";<br>")
    figure.update_layout(
        DASHBOARD,
        margin={"l": 50, "r": 15, "t": 72, "b": 95},
        title_subtitle={"text": reading, "font": {"size": 11}},
        legend={"font": {"size": 11}, "x": 0, "xref": "container"},
        xaxis_title_text=axis.title.partition(" (")[0],
        yaxis_title_text="top-1 − plain, points",
    )
