"""Chapters of a report as plain records: text, tables and figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.convergence import (
    MEASURES,
    REJECTED,
    TOKENS_BEYOND,
    agreement,
    growth,
    measured,
    with_fields,
)
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.charts import comparison_figure, growth_figure, information_figure, times_figure
from ltmsearch.reporting.layer_plot import height, layers_figure
from ltmsearch.reporting.numbers import breaks_budget, cost_text, costs_text, counted, duration, text, with_error
from ltmsearch.reporting.pareto_layout import front_layout
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run
from ltmsearch.search.timing import OVERHEAD, Times


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table of text; the first cell of a row names it."""

    caption: str
    headings: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], ...], ...]
    """Rows, in groups separated by a line."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure with its description for readers who cannot see it."""

    anchor: str
    figure: go.Figure
    alternative: str
    """Description in words."""
    height: int = 460
    """In points."""
    least_width: int = 0
    """In points; on a narrower page the plot scrolls in its box."""
    most_width: int = 0
    """In points; 0: the width of the page."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A heading and the content below it."""

    anchor: str
    heading: str
    paragraphs: tuple[str, ...]
    """Explanation of the figures, or the reason why there is none."""
    plots: tuple[Plot, ...] = ()
    tables: tuple[DataTable, ...] = ()
    """Numbers of the figures, folded."""


def make_table(caption: str, headings: Sequence[str], *groups: Sequence[Sequence[Any]]) -> DataTable:
    """A table of any values; None is an empty cell."""
    cells = [tuple(tuple("" if c is None else str(c) for c in row) for row in group) for group in groups]
    return DataTable(caption=caption, headings=tuple(headings), groups=tuple(cells))


def make_chapters(run: Run, findings: Findings, times: Times) -> list[Chapter]:
    """All chapters of a report below its summary, in the order of the page."""
    records, axis, front = run.trials, run.settings.axis, {record.trial for record in findings.front}
    latency = [_latency(records, axis, front)] if axis.name == "latency_ms" else []
    return [
        _front(records, findings, axis),
        *([] if axis.second is None else [_tokens(records, findings, axis)]),
        _growth(records, axis),
        _layers(findings, axis),
        *latency,
        _information(records),
        _scores(records, front),
        _times(records, times),
        _settings(run, times),
    ]


def _named(record: TrialRecord) -> tuple[int, str]:
    return record.trial, record.label or record.kind


