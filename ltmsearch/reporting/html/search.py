"""The chapters on the search as a whole: its front, how fast it was found, both scores, times, settings."""

from collections.abc import Sequence
from typing import Any

from ltmsearch.config.objective import CostAxis
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.io.figures import figure_json
from ltmsearch.reporting.convergence import REJECTED, agreement, first_and_final, growth
from ltmsearch.reporting.findings import Findings
from ltmsearch.reporting.html.charts import for_page, growth_figure, scores_figure, times_figure
from ltmsearch.reporting.html.parts import Chapter, Plot, called, cost_text, counted, duration, plain_table, with_error
from ltmsearch.reporting.pareto_layout import front_picture
from ltmsearch.reporting.pareto_plot import breaks_budget, front_figure
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.timing import OVERHEAD, Times


def front_chapter(records: Sequence[TrialRecord], findings: Findings, axis: CostAxis) -> Chapter:
    """The front among all trials."""
    hidden = front_picture(records, axis).hidden
    words = (
        "Each mark is a trial: further right costs more, higher scores better. Circles are searched, squares start-up "
        "trials, diamonds baselines. Filled marks are scored with the final weights, and stand at the top-1 that they "
        "are ranked by, half measured, half told by their loss; open ones at the top-1 of when their trial ran. Rings "
        "with bars of one standard error, joined by steps, are the front. Under the plot stand those without a score: "
        "ticks are proposals rejected by their cost alone, crosses are failed trials. Point at a mark for all that is "
        "known of it."
    )
    if axis.budget is not None:
        words += f" The dashed line is the budget, {axis.budget:g} {axis.unit}."
    if any(breaks_budget(record, axis) for record in findings.front):
        words += " Bars in vermilion were measured over the budget."
    if hidden:
        scored = sum(record.score is not None for record in hidden)
        words += (
            f" Not in view: {counted(scored, 'trial')} with and {len(hidden) - scored} without a score; a double click "
            "on the plot shows all."
        )
    shown = "no trial is on the front yet"
    if findings.front:
        points = counted(len(findings.front), "point")
        shown = f"the front has {points}, from {_point(findings.front[0], axis)} to {_point(findings.front[-1], axis)}"
    rows = [
        (
            r.trial, called(r), cost_text(r, axis), with_error(r.top1, r.top1_se),
            with_error(r.rescored_top1, r.rescored_top1_se), None if score.loss is None else f"{score.loss:.4f}",
            "yes" if r in findings.front else "", "yes" if r.feasible else "no",
        )
        for r in sorted(records, key=lambda r: r.trial)
        if (score := r.score) is not None
    ]  # fmt: skip
    headings = (
        "trial", "kind", axis.unit, "top-1 when it ran, %", "final top-1, %", "loss", "on the front", "within budget",
    )  # fmt: skip
    figure = figure_json(for_page(front_figure(records, title="", axis=axis), top=20))
    alternative = f"Top-1 against {axis.title}: {shown}."
    plot = Plot(anchor="plot-front", figure=figure, alternative=alternative, height=560)
    table = plain_table("All scored trials", headings, rows)
    return Chapter(anchor="front", heading="The front", paragraphs=(words,), plots=(plot,), tables=(table,))


