"""The front as a picture and as a table, from plain records: compute what is shown, then show it.

How the picture reads: x is the cost that the study weighs, GFLOPs or predicted milliseconds, y is the top-1 that trials
are ranked by: the expected one where they were scored again, half measured, half told by the loss. Circles are searched
trials, squares start-up trials, diamonds baselines; filled marks carry the score with the final weights, open ones the
score of the moment the trial ran, which compares less well. Rings with error bars and the step line are the front.
Below the axis, ticks are proposals rejected by their cost alone and crosses are failed trials: neither has a score.
Where the front was timed at the close, a line leads from each of its points to a bar at the measured latency, red
where that breaks the budget.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from ltmsearch.config.objective import CostAxis
from ltmsearch.io.console_tables import width_of
from ltmsearch.io.figures import WrittenDrawing, write_drawing
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.reporting.pareto_layout import UNSCORED, FrontPicture, Group, front_picture, shown_top1
from ltmsearch.search.records import TrialRecord, form_key, select_front, select_references

RATIOS = "keep ratios"
ROOM_FOR_RATIOS = 30
"""Columns of the terminal that keep ratios need beside the numbers of a front."""

_BLACK, _GREY = "#000000", "#6b6b6b"
# Colours of Okabe and Ito, told apart by colour-blind readers; the symbols do the same in black and white.
STYLES: dict[Group, tuple[str, str, int]] = {
    "searched": ("circle", "#0072B2", 10),
    "start-up": ("square", "#E69F00", 10),
    "baseline": ("diamond", "#D55E00", 13),
    "over budget": ("line-ns", _GREY, 14),
    "below range": ("line-ns", _GREY, 14),
    "failed": ("x-thin", "#D55E00", 10),
}


def front_figure(records: Iterable[TrialRecord], *, title: str, axis: CostAxis) -> go.Figure:
    """Draws the front and all other trials; how it reads is told at the top of this module.

    Args:
        records: All trials of a study.
        title: First line over the plot.
        axis: What the costs are, and where the budget line stands.
    """
    picture = front_picture(records, axis)
    figure = go.Figure(layout=_layout(picture, title, axis))
    for (group, rescored), members in picture.marks.items():
        # One entry in the legend for each group, with its filled mark where there is one.
        in_legend = rescored or (group, True) not in picture.marks
        figure.add_trace(_trace(group, rescored, members, axis, in_legend))
    _add_front(figure, picture, axis)
    _add_measured(figure, picture, axis)
    words: dict[str, Any] = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.8)", "yanchor": "bottom"}
    if axis.budget is not None:
        figure.add_vline(x=axis.budget, line={"color": _BLACK, "width": 1.5, "dash": "dash"})
        foot = {"x": axis.budget, "y": 0, "yref": "y domain", "xanchor": "left", "align": "left"}
        figure.add_annotation(text=f"budget<br>{axis.budget:g} {axis.unit}", **foot, **words)
    if axis.lowest is not None:
        figure.add_vline(x=axis.lowest, line={"color": _BLACK, "width": 1, "dash": "dot"})
        foot = {"x": axis.lowest, "y": 0, "yref": "y domain", "xanchor": "left", "align": "left"}
        figure.add_annotation(text=f"lowest budget<br>{axis.lowest:g} {axis.unit}", **foot, **words)
    for record in picture.beyond:
        figure.add_hline(y=shown_top1(record), line={"color": STYLES["baseline"][1], "width": 1.5, "dash": "dot"})
        edge = {"x": 1, "xref": "paper", "y": shown_top1(record), "xanchor": "right", "align": "right", "yshift": 6}
        text = f"{record.name}: {shown_top1(record):.1f} %<br>{axis.text(record.cost(axis.name))} →"
        figure.add_annotation(text=text, **edge, **words)
    return figure


def write_front(
    records: Iterable[TrialRecord],
    folder: str | Path,
    *,
    title: str,
    axis: CostAxis,
    png: bool = True,
) -> WrittenDrawing:
    """Writes `front.html` and, where a browser is found, `front.png`, as `write_drawing` does.

    Arguments not named here are `front_figure`'s.

    Args:
        records: All trials of a study.
        folder: Where to write; made when missing.
        png: Whether a PNG is wanted; it takes some seconds.

    Raises:
        OSError: The folder cannot be written.
    """
    figure = front_figure(records, title=title, axis=axis)
    return write_drawing(figure, folder, "front", title=title, png=png)


def print_front(console: Console, records: Iterable[TrialRecord], *, axis: CostAxis) -> None:
    """Prints the front, best first, and below it the plain net and the best uniform keep ratio.

    Where keep ratios find too little room beside the numbers, they follow in a table of their own.

    Args:
        console: Where to print; 80 columns are enough.
        records: All trials of a study.
        axis: What the costs are, and the budget.
    """
    records = list(records)
    front, references = select_front(records, axis.name), select_references(records)
    shown = [*front, *references]
    nets = [" | ".join(ratios for _, ratios in record.by_stage()) for record in front]
    nets += [record.name + ("" if record.feasible else " (over budget)") for record in references]
    numbers = [_cells(record, axis) for record in shown]
    side_by_side = [(*cells, net) for cells, net in zip(numbers, nets, strict=True)]
    tables = [_table((*_headings(axis), RATIOS), side_by_side, len(front))]
    apart = _table(_headings(axis), numbers, len(front))
    if console.width < min(width_of(console, tables[0]), width_of(console, apart) + ROOM_FOR_RATIOS):
        by_trial = [(str(record.trial), net) for record, net in zip(shown, nets, strict=True)]
        tables = [apart, _table(("trial", RATIOS), by_trial, len(front))]
    tables[0].title = _title(front, records, axis)
    for table in tables:
        console.print(table)
    for line in _captions(front, references, axis):
        console.print(line, markup=False, highlight=False, style="dim")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], before: int) -> Table:
    """A table with a line after so many rows. Words wrap, numbers do not."""
    table = Table()
    for heading in headings:
        words = heading == RATIOS
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for place, row in enumerate(rows):
        table.add_row(*row, end_section=place == before - 1)
    return table


def _title(front: Sequence[TrialRecord], records: Sequence[TrialRecord], axis: CostAxis) -> str:
    budget = "" if axis.budget is None else f", budget {axis.budget:g} {axis.unit}"
    if axis.lowest is not None:
        budget = f", budgets {axis.lowest:g} to {axis.budget:g} {axis.unit}"
    return (f"Front: {len(front)} of {len(records)} trials" if front else "No front yet: nothing re-scored") + budget


def _captions(front: Sequence[TrialRecord], references: Sequence[TrialRecord], axis: CostAxis) -> list[str]:
    """What signs in the table mean, those that are in it."""
    lines = []
    if front:
        stages = ", | between stages" if len(front[0].by_stage()) > 1 else ""
        lines.append(f"keep ratio of each layer{form_key(front)}, 1 = plain{stages}")
    if any(record.rescored_top1 is None for record in references):
        lines.append("* scored when the trial ran, not with the final weights")
    if any(record.expected_top1 is not None for record in front):
        lines.append("expected: the mean of top-1 and what the loss lets expect; the front goes by it")
    if any(breaks_budget(record, axis) for record in (*front, *references)):
        lines.append("! predicted within the budget, but measured over it")
    return lines


def print_findings(console: Console, findings: Findings) -> None:
    """Prints what the search learned, as one paragraph of at most 80 columns."""
    console.print(" ".join(sentences(findings)), markup=False, highlight=False, width=min(80, console.width))


def breaks_budget(record: TrialRecord, axis: CostAxis) -> bool:
    """Whether a trial that was predicted to keep a latency budget was measured to break it."""
    if axis.name != "latency_ms" or axis.budget is None or record.latency_measured_ms is None:
        return False
    return record.feasible and record.latency_measured_ms > axis.budget


def prediction_lines(front: Sequence[TrialRecord], axis: CostAxis) -> list[str]:
    """What timing the front said of its predicted latencies; nothing where it was not timed."""
    timed = [(r, r.cost(axis.name), r.latency_measured_ms) for r in front if r.latency_measured_ms is not None]
    if not timed:
        return []
    error = sum(abs(predicted - measured) / measured for _, predicted, measured in timed) / len(timed)
    lines = [f"front timed end to end: predictions were off by {error:.1%} on average"]
    broken = [str(r.trial) for r, _, _ in timed if breaks_budget(r, axis)]
    if broken:
        lines.append(f"measured over the budget of {axis.budget:g} ms, and marked: trial {', '.join(broken)}")
    return lines


def _hover(record: TrialRecord) -> str:
    lines = [f"<b>trial {record.trial}</b>, {record.label or record.kind}", f"{record.gflops:.4f} GFLOPs"]
    if record.latency_ms is not None:
        lines[-1] += f", {record.latency_ms:.2f} ms predicted"
    if record.latency_measured_ms is not None:
        lines.append(f"{_measured(record)} ms measured")
    if record.score is None:
        lines.append(f"{record.state}: no score")
    else:
        lines.append(f"top-1 {record.score} %{'' if record.score.rescored else ' when it ran'}")
        lines += [] if record.score.loss is None else [f"loss {record.score.loss:.4f}"]
    if record.expected_top1 is not None:
        lines[-1] += f", so {record.expected_top1:.1f} % expected"
    lines += [] if record.ib_weight is None else [f"IB weight {record.ib_weight:.3g}"]
    if record.mi_x is not None and record.mi_y is not None and record.ibb is not None:
        lines.append(f"I(X̃;X) {record.mi_x:.3g}, I(X̃;Y) {record.mi_y:.3g}, IB bound {record.ibb:.3g} nats")
    lines += [] if record.supernet_version is None else [f"ran with weights version {record.supernet_version}"]
    lines.append(f"keep ratios, 1 = plain{form_key([record])}:")
    return "<br>".join(lines + [f"  {stage}: {ratios}" for stage, ratios in record.by_stage()])


def _trace(group: Group, rescored: bool, members: Sequence[TrialRecord], axis: CostAxis, in_legend: bool) -> go.Scatter:
    symbol, colour, size = STYLES[group]
    scored = group not in UNSCORED
    filled = {"symbol": symbol, "size": size, "color": colour, "line": {"color": "#ffffff", "width": 1}}
    hollow = {"symbol": f"{symbol}-open", "size": size - 1, "color": colour, "line": {"width": 1.5}}
    return go.Scatter(
        name=f"rejected: {group}" if group in ("over budget", "below range") else group,
        x=[r.cost(axis.name) for r in members],
        y=[shown_top1(r) if scored else 0.5 for r in members],
        yaxis="y" if scored else "y2",
        mode="markers",
        marker=filled if rescored else hollow,
        legendgroup=group,
        showlegend=in_legend,
        hovertext=[_hover(r) for r in members],
        hoverinfo="text",
    )


def _add_front(figure: go.Figure, picture: FrontPicture, axis: CostAxis) -> None:
    x, y = [corner[0] for corner in picture.step], [corner[1] for corner in picture.step]
    together: dict[str, Any] = {"legendgroup": "front", "hoverinfo": "skip"}  # the mark in the ring answers
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": _BLACK, "width": 1.5}, showlegend=False, **together)
    figure.add_scatter(
        name="front, ± 1 standard error",
        x=[r.cost(axis.name) for r in picture.front],
        y=[shown_top1(r) for r in picture.front],
        error_y={"array": [r.rescored_top1_se or 0 for r in picture.front], "color": _BLACK, "thickness": 1.2},
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": _BLACK, "line": {"width": 2}},
        **together,
    )
    figure.add_scatter(
        x=[r.cost(axis.name) for r, _, _ in picture.labels],
        y=[shown_top1(r) for r, _, _ in picture.labels],
        mode="markers+text",
        marker={"size": 17, "opacity": 0},  # not seen: keeps the words off the mark
        text=[words for _, words, _ in picture.labels],
        textposition=[side for _, _, side in picture.labels],
        showlegend=False,
        hoverinfo="skip",
    )


def _add_measured(figure: go.Figure, picture: FrontPicture, axis: CostAxis) -> None:
    """From each front point that was timed, a line to a bar where the clock put it."""
    timed = [r for r in picture.front if axis.name == "latency_ms" and r.latency_measured_ms is not None]
    for broken, colour, name in ((False, _BLACK, "measured"), (True, "#D55E00", "measured: over budget")):
        members = [r for r in timed if breaks_budget(r, axis) == broken]
        if not members:
            continue
        for record in members:
            ends, height = [record.cost(axis.name), record.latency_measured_ms], [shown_top1(record)] * 2
            quiet: dict[str, Any] = {"showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(x=ends, y=height, mode="lines", line={"color": colour, "width": 1}, **quiet)
        figure.add_scatter(
            name=name,
            x=[r.latency_measured_ms for r in members],
            y=[shown_top1(r) for r in members],
            error_x={"array": [r.latency_measured_se_ms or 0 for r in members], "color": colour, "thickness": 1},
            mode="markers",
            marker={"symbol": "line-ns", "size": 14, "color": colour, "line": {"width": 2.5, "color": colour}},
            hovertext=[_hover(r) for r in members],
            hoverinfo="text",
        )


def _layout(picture: FrontPicture, title: str, axis: CostAxis) -> dict[str, Any]:
    subtitle = "filled: re-scored with the final weights, half by top-1, half by loss; open: top-1 when the trial ran"
    if picture.hidden:
        scored, all_hidden = sum(r.score is not None for r in picture.hidden), len(picture.hidden)
        subtitle += (
            f"<br>not in view: {all_hidden - scored} without a score, {scored} scored (a double click shows all)"
        )
    small = {"text": subtitle, "font": {"size": 13, "color": _GREY}}
    grid = {"showgrid": True, "gridcolor": "#ececec"}
    strip = {"range": [0, 1], "domain": [0, 0.08], "tickvals": [0.5], "ticktext": ["no score"], "ticks": ""}
    heading = "expected top-1, %" if picture.front else "top-1, %"
    below = 0.1 if any(group in UNSCORED for group, _ in picture.marks) else 0  # where there is a strip
    return {
        "template": "simple_white",
        "title": {"text": title, "subtitle": small, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": _BLACK},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": _BLACK}},
        "margin": {"l": 75, "r": 30, "t": 105, "b": 110},
        "xaxis": {"title": axis.title, "range": picture.x_range, "anchor": "y2" if below else "y", **grid},
        "yaxis": {"title": heading, "range": picture.y_range, "domain": [below, 1], **grid},
        "yaxis2": {"fixedrange": True, **strip},
    }


def _headings(axis: CostAxis) -> tuple[str, ...]:
    latency = ("ms", "measured") if axis.name == "latency_ms" else ()
    return ("trial", "GFLOPs", *latency, "top-1 %", "expected")


def _cells(record: TrialRecord, axis: CostAxis) -> tuple[str, ...]:
    score = record.score
    assert score is not None, record
    top1 = f"{score}{'' if score.rescored else '*'}"
    latency: tuple[str, ...] = ()
    if axis.name == "latency_ms":
        measured = "" if record.latency_measured_ms is None else _measured(record)
        latency = (f"{record.cost(axis.name):.2f}", measured + ("!" if breaks_budget(record, axis) else ""))
    expected = "" if record.expected_top1 is None else f"{record.expected_top1:.1f}"
    return str(record.trial), f"{record.gflops:.4f}", *latency, top1, expected


def _measured(record: TrialRecord) -> str:
    error = "" if record.latency_measured_se_ms is None else f" ± {record.latency_measured_se_ms:.2f}"
    return f"{record.latency_measured_ms:.2f}{error}"