def _front(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Chapter:
    hidden = front_layout(records, axis).hidden
    words = (
        "Each mark is a trial. Circles are searched trials, squares start-up trials, diamonds baselines. Filled marks "
        "are scored with the final weights and drawn at their expected top-1; open marks are drawn at the top-1 "
        "measured when their trial ran. Rings with bars of one standard error, joined by steps, are the front. Below "
        "the plot are trials without a score: ticks were rejected by their cost alone, crosses failed. Hover over a "
        "mark for all its values."
    )
    if axis.budget is not None:
        words += f" The dashed line is the budget, {axis.budget:g} {axis.unit}."
    if any(breaks_budget(record, axis) for record in findings.front):
        words += " Vermilion bars are latencies measured over the budget."
    if hidden:
        scored = sum(record.score is not None for record in hidden)
        words += (
            f" Not in view: {counted(scored, 'trial')} with and {len(hidden) - scored} without a score; double-click "
            "on the plot to show all."
        )
    if axis.second is not None:
        words += (
            " Colours show the third objective, the tokens sent. The steps join the best trials by cost alone; thin "
            "rings below them are on the front only because they send fewer tokens."
        )
    rows = [
        (
            *_named(r),
            *(cost_text(r, each) for each in axis.axes),
            with_error(r.top1, r.top1_se),
            with_error(r.rescored_top1, r.rescored_top1_se),
            text(score.loss, ".4f"),
            with_error(r.agreement, r.agreement_se),
            "yes" if r in findings.front else "",
            "yes" if r.feasible else "no",
        )
        for r in sorted(records, key=lambda r: r.trial)
        if (score := r.score) is not None
    ]
    scores = ("top-1 when it ran, %", "final top-1, %", "loss", "agreement, %")
    headings = ("trial", "kind", *(each.unit for each in axis.axes), *scores, "on front", "within budget")
    table = make_table("All scored trials", headings, rows)
    plot = _front_plot("plot-front", records, findings, axis)
    return Chapter(anchor="front", heading="Front", paragraphs=(words,), plots=(plot,), tables=(table,))


def _tokens(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Chapter:
    words = (
        f"The same trials over the {axis.swapped.title}. Colours show {axis.title}. The steps join the best trials by "
        "tokens sent alone; thin rings below them are on the front only because they cost less."
    )
    plot = _front_plot("plot-tokens", records, findings, axis.swapped)
    return Chapter(anchor="tokens", heading="Tokens sent", paragraphs=(words,), plots=(plot,))


def _front_plot(anchor: str, records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Plot:
    shown = "no trial is on the front yet"
    if findings.front:
        front = sorted(findings.front, key=lambda r: r.cost(axis.name))
        ends = [f"{r.ranking_top1:.1f} % at {costs_text(r, axis)}" for r in front]
        shown = f"the front has {counted(len(ends), 'point')}, from {ends[0]} to {ends[-1]}"
    figure = front_figure(records, axis=axis, place="page")
    return Plot(anchor=anchor, figure=figure, alternative=f"Top-1 against {axis.title}: {shown}.", height=560)


def _growth(records: Sequence[TrialRecord], axis: CostAxis) -> Chapter:
    found, heading = growth(records, axis), "Progress of the search"
    if found.reference is None:
        return Chapter(anchor="growth", heading=heading, paragraphs=("No trial within the budget has a score yet.",))
    cost, top1, *tokens = found.reference
    limit = "the highest cost of a scored trial" if axis.budget is None else "the budget"
    kind, more = "area", ""
    if axis.second is not None:
        kind, more = "volume", f", and {axis.second.text(tokens[0])}, {TOKENS_BEYOND:g} times the most of a trial"
    words = (
        f"The hypervolume is the {kind} between the trials so far and a reference point: {limit}, {axis.text(cost)}, "
        f"and {top1:.1f} %, the lowest top-1 within the budget{more}. It grows when a trial is cheaper or better than "
        "all earlier ones. Marks are the trials that raised it. Scores are those from when a trial ran; since the "
        "shared weights improve during the search, they contribute to the growth."
    )
    end = found.values[-1]
    late = next(place for place, value in enumerate(found.values, start=1) if value >= 0.95 * end)
    alternative = f"Hypervolume over {counted(len(found.trials), 'trial')}: {end:.4g} at the end, 95 % after {late}."
    rows = [
        (*_named(r), *(cost_text(r, each) for each in axis.axes), f"{r.top1:.1f}", f"{value:.4g}")
        for _, r, value in found.raised
    ]
    headings = ("trial", "kind", *(each.unit for each in axis.axes), "top-1 when it ran, %", "hypervolume")
    plot = Plot(anchor="plot-growth", figure=growth_figure(found, axis), alternative=alternative, height=380)
    table = make_table("Trials that raised the hypervolume", headings, rows)
    return Chapter(anchor="growth", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


def _layers(findings: Findings, axis: CostAxis) -> Chapter:
    if not findings.layers:
        return Chapter(anchor="layers", heading="Layers", paragraphs=("There is no trial yet.",))
    words = (
        f"A row per layer, in network order. Left: the {findings.amount} of the layer in each point of the front, "
        "lowest cost first; white is no merging, and darker cells keep fewer tokens. Middle: the loss added by merging "
        "at the layer, with one standard error in each direction; vermilion if statistically significant, else grey. "
        "Right: the GFLOPs saved."
    )
    rows = []
    for effect in findings.importance.layers:
        points = sum(record.schedule.keep_ratios[effect.layer] < 1 for record in findings.front)
        rows.append(
            (
                effect.layer,
                f"{points} of {len(findings.front)}",
                text(effect.keep_ratio, ".3g"),
                effect.loss and f"{effect.loss.value:+.4f} ± {effect.loss.se:.4f}",
                effect.top1 and f"{effect.top1.value:+.1f} ± {effect.top1.se:.1f}",
                effect.gflops_saved and f"{effect.gflops_saved.value:.4f}",
                "yes" if effect.distinct else "no",
            )
        )
    changes = ("added loss, nats", "added top-1, points", "GFLOPs saved", "significant")
    headings = ("layer", "merges in points of the front", "share of tokens kept", *changes)
    merging = f"{len(findings.always)} merge in every point of the front, {len(findings.never)} in none"
    plot = Plot(
        anchor="plot-layers",
        figure=layers_figure(findings, axis=axis, place="page"),
        alternative=f"{findings.amount.capitalize()}s of {counted(len(findings.layers), 'layer')}: {merging}.",
        height=height(findings, "page"),
        least_width=820,
    )
    table = make_table("Effect of merging at each layer", headings, rows)
    return Chapter(anchor="layers", heading="Layers", paragraphs=(words,), plots=(plot,), tables=(table,))


def _latency(records: Sequence[TrialRecord], axis: CostAxis, front: set[int]) -> Chapter:
    heading = "Predicted and measured latency"
    timed = with_fields(records, "latency_measured_ms", "latency_ms")
    timed.sort(key=lambda r: r.latency_measured_ms or 0.0)
    if not timed:
        words = "No latency was measured: the latency profile is from another machine, or the run was interrupted."
        return Chapter(anchor="latency", heading=heading, paragraphs=(words,))
    on_front = [r for r in timed if r.trial in front]
    difference = {r.trial: (r.latency_ms or 0.0) / (r.latency_measured_ms or 1.0) - 1 for r in timed}
    error = f"mean error {fmean(abs(difference[r.trial]) for r in on_front or timed):.1%}"
    words = (
        "The search uses predicted latencies; at its end the networks of the front (ringed) and the plain network are "
        "measured. On the dashed line both are equal; networks below it are slower than predicted. Bars are one "
        "standard error of the measurement, dotted lines the budget. "
        f"Predictions{' for the front' * bool(on_front)}: {error}."
    )
    rows = [
        (
            *_named(r),
            measured(r, "latency_ms"),
            measured(r, "latency_measured_ms"),
            text(difference[r.trial], "+.1%"),
            "yes" if breaks_budget(r, axis) else "",
        )
        for r in timed
    ]
    headings = ("trial", "kind", "predicted, ms", "measured, ms", "difference", "over budget")
    plot = Plot(
        anchor="plot-latency",
        figure=comparison_figure(timed, "latency_measured_ms", "latency_ms", front=front, budget=axis.budget),
        alternative=f"Predicted against measured milliseconds of {counted(len(timed), 'network')}: {error}.",
        height=520,
        most_width=600,
    )
    table = make_table("Measured networks", headings, rows)
    return Chapter(anchor="latency", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


_TERMS = {
    "mi_x": "information of the features on the image",
    "mi_y": "information of the features on the class",
    "ibb": "bound of their difference, minimised by the IB loss",
}


def _information(records: Sequence[TrialRecord]) -> Chapter:
    heading = "Information bottleneck and accuracy"
    found = {term: terms for term in _TERMS if (terms := with_fields(records, term, "top1"))}
    if not found:
        return Chapter(anchor="information", heading=heading, paragraphs=("No trial has information terms.",))
    plots, taus = [], []
    for term, terms in found.items():
        name, tau = MEASURES[term].title, agreement(terms, term, "top1")
        alternative = f"Top-1 against {name}: {tau}."
        figure = information_figure(terms, term)
        plots.append(Plot(anchor=f"plot-{term}", figure=figure, alternative=alternative, height=340))
        taus.append(f"{name}, {_TERMS[term]}: {tau}.")
    words = (
        "A panel per information term, in nats, of the features of the validation images after a trial's training; "
        "top-1 is from the same time. A term is related to accuracy if it orders the trials as top-1 does (tau near 1) "
        "or in reverse (near −1)."
    )
    rows = [
        (
            *_named(r),
            *(measured(r, term) for term in found),
            text(r.ib_weight),
            with_error(r.top1, r.top1_se),
        )
        for r in sorted(records, key=lambda r: r.trial)
        if any(getattr(r, term) is not None for term in found)
    ]
    headings = ("trial", "kind", *(MEASURES[term].title for term in found), "IB weight", "top-1 when it ran, %")
    table = make_table("Information terms, in nats", headings, rows)
    paragraphs = (words, " ".join(taus))
    return Chapter(anchor="information", heading=heading, paragraphs=paragraphs, plots=tuple(plots), tables=(table,))


def _scores(records: Sequence[TrialRecord], front: set[int]) -> Chapter:
    heading, x, y = "First and final scores", "top1", "rescored_top1"
    both = with_fields(records, x, y)
    if not both:
        words = "No trial was rescored: the run has not finished, or no trial has a score."
        return Chapter(anchor="scores", heading=heading, paragraphs=(words,))
    tau = agreement(both, x, y)
    words = (
        "Candidates for the front are scored twice: when their trial ran, and at the end of the search, all with the "
        "same final weights and on more images. Above the dashed line a score rose. The front uses the second scores "
        f"and their loss. Agreement in order: {tau} (1: the same order, 0: no relation)."
    )
    rows = [(*_named(r), measured(r, x), measured(r, y)) for r in both]
    plot = Plot(
        anchor="plot-scores",
        figure=comparison_figure(both, x, y, front=front),
        alternative=f"Final against first top-1 of {counted(len(both), 'trial')}: {tau}.",
        height=520,
        most_width=600,
    )
    table = make_table("Trials scored twice", ("trial", "kind", "top-1 when it ran, %", "final top-1, %"), rows)
    return Chapter(anchor="scores", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


def _times(records: Sequence[TrialRecord], times: Times) -> Chapter:
    heading, seconds = "Time", times.seconds
    trained = [r.seconds for r in records if r.state not in REJECTED and r.seconds is not None]
    if not times.total:
        words = "The run was made by a version that did not record times."
        words += f" Its trials took {duration(sum(trained))} in total." if trained else ""
        return Chapter(anchor="times", heading=heading, paragraphs=(words,))
    words = (
        f"Wall time of {counted(len(times.stints), 'call')} of ltmsearch run: {duration(times.total)} in total, from "
        "the end of imports to the writing of this page. The overhead of the search beside training and scoring its "
        f"trials ({OVERHEAD}) is {seconds.get(OVERHEAD, 0.0) / times.total:.1%}."
    )
    words += f" A trial took {duration(sum(trained) / len(trained))} on average." if trained else ""
    rows = [(part, duration(value), f"{value / times.total:.1%}") for part, value in seconds.items()]
    tables = [make_table("Parts", ("part", "time", "share"), rows, [("total", duration(times.total), "100 %")])]
    if len(times.stints) > 1:
        made = [(f"{s.started:%Y-%m-%d %H:%M}", duration(s.total), s.device) for s in times.stints]
        tables.append(make_table("Calls", ("started", "duration", "device"), made))
    alternative = f"Seconds of each part; the longest is {max(seconds, key=lambda part: seconds[part])}."
    size = 70 + 34 * len(seconds)
    plot = Plot(anchor="plot-times", figure=times_figure(seconds), alternative=alternative, height=size)
    return Chapter(anchor="times", heading=heading, paragraphs=(words,), plots=(plot,), tables=tuple(tables))


def _settings(run: Run, times: Times) -> Chapter:
    values = run.settings.public().items()
    rows = [(name, "none" if v is None else text(v, "g") if isinstance(v, float) else v) for name, v in values]
    tables = [make_table("Settings, with all defaults", ("setting", "value"), rows)]
    words = "The run was made by a version that did not record device and versions; its recipes contain versions."
    if times.stints:
        last = times.stints[-1]
        words = f"Device: {last.device}."
        if any(stint.versions != last.versions for stint in times.stints):
            words += " Earlier calls used other versions; times.json contains those of each call."
        tables.append(make_table("Library versions of the run", ("library", "version"), list(last.versions.items())))
    return Chapter(anchor="settings", heading="Settings and versions", paragraphs=(words,), tables=tuple(tables))