def growth_chapter(records: Sequence[TrialRecord], axis: CostAxis) -> Chapter:
    """The hypervolume over the trials."""
    told, heading = growth(records, axis), "How fast it was found"
    if told.reference is None:
        return Chapter(anchor="growth", heading=heading, paragraphs=("No trial within the budget has a score yet.",))
    cost, top1 = told.reference
    whose = "the dearest score" if axis.budget is None else "the budget"
    words = (
        f"The hypervolume is the area between the trials so far and a reference point: {whose}, {axis.text(cost)}, and "
        f"{top1:.1f} %, the lowest top-1 within the budget. It grows when a trial is cheaper or better than all before "
        "it, and is flat while the search finds nothing new. Marks are the trials that raised it. Scores are those of "
        "the time when a trial ran: the weights improve meanwhile, so that a part of the growth is theirs."
    )
    end = told.values[-1]
    late = next(place for place, value in enumerate(told.values, start=1) if value >= 0.95 * end)
    alternative = (
        f"Hypervolume over {counted(len(told.trials), 'trial')}: {end:.4g} at the end, 95 % of it after {late}."
    )
    rows = [(r.trial, called(r), cost_text(r, axis), f"{r.top1:.1f}", f"{value:.4g}") for _, r, value in told.raised]
    headings = ("trial", "kind", axis.unit, "top-1 when it ran, %", "hypervolume")
    figure = figure_json(growth_figure(told, axis))
    plot = Plot(anchor="plot-growth", figure=figure, alternative=alternative, height=380)
    table = plain_table("Trials that raised it", headings, rows)
    return Chapter(anchor="growth", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


def scores_chapter(records: Sequence[TrialRecord], front: set[int]) -> Chapter:
    """Scores of the trials' own time against those with the final weights.

    Args:
        records: All trials.
        front: Numbers of those on the front.
    """
    pairs, heading = first_and_final(records), "First against final scores"
    if not pairs:
        words = "No trial was scored again: the run has not come to its end yet, or no trial has a score."
        return Chapter(anchor="scores", heading=heading, paragraphs=(words,))
    found = agreement(pairs)
    words = (
        "The candidates for the front are scored twice: when their trial ran, and at the end, all with the same final "
        "weights and on more images. Above the dashed line a score rose. The order matters more than the height, and "
        f"where the two disagree the front goes by the second and its loss: {found} (1: the same order, 0: no "
        "relation)."
    )
    rows = [
        (r.trial, called(r), with_error(pair.x, r.top1_se), with_error(pair.y, r.rescored_top1_se))
        for pair in pairs
        if (r := pair.record)
    ]
    headings = ("trial", "kind", "top-1 when it ran, %", "final top-1, %")
    alternative = f"Final against first top-1 of {counted(len(pairs), 'trial')}: {found}."
    plot = Plot(
        anchor="plot-scores",
        figure=figure_json(scores_figure(pairs, front)),
        alternative=alternative,
        height=520,
        most_width=600,
    )
    table = plain_table("Trials scored twice", headings, rows)
    return Chapter(anchor="scores", heading=heading, paragraphs=(words,), plots=(plot,), tables=(table,))


def times_chapter(records: Sequence[TrialRecord], times: Times) -> Chapter:
    """Where the time of the run went."""
    heading, seconds = "Where the time went", times.seconds
    trained = [r.seconds for r in records if r.state not in REJECTED and r.seconds is not None]
    if not times.total:
        words = "The times of this run's parts are not known: it was made before they were kept."
        words += f" Its trials took {duration(sum(trained))} in all." if trained else ""
        return Chapter(anchor="times", heading=heading, paragraphs=(words,))
    calls = "one call" if len(times.stints) == 1 else f"{len(times.stints)} calls"
    words = (
        f"Wall time of {calls} of ltmsearch run, {duration(times.total)} in all, without importing libraries, up to "
        f"the writing of this page. What a search adds to training and scoring its trials ({OVERHEAD}) is "
        f"{seconds.get(OVERHEAD, 0.0) / times.total:.1%} of it."
    )
    words += f" A trial took {duration(sum(trained) / len(trained))} on average." if trained else ""
    rows = [(part, duration(value), f"{value / times.total:.1%}") for part, value in seconds.items()]
    tables = [plain_table("Parts", ("part", "time", "share"), rows, [("in all", duration(times.total), "100 %")])]
    if len(times.stints) > 1:
        made = [(f"{s.started:%Y-%m-%d %H:%M}", duration(s.total), s.device) for s in times.stints]
        tables.append(plain_table("Calls", ("started", "took", "on"), made))
    alternative = f"Seconds of each part; most took {max(seconds, key=lambda part: seconds[part])}."
    figure, height = figure_json(times_figure(seconds)), 70 + 34 * len(seconds)
    plot = Plot(anchor="plot-times", figure=figure, alternative=alternative, height=height)
    return Chapter(anchor="times", heading=heading, paragraphs=(words,), plots=(plot,), tables=tuple(tables))


def settings_chapter(settings: ResolvedSettings, times: Times) -> Chapter:
    """Every setting; versions and device as they were when the run was made."""
    rows = [(name, _setting(value)) for name, value in settings.public().items()]
    tables = [plain_table("Settings, every default filled in", ("setting", "value"), rows)]
    words = "Device and versions of this run are not known: it was made before they were kept. Recipes hold versions."
    if times.stints:
        last = times.stints[-1]
        words = f"Computed on {last.device}."
        if any(stint.versions != last.versions for stint in times.stints):
            words += " Earlier calls had other versions; times.json holds those of each."
        tables.append(plain_table("Versions when it ran", ("library", "version"), list(last.versions.items())))
    return Chapter(anchor="settings", heading="Settings and versions", paragraphs=(words,), tables=tuple(tables))


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _point(record: TrialRecord, axis: CostAxis) -> str:
    return f"{record.ranking_top1:.1f} % at {axis.text(record.cost(axis.name))}"
