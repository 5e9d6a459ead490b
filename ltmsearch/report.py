"""The front as a picture and as a table, from plain records: compute what is shown, then show it.

How the picture reads: x is GFLOPs per image, y is top-1. Circles are searched trials, squares start-up trials,
diamonds baselines; filled marks carry the score with the final weights, open ones the score of the moment the
trial ran, which compares less well. Rings with error bars and the step line are the front. Below the axis,
ticks are proposals rejected by their cost alone and crosses are failed trials: neither has a score.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from rich.console import Console
from rich.table import Table

from ltmsearch.drawing import WrittenDrawing, write_drawing
from ltmsearch.picture import UNSCORED, FrontPicture, Group, front_picture, shown_top1
from ltmsearch.records import TrialRecord, select_front, select_references

_BLACK, _GREY = "#000000", "#6b6b6b"
# Colours of Okabe and Ito, told apart by colour-blind readers; the symbols do the same in black and white.
_STYLES: dict[Group, tuple[str, str, int]] = {
    "searched": ("circle", "#0072B2", 10),
    "start-up": ("square", "#E69F00", 10),
    "baseline": ("diamond", "#D55E00", 13),
    "over budget": ("line-ns", _GREY, 14),
    "failed": ("x-thin", "#D55E00", 10),
}


def front_figure(
    records: Iterable[TrialRecord], *, title: str, img_size: int, budget_gflops: float | None = None
) -> go.Figure:
    """Draws the front and all other trials; how it reads is told at the top of this module.

    Args:
        records: All trials of a study.
        title: First line over the plot.
        img_size: Side of the images that the GFLOPs are counted for, in pixels.
        budget_gflops: Where the budget line stands; None draws none.
    """
    picture = front_picture(records, budget_gflops=budget_gflops)
    figure = go.Figure(layout=_layout(picture, title, img_size))
    for (group, rescored), members in picture.marks.items():
        # One entry in the legend for each group, with its filled mark where there is one.
        in_legend = rescored or (group, True) not in picture.marks
        figure.add_trace(_trace(group, rescored, members, img_size, in_legend))
    _add_front(figure, picture)
    words: dict[str, Any] = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.8)", "yanchor": "bottom"}
    if budget_gflops is not None:
        figure.add_vline(x=budget_gflops, line={"color": _BLACK, "width": 1.5, "dash": "dash"})
        foot = {"x": budget_gflops, "y": 0, "yref": "y domain", "xanchor": "left", "align": "left"}
        figure.add_annotation(text=f"budget<br>{budget_gflops:g} GFLOPs", **foot, **words)
    for record in picture.beyond:
        figure.add_hline(y=shown_top1(record), line={"color": _STYLES["baseline"][1], "width": 1.5, "dash": "dot"})
        edge = {"x": 1, "xref": "paper", "y": shown_top1(record), "xanchor": "right", "align": "right", "yshift": 6}
        text = f"{record.name}: {shown_top1(record):.1f} %<br>{record.gflops:.4f} GFLOPs →"
        figure.add_annotation(text=text, **edge, **words)
    return figure


def write_front(
    records: Iterable[TrialRecord],
    folder: str | Path,
    *,
    title: str,
    img_size: int,
    budget_gflops: float | None = None,
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
    figure = front_figure(records, title=title, img_size=img_size, budget_gflops=budget_gflops)
    return write_drawing(figure, folder, "front", title=title, png=png)


def print_front(console: Console, records: Iterable[TrialRecord], *, budget_gflops: float | None = None) -> None:
    """Prints the front, best top-1 first, and below it the plain net and the best uniform keep ratio.

    Args:
        console: Where to print; 80 columns are enough.
        records: All trials of a study.
        budget_gflops: Named in the title; None without such a budget.
    """
    records = list(records)
    front, references = select_front(records), select_references(records)
    budget = "" if budget_gflops is None else f", budget {budget_gflops:g} GFLOPs"
    title = f"Front: {len(front)} of {len(records)} trials" if front else "No front yet: nothing re-scored"
    table = Table(title=title + budget)
    for heading in ("trial", "GFLOPs", "top-1 %", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"keep ratios{_form_key(front)}, | between stages", overflow="fold")
    for record in front:
        table.add_row(*_cells(record), " | ".join(ratios for _, ratios in record.by_stage()))
    table.add_section()
    for record in references:
        table.add_row(*_cells(record), record.name + ("" if record.feasible else " (over budget)"))
    if any(record.rescored_top1 is None for record in references):
        table.caption = "* scored when the trial ran, not with the final weights"
    console.print(table)


def _hover(record: TrialRecord, img_size: int) -> str:
    latency = "" if record.latency_ms is None else f", {record.latency_ms:.2f} ms"
    lines = [f"<b>trial {record.trial}</b>, {record.label or record.kind}"]
    lines.append(f"{record.gflops:.4f} GFLOPs at {img_size} px{latency}")
    if record.score is None:
        lines.append(f"{record.state}: no score")
    else:
        lines.append(f"top-1 {record.score} %{'' if record.score.rescored else ' when it ran'}")
        lines += [] if record.score.loss is None else [f"loss {record.score.loss:.4f}"]
    lines += [] if record.ib_weight is None else [f"IB weight {record.ib_weight:.3g}"]
    if record.mi_x is not None and record.mi_y is not None and record.ibb is not None:
        lines.append(f"I(X̃;X) {record.mi_x:.3g}, I(X̃;Y) {record.mi_y:.3g}, IB bound {record.ibb:.3g} nats")
    lines += [] if record.supernet_version is None else [f"ran with weights version {record.supernet_version}"]
    lines.append(f"keep ratios, 1 = plain{_form_key([record])}:")
    return "<br>".join(lines + [f"  {stage}: {ratios}" for stage, ratios in record.by_stage()])


def _form_key(records: Iterable[TrialRecord]) -> str:
    """What the letters behind keep ratios mean, where there are any."""
    used = {form for record in records for form in record.forms.values()}
    letters = [f"{form[0]} {form}" for form in ("hard", "matched") if form in used]
    return f" ({', '.join(letters)} form)" if letters else ""


def _trace(group: Group, rescored: bool, members: Sequence[TrialRecord], img_size: int, in_legend: bool) -> go.Scatter:
    symbol, colour, size = _STYLES[group]
    scored = group not in UNSCORED
    filled = {"symbol": symbol, "size": size, "color": colour, "line": {"color": "#ffffff", "width": 1}}
    hollow = {"symbol": f"{symbol}-open", "size": size - 1, "color": colour, "line": {"width": 1.5}}
    return go.Scatter(
        name="rejected: over budget" if group == "over budget" else group,
        x=[r.gflops for r in members],
        y=[shown_top1(r) if scored else 0.5 for r in members],
        yaxis="y" if scored else "y2",
        mode="markers",
        marker=filled if rescored else hollow,
        legendgroup=group,
        showlegend=in_legend,
        hovertext=[_hover(r, img_size) for r in members],
        hoverinfo="text",
    )


def _add_front(figure: go.Figure, picture: FrontPicture) -> None:
    x, y = [corner[0] for corner in picture.step], [corner[1] for corner in picture.step]
    together: dict[str, Any] = {"legendgroup": "front", "hoverinfo": "skip"}  # the mark in the ring answers
    figure.add_scatter(x=x, y=y, mode="lines", line={"color": _BLACK, "width": 1.5}, showlegend=False, **together)
    figure.add_scatter(
        name="front, ± 1 standard error",
        x=[r.gflops for r in picture.front],
        y=[shown_top1(r) for r in picture.front],
        error_y={"array": [r.rescored_top1_se or 0 for r in picture.front], "color": _BLACK, "thickness": 1.2},
        mode="markers",
        marker={"symbol": "circle-open", "size": 18, "color": _BLACK, "line": {"width": 2}},
        **together,
    )
    figure.add_scatter(
        x=[r.gflops for r, _, _ in picture.labels],
        y=[shown_top1(r) for r, _, _ in picture.labels],
        mode="markers+text",
        marker={"size": 17, "opacity": 0},  # not seen: keeps the words off the mark
        text=[words for _, words, _ in picture.labels],
        textposition=[side for _, _, side in picture.labels],
        showlegend=False,
        hoverinfo="skip",
    )


def _layout(picture: FrontPicture, title: str, img_size: int) -> dict[str, Any]:
    subtitle = "filled: re-scored with the final weights; open: scored when the trial ran"
    if picture.hidden:
        scored, all_hidden = sum(r.score is not None for r in picture.hidden), len(picture.hidden)
        subtitle += (
            f"<br>not in view: {all_hidden - scored} without a score, {scored} scored (a double click shows all)"
        )
    small = {"text": subtitle, "font": {"size": 13, "color": _GREY}}
    grid = {"showgrid": True, "gridcolor": "#ececec"}
    x_title = f"GFLOPs per image at {img_size} px (one multiply-add = one FLOP)"
    strip = {"range": [0, 1], "domain": [0, 0.08], "tickvals": [0.5], "ticktext": ["no score"], "ticks": ""}
    below = 0.1 if any(group in UNSCORED for group, _ in picture.marks) else 0  # where there is a strip
    return {
        "template": "simple_white",
        "title": {"text": title, "subtitle": small, "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        "font": {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": _BLACK},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": _BLACK}},
        "margin": {"l": 75, "r": 30, "t": 105, "b": 110},
        "xaxis": {"title": x_title, "range": picture.x_range, "anchor": "y2" if below else "y", **grid},
        "yaxis": {"title": "top-1, %", "range": picture.y_range, "domain": [below, 1], **grid},
        "yaxis2": {"fixedrange": True, **strip},
    }


def _cells(record: TrialRecord) -> tuple[str, str, str, str]:
    score = record.score
    assert score is not None, record
    top1, loss = f"{score}{'' if score.rescored else '*'}", "" if score.loss is None else f"{score.loss:.4f}"
    return str(record.trial), f"{record.gflops:.4f}", top1, loss
