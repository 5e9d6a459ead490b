"""Layout of the front's plot, computed from plain records before anything is drawn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from ltmsearch.config.objective import CostAxis
from ltmsearch.search.records import TrialRecord, select_front

Group = Literal["searched", "start-up", "baseline", "over budget", "below range", "failed"]
Range = tuple[float, float]
UNSCORED = ("over budget", "below range", "failed")


@dataclass(frozen=True, kw_only=True)
class FrontLayout:
    """Everything that `front_figure` draws, as plain data."""

    marks: dict[tuple[Group, bool], tuple[TrialRecord, ...]]
    """(Group, whether rescored) → its records. No entry is empty."""
    front: tuple[TrialRecord, ...]
    """The non-dominated rescored trials, lowest cost first."""
    by_second: tuple[TrialRecord, ...]
    """Those that are on the front only by its second cost: below the steps."""
    step: tuple[tuple[float, float], ...]
    """Corners (cost, top-1) of the best expected top-1 at each cost, up to the budget."""
    labels: tuple[tuple[TrialRecord, str, str], ...]
    """A front point or baseline, its label, and the side of the mark where the label covers least."""
    x_range: Range
    """Costs in view: those of the front, and slightly beyond the budget."""
    y_range: Range
    """Top-1 in view."""
    beyond: tuple[TrialRecord, ...]
    """Scored baselines that cost more than the view shows; labels at its right edge name them."""
    hidden: tuple[TrialRecord, ...]
    """Other records outside the view."""


def front_layout(records: Iterable[TrialRecord], axis: CostAxis) -> FrontLayout:
    """Compute the layout of the plot. The step line ends at the budget, and the view slightly beyond."""
    records = sorted(records, key=lambda r: r.trial)
    scored = [r for r in records if r.score]
    front = tuple(sorted(select_front(records, axis.costs), key=lambda r: r.costs(axis.costs)))
    best = sorted(select_front(front, (axis.name,)), key=lambda r: r.cost(axis.name))
    corners = [(r.cost(axis.name), shown_top1(r)) for r in best]
    step = [corner for a, b in pairwise(corners) for corner in (a, (b[0], a[1]))] + corners[-1:]
    if corners and axis.budget is not None and axis.budget > corners[-1][0]:
        step.append((axis.budget, corners[-1][1]))
    usual = _usual(scored)
    x_range = _x_range(usual or records, axis, front)
    beyond = tuple(r for r in scored if r.kind == "baseline" and r.cost(axis.name) > x_range[1])
    y_range = _y_range([r for r in usual if r in beyond or _inside(r.cost(axis.name), x_range)], front)
    seen = [
        r for r in records if _inside(r.cost(axis.name), x_range) and (not r.score or _inside(shown_top1(r), y_range))
    ]
    looks = [(group, rescored) for group in get_args(Group) for rescored in (True, False)]
    return FrontLayout(
        marks={look: same for look in looks if (same := tuple(r for r in records if _look(r) == look))},
        front=front,
        by_second=tuple(r for r in front if r not in best),
        step=tuple(step),
        labels=_labels([r for r in scored if r not in beyond], front, axis, x_range, y_range),
        x_range=x_range,
        y_range=y_range,
        beyond=beyond,
        hidden=tuple(r for r in records if r not in seen and r not in beyond),
    )


def shown_top1(record: TrialRecord) -> float:
    """The top-1 at which a scored trial is drawn."""
    assert record.ranking_top1 is not None, record
    return record.ranking_top1


def _inside(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _look(record: TrialRecord) -> tuple[Group, bool]:
    return record.kind if record.state == "scored" else record.state, record.rescored_top1 is not None


def _usual(scored: Sequence[TrialRecord]) -> list[TrialRecord]:
    """All trials but outliers so low that they would flatten the rest of the plot."""
    if not scored:
        return []
    quarter, most = np.quantile([shown_top1(r) for r in scored], [0.25, 0.75])
    return [r for r in scored if shown_top1(r) >= quarter - max(3 * (most - quarter), 5.0)]


def _x_range(shown: Sequence[TrialRecord], axis: CostAxis, front: Sequence[TrialRecord]) -> Range:
    """From the cheapest feasible trial to slightly beyond the budget; more expensive scored trials only if near."""
    useful = [r.cost(axis.name) for r in shown if r.feasible] or [r.cost(axis.name) for r in shown]
    useful += [] if axis.budget is None else [axis.budget]
    if axis.name == "latency_ms":
        useful += [r.latency_measured_ms for r in front if r.latency_measured_ms is not None]
    if not useful:
        return 0.0, 1.0
    low, high = min(useful), max(useful)
    span = max(high - low, 0.02 * high)
    costs = [r.cost(axis.name) for r in shown if r.score]
    near = [cost + 0.08 * span for cost in costs if cost <= high + 0.4 * span]
    # The strip beyond the budget has room for the labels at its right edge.
    beyond = high + (0.08 if axis.name == "tokens_sent" else 0.25) * span
    return low - 0.08 * span, max([beyond, *near])


def _y_range(shown: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> Range:
    if not shown:
        return 0.0, 100.0
    ends = [shown_top1(r) + sign * (r.rescored_top1_se or 0) * (r in front) for r in shown for sign in (-1, 1)]
    low, height = min(ends), max(ends) - min(ends) + 1
    return max(low - 0.08 * height, -1.0), min(max(ends) + 0.13 * height, 104.0)


def _labels(
    scored: Sequence[TrialRecord], front: Sequence[TrialRecord], axis: CostAxis, x_range: Range, y_range: Range
) -> tuple[tuple[TrialRecord, str, str], ...]:
    """Labels of the front and the baselines, each on the side where it covers the fewest marks and earlier labels."""
    corner, size = np.array([x_range[0], y_range[0]]), np.array([np.ptp(x_range), np.ptp(y_range)])
    at = {r.trial: (np.array([r.cost(axis.name), shown_top1(r)]) - corner) / size for r in scored}
    taken = list(at.values())
    below = {"bottom center": (0, -1), "bottom right": (1, -1), "bottom left": (-1, -1)}
    above = {"top left": (-1, 1), "top right": (1, 1), "top center": (0, 1)}
    labels = []
    for record in [*front, *(r for r in scored if r.kind == "baseline" and r not in front)]:
        words = record.label or str(record.trial)
        # Ties go to the first side: neither the step line nor an error bar is above left of a front point.
        sides = above | below if record in front else below | above
        # Half the size of the label, in shares of a plot of 880 × 430 pixels, and room for the mark.
        half = np.array([len(words) * 7.5 / 2 / 880, 8 / 430])
        middles = {side: at[record.trial] + way * (half + np.array([0.01, 0.03])) for side, way in sides.items()}
        covers = {s: (np.abs(np.array(taken) - m) < half + 0.008).all(axis=1).sum() for s, m in middles.items()}
        cut = {s: abs(m[0] - 0.5) > 0.5 - half[0] for s, m in middles.items()}
        side = min(sides, key=lambda side: (cut[side], covers[side]))
        labels.append((record, words, side))
        taken += [middles[side] + half * (end, 0) for end in np.linspace(-1, 1, len(words) + 1)]
    return tuple(labels)
