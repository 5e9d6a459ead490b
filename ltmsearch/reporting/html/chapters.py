"""Chapters of a report: text, tables and figures of its trials, layers, times and settings."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ltmsearch.config.objective import MEASURES, CostAxis
from ltmsearch.reporting.convergence import (
    FINAL,
    QUANTITIES,
    REJECTED,
    TOKENS_BEYOND,
    agreement,
    growth,
    measured,
    with_fields,
)
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.answers import against_chapter, examples_chapter
from ltmsearch.reporting.html.charts import comparison_figure, growth_figure, information_figure, times_figure
from ltmsearch.reporting.html.elements import Chapter, Plot, make_table, named
from ltmsearch.reporting.layer_plot import height, layers_figure, least_width
from ltmsearch.reporting.numbers import (
    SHORT,
    breaks_budget,
    cost_text,
    costs_text,
    counted,
    duration,
    points,
    text,
    with_error,
)
from ltmsearch.reporting.pareto_layout import front_layout
from ltmsearch.reporting.pareto_plot import front_figure
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.run import Run
from ltmsearch.search.timing import OVERHEAD, Times


def make_chapters(run: Run, findings: Findings, times: Times) -> list[Chapter]:
    """All chapters of a report below its summary, in the order of the page."""
    records, axis, front = run.trials, run.settings.axis, {record.trial for record in findings.front}
    latency = [_latency(records, axis, front)] if axis.name == "latency_ms" else []
    return [
        _front(records, findings, axis),
        *([] if axis.second is None else [_tokens(records, findings, axis)]),
        *against_chapter(findings, axis),
        _layers(findings),
        *examples_chapter(run),
        _growth(records, axis),
        *latency,
        _information(records, axis),
        _scores(records, axis, front),
        _times(records, times),
        _settings(run, times),
    ]


def _front(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Chapter:
    short = SHORT[axis.measure]
    rows = [
        (
            *named(r),
            *(cost_text(r, each) for each in axis.axes),
            with_error(r.told(axis.measure), None, 4),
            with_error(r.top1, r.top1_se),
            with_error(r.rescored(axis.measure), None, 4),
            with_error(r.report_top1, r.report_top1_se),
            points(r.difference, r.difference_se),
            with_error(r.agreement, r.agreement_se),
            "yes" if r in findings.front else "",
            "yes" if r.feasible else "no",
        )
        for r in sorted(records, key=lambda r: r.trial)
        if r.score is not None
    ]
    first = (f"{short} when it ran, nats", "top-1 when it ran, %")
    final = (f"final {short}, nats", "reported top-1, %", "less plain, points", "agreement, %")
    headings = ("trial", "kind", *(each.unit for each in axis.axes), *first, *final, "on front", "within budget")
    table = make_table("All scored trials", headings, rows)
    plot = _front_plot("plot-front", records, findings, axis)
    words = (_front_words(records, findings, axis), _marks_words(findings, axis))
    return Chapter(anchor="front", heading="Front", paragraphs=words, plots=(plot,), tables=(table,))


def _front_words(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> str:
    images = "images" if findings.verdict is None else f"{findings.verdict.images} images"
    words = (
        "Each mark is a trial: its cost, and its top-1 less that of the plain network, which is the grey line at 0. "
        f"Filled marks are the networks scored at the end, with the final weights on {images} that neither search nor "
        "choice saw; open marks are the others, when their trial ran, on the search images. The line joins the front, "
        f"which is chosen by {MEASURES[axis.measure]} on the validation images; on other images top-1 need not rise "
        "with the cost. Bars are one standard error of the difference."
    )
    layout = front_layout(records, axis, findings.verdict, findings.curves)
    if layout.hidden:
        scored = sum(record.score is not None for record in layout.hidden)
        words += (
            f" Not in view: {counted(scored, 'trial')} with and {len(layout.hidden) - scored} without a score; "
            "double-click on the plot to show all."
        )
    if layout.unplaced:
        words += f" Not shown: {counted(len(layout.unplaced), 'scored trial')}, for lack of the plain network's score."
    return words


def _marks_words(findings: Findings, axis: CostAxis) -> str:
    words = (
        "Circles are searched trials, squares start-up trials, diamonds baselines; rings mark the front. Below the "
        "plot are trials without a score: ticks were rejected by their cost alone, crosses failed. Hover over a mark "
        "for all its values."
    )
    if findings.verdict is not None and findings.verdict.not_better:
        words += " Thin grey rings: top-1 is not significantly higher than that of a cheaper point (95 %)."
    if findings.curves:
        words += (
            " The curves are what is set by hand at other costs, up to the plain network: one keep ratio, one number "
            "of tokens per layer (ToMe's r) or the plain network on smaller images. They have errors like those of the "
            "points, so a small distance between both says nothing."
        )
    if axis.budget is not None:
        words += f" The dashed line is the budget, {axis.budget:g} {axis.unit}."
    if any(breaks_budget(record, axis) for record in findings.front):
        words += " Vermilion bars are latencies measured over the budget."
    if axis.second is not None:
        words += (
            " Colours show the third objective, the tokens sent. The line joins the best trials by cost alone; thin "
            "black rings are on the front only because they send fewer tokens."
        )
    return words


def _tokens(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Chapter:
    words = (
        f"The same trials over the {axis.swapped.title}. Colours show {axis.title}. The line joins the best trials by "
        "tokens sent alone; thin black rings are on the front only because they cost less."
    )
    plot = _front_plot("plot-tokens", records, findings, axis.swapped)
    return Chapter(anchor="tokens", heading="Tokens sent", paragraphs=(words,), plots=(plot,))


def _front_plot(anchor: str, records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Plot:
    shown = "no trial is on the front yet"
    if findings.front:
        front = sorted(findings.front, key=lambda r: r.cost(axis.name))
        ends = [f"{points(r.difference) or 'unknown'} at {costs_text(r, axis)}" for r in front]
        shown = f"the front has {counted(len(ends), 'point')}, from {ends[0]} to {ends[-1]}"
    words = f"Top-1 less the plain network's, in points, against {axis.title}: {shown}."
    more: dict[str, Any] = {"verdict": findings.verdict, "curves": findings.curves}
    figure = front_figure(records, axis=axis, place="page", **more)
    return Plot(anchor=anchor, figure=figure, alternative=words, height=560)


def _growth(records: Sequence[TrialRecord], axis: CostAxis) -> Chapter:
    found, heading = growth(records, axis), "Progress of the search"
    if found.reference is None:
        return Chapter(anchor="growth", heading=heading, paragraphs=("No trial within the budget has a score yet.",))
    cost, middle, *tokens = found.reference
    limit = "the highest cost of a scored trial" if axis.budget is None else "the budget"
    kind, more = "area", ""
    if axis.second is not None:
        kind, more = "volume", f", and {axis.second.text(tokens[0])}, {TOKENS_BEYOND:g} times the most of a trial"
    words = (
        f"The hypervolume is the {kind} between the trials so far and a reference point: {limit}, {axis.text(cost)}, "
        f"and the median {SHORT[axis.measure]} of the trials within the budget, {middle:.4f} nats{more}. It grows when "
        "a trial is cheaper or better than all earlier ones. Marks are the trials that raised it. Values are those of "
        "the search images when a trial ran; since the shared weights improve during the search, they contribute to "
        "the growth."
    )
    end = found.values[-1]
    late = next(place for place, value in enumerate(found.values, start=1) if value >= 0.95 * end)
    alternative = f"Hypervolume over {counted(len(found.trials), 'trial')}: {end:.4g} at the end, 95 % after {late}."
    rows = [
        (*named(r), *(cost_text(r, each) for each in axis.axes), measured(r, axis.measure), f"{value:.4g}")
        for _, r, value in found.raised
    ]
    told = f"{QUANTITIES[axis.measure].title}, nats"
    headings = ("trial", "kind", *(each.unit for each in axis.axes), told, "hypervolume")
    plot = Plot(anchor="plot-growth", figure=growth_figure(found, axis), alternative=alternative, height=380)
    table = make_table("Trials that raised the hypervolume", headings, rows)
    return Chapter(anchor="growth", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


def _layers(findings: Findings) -> Chapter:
    if not findings.layers:
        return Chapter(anchor="layers", heading="Layers", paragraphs=("There is no trial yet.",))
    words = (
        f"A row per layer, in network order, and a column per point of the front, lowest cost first, with its top-1 "
        f"less the plain network's in points. Cells are the {findings.amount} of the layer; white is no merging, and "
        "darker cells keep fewer tokens."
    )
    rows = []
    for layer in findings.layers:
        kept = [record.kept_share(layer) for record in findings.front if record.schedule.keep_ratios[layer] < 1]
        shares = sorted({f"{share:.3g}" for share in kept}, key=float)
        rows.append(
            (layer, f"{len(kept)} of {len(findings.front)}", " to ".join(dict.fromkeys(shares[:1] + shares[-1:])))
        )
    merging = f"{len(findings.always)} merge in every point of the front, {len(findings.never)} in none"
    plot = Plot(
        anchor="plot-layers",
        figure=layers_figure(findings, place="page"),
        alternative=f"{findings.amount.capitalize()}s of {counted(len(findings.layers), 'layer')}: {merging}.",
        height=height(findings, "page"),
        least_width=least_width(findings),
    )
    headings = ("layer", "merges in points of the front", "share of tokens kept where it merges")
    table = make_table("Merging at each layer", headings, rows)
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
            *named(r),
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


def _information(records: Sequence[TrialRecord], axis: CostAxis) -> Chapter:
    told, short = axis.measure, SHORT[axis.measure]
    heading = "Information terms and what merging loses"
    found = {term: terms for term in _TERMS if (terms := with_fields(records, term, told))}
    if not found:
        return Chapter(anchor="information", heading=heading, paragraphs=("No trial has information terms.",))
    plots, taus = [], []
    for term, terms in found.items():
        name, tau = QUANTITIES[term].title, agreement(terms, term, told)
        figure = information_figure(terms, term, axis.measure)
        plots.append(
            Plot(anchor=f"plot-{term}", figure=figure, alternative=f"{short} against {name}: {tau}.", height=340)
        )
        taus.append(f"{name}, {_TERMS[term]}: {tau}.")
    words = (
        "A panel per information term, in nats, of the features of the search images after a trial's training, "
        f"against {MEASURES[axis.measure]} on the same images. A term is related to it if both order the trials alike "
        "(tau near 1) or in reverse (near −1)."
    )
    rows = [
        (*named(r), *(measured(r, term) for term in found), text(r.ib_weight), measured(r, told))
        for r in sorted(records, key=lambda r: r.trial)
        if any(getattr(r, term) is not None for term in found)
    ]
    titles = (QUANTITIES[term].title for term in found)
    headings = ("trial", "kind", *titles, "IB weight", QUANTITIES[told].title)
    table = make_table("Information terms, in nats", headings, rows)
    paragraphs = (words, " ".join(taus))
    return Chapter(anchor="information", heading=heading, paragraphs=paragraphs, plots=tuple(plots), tables=(table,))


def _scores(records: Sequence[TrialRecord], axis: CostAxis, front: set[int]) -> Chapter:
    heading, x, y = "First and final scores", axis.measure, FINAL[axis.measure]
    both = with_fields(records, x, y)
    if not both:
        words = "No trial was rescored: the run has not finished, or no trial has a score."
        return Chapter(anchor="scores", heading=heading, paragraphs=(words,))
    tau = agreement(both, x, y)
    words = (
        f"Finalists are scored twice by {MEASURES[axis.measure]}: when their trial ran, on the search images; and at "
        "the end, all with the same final weights, on the validation images. Below the dashed line the value fell. The "
        f"front is chosen by the second. Agreement in order: {tau} (1: the same order, 0: no relation)."
    )
    rows = [(*named(r), measured(r, x), measured(r, y)) for r in both]
    plot = Plot(
        anchor="plot-scores",
        figure=comparison_figure(both, x, y, front=front),
        alternative=f"Final against first {SHORT[axis.measure]} of {counted(len(both), 'trial')}: {tau}.",
        height=520,
        most_width=600,
    )
    headings = ("trial", "kind", *(f"{QUANTITIES[name].title}, nats" for name in (x, y)))
    table = make_table("Trials scored twice", headings, rows)
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
