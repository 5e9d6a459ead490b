"""How a search went, as plain records: its hypervolume, first against final scores, predicted against measured latency,
information terms against accuracy. `charts` draws them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau

from ltmsearch.config.objective import CostAxis
from ltmsearch.search.pareto import hypervolume_curve
from ltmsearch.search.records import TrialRecord

REJECTED = ("over budget", "below range")
"""States of proposals that were neither trained nor scored."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike two measures order some trials."""

    tau: float | None
    """Kendall's tau-b: 1 the same order, 0 no relation, −1 the reverse; None where one of them knows no order."""
    pairs: int
    """Trials that have both."""

    def __str__(self) -> str:
        if self.tau is None:
            return f"no Kendall tau, for want of an order among {self.pairs} trial{'s' * (self.pairs != 1)}"
        return f"Kendall tau {self.tau:z.2f} over {self.pairs} trials".replace("-", "−")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The hypervolume of the trials so far, after each of them."""

    trials: tuple[TrialRecord, ...]
    """Those that were not rejected by their cost alone, in their order."""
    values: tuple[float, ...]
    """Area between what was found and the reference point, in units of the cost times points of top-1."""
    reference: tuple[float, float] | None
    """(cost, top-1) that bounds the area: the budget, or the dearest score without one, and the lowest top-1 within the
    budget; None where nothing within the budget was scored."""

    @property
    def raised(self) -> list[tuple[int, TrialRecord, float]]:
        """Place (from 1), trial and value wherever it grew."""
        before = (0.0, *self.values[:-1])
        rows = zip(self.trials, self.values, before, strict=True) if self.trials else ()
        return [(place, r, value) for place, (r, value, old) in enumerate(rows, start=1) if value > old]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two measures of one trial."""

    record: TrialRecord
    x: float
    y: float


def growth(records: Iterable[TrialRecord], axis: CostAxis) -> Growth:
    """The hypervolume over the trials, by the scores of the time when they ran.

    Args:
        records: All trials of a study.
        axis: What the costs are, and the budget.
    """
    trials = sorted((r for r in records if r.state not in REJECTED), key=lambda r: r.trial)
    known = [(r.top1, r.cost(axis.name)) for r in trials if r.feasible and r.top1 is not None]
    if not known:
        return Growth(trials=tuple(trials), values=(0.0,) * len(trials), reference=None)
    lowest = min(top1 for top1, _ in known)
    dearest = max(cost for _, cost in known) if axis.budget is None else axis.budget
    rows = [(r.top1, r.cost(axis.name)) if r.feasible and r.top1 is not None else (math.nan, math.nan) for r in trials]
    curve = hypervolume_curve(rows, (lowest, dearest), (True, False))
    return Growth(trials=tuple(trials), values=tuple(map(float, curve)), reference=(dearest, lowest))


def first_and_final(records: Iterable[TrialRecord]) -> list[Pair]:
    """x: top-1 when the trial ran, y: top-1 with the final weights; in the order of trials."""
    return [
        Pair(record=r, x=r.top1, y=r.rescored_top1)
        for r in sorted(records, key=lambda r: r.trial)
        if r.top1 is not None and r.rescored_top1 is not None
    ]


def predicted_and_measured(records: Iterable[TrialRecord], axis: CostAxis) -> list[Pair]:
    """x: measured latency, y: predicted latency of what was timed at the close, in milliseconds, fastest first.

    What was timed are the front and the plain net; a trial of an earlier front that was timed is here too.
    """
    if axis.name != "latency_ms":
        return []
    timed = [r for r in records if r.latency_measured_ms is not None]
    pairs = [Pair(record=r, x=r.latency_measured_ms or 0.0, y=r.cost("latency_ms")) for r in timed]
    return sorted(pairs, key=lambda pair: (pair.x, pair.record.trial))


def mean_error(pairs: Sequence[Pair]) -> float:
    """How far predictions were off on average, as a share of what was measured."""
    return sum(abs(pair.y - pair.x) / pair.x for pair in pairs) / len(pairs)


def information(records: Iterable[TrialRecord], term: str) -> list[Pair]:
    """x: an information term, y: top-1, both of the moment the trial ran; in the order of trials.

    Args:
        records: All trials of a study.
        term: `mi_x`, `mi_y` or `ibb`.
    """
    return [
        Pair(record=r, x=getattr(r, term), y=r.top1)
        for r in sorted(records, key=lambda r: r.trial)
        if r.top1 is not None and getattr(r, term) is not None
    ]


def agreement(pairs: Sequence[Pair]) -> Agreement:
    """How alike the two measures order the trials."""
    xs, ys = [pair.x for pair in pairs], [pair.y for pair in pairs]
    if len(set(xs)) < 2 or len(set(ys)) < 2:  # SciPy gives NaN, or warns
        return Agreement(tau=None, pairs=len(pairs))
    tau = float(kendalltau(xs, ys).statistic)
    return Agreement(tau=None if math.isnan(tau) else tau, pairs=len(pairs))
