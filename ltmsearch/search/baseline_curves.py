"""Scores of the curves of baselines: networks that are no trials, scored at the end only, which choose nothing."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.answers import UNREADABLE, Answers, known_error
from ltmsearch.search.baselines import RANGE_LEVELS, Baseline, BaselineFit
from ltmsearch.search.curve_points import Curve, CurvePoint
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.setup import StudyContext

BELOW, ABOVE = 0.85, 1.15
"""Costs of the further networks, as shares of a single budget; at most half-way to what merging can reach."""
LEAST = 0.6
"""Plain networks on smaller images cost at least this share of the lowest budget."""


class Further(NamedTuple):
    """A network of a curve that is no trial."""

    curve: Curve
    label: str
    schedule: MergeSchedule


def further_networks(context: StudyContext, scored: Collection[str] | None = None) -> list[Further]:
    """The networks of the curves that are no trials, all cheaper than the plain one.

    There are none where baselines are not fitted.

    Args:
        scored: Labels of the trials that are scored; None: of all baselines that the study began with.
    """
    if context.settled.baselines is None:
        return []
    if scored is None:
        scored = {one.label for one in context.settled.baselines}
    plain = context.costs.base
    found = {one.label: one for one in _all_networks(context) if one.label not in scored}
    return [one for one in found.values() if context.costs_at(one.schedule).macs(one.schedule) < plain]


def score_curves(
    context: StudyContext, records: Sequence[TrialRecord], answers: Answers, callbacks: Callbacks
) -> list[CurvePoint]:
    """Score the networks of the curves with the supernet's present weights, and add the baselines that are trials.

    Args:
        records: All trials.
        answers: Answers of the finalists to the reported images.

    Returns:
        The points of all curves, each curve from its cheapest.
    """
    trials = {record.label: record for record in records if record.trial in answers.trials}
    further, points = further_networks(context, trials), []
    if further:
        callbacks.phase("curves of baselines", len(further))
    for done, one in enumerate(further):
        callbacks.advance(done, one.label)
        predicted = context.evaluator.score(one.schedule, "report").predictions
        if len(predicted) != len(answers.labels):
            raise InputError(UNREADABLE)
        gflops = context.costs_at(one.schedule).gflops(one.schedule)
        points.append(_point(one.curve, one.label, None, gflops, answers, predicted))
    if further:
        callbacks.advance(len(further))
    for baseline in context.settled.baselines or ():
        curve, record = _curve(context, baseline), trials.get(baseline.label)
        if curve is not None and record is not None:
            predicted = answers.trials[record.trial]
            points.append(_point(curve, record.label, record.trial, record.gflops, answers, predicted))
    return sorted(points, key=lambda point: (point.curve, point.gflops, point.label))


def _all_networks(context: StudyContext) -> Iterator[Further]:
    budget, fit = context.budgets[0], BaselineFit(context.space_file, context.costs)
    lowest = budget.minimum or budget.limit
    limit, ends = budget.limit, (fit.cheapest_uniform(fit.forms[0]), context.costs.base)
    levels = [max(BELOW * limit, (limit + ends[0]) / 2), limit, min(ABOVE * limit, (limit + ends[1]) / 2)]
    if budget.minimum:
        levels = np.linspace(budget.minimum, budget.limit, RANGE_LEVELS).tolist()
    for level in levels:
        fitted: list[tuple[Curve, Iterator[Baseline]]] = [
            ("one ratio", fit.uniform(level, fit.forms[0])),
            ("one number of tokens", fit.count(level)),
        ]
        yield from (Further(curve, one.label, fit.schedule(one)) for curve, found in fitted for one in found)
    for size, costs in context.sizes.costs.items():
        if size != context.sizes.own and costs.base >= LEAST * lowest:
            one = Baseline(label=f"plain at {size} px", keep_ratio=1.0, img_size=size)
            yield Further("smaller images", one.label, BaselineFit(context.space_file, costs).schedule(one))


def _curve(context: StudyContext, baseline: Baseline) -> Curve | None:
    """The curve of a baseline that is a trial."""
    if baseline.img_size is not None:
        return "smaller images" if baseline.keep_ratio == 1 else None
    if baseline.first_layers is not None or baseline.form not in (None, context.space.forms[0]):
        return None
    return "one number of tokens" if baseline.keep_ratio < 0 else "one ratio"


def _point(
    curve: Curve, label: str, trial: int | None, gflops: float, answers: Answers, predicted: np.ndarray
) -> CurvePoint:
    own = replace(answers, trials={0: predicted})
    top1, less = own.top1(0), own.difference(0)
    return CurvePoint(
        label=label,
        curve=curve,
        trial=trial,
        gflops=gflops,
        report_top1=top1.value,
        report_top1_se=known_error(top1.se),
        difference=less.value,
        difference_se=known_error(less.se),
    )
