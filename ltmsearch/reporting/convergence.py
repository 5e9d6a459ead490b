"""Progress of a search as plain records: its hypervolume, and pairs of measures of the same trials."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.numbers import counted
from ltmsearch.search.pareto import hypervolume_curve
from ltmsearch.search.records import TrialRecord

REJECTED = ("over budget", "below range")
"""States of trials that were neither trained nor scored."""
ERRORS = {"top1": "top1_se", "rescored_top1": "rescored_top1_se", "latency_measured_ms": "latency_measured_se_ms"}
"""Measure → its standard error."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Hypervolume of the trials so far, after each trial."""

    trials: tuple[TrialRecord, ...]
    """Trials that were not rejected by their cost, in order."""
    values: tuple[float, ...]
    """Area between the trials and the reference point, in units of the cost times points of top-1."""
    reference: tuple[float, float] | None
    """(cost, top-1) that bounds the area: the budget, or without one the highest cost of a scored trial, and the lowest
    top-1 within the budget; None if nothing within the budget was scored."""

    @property
    def raised(self) -> list[tuple[int, TrialRecord, float]]:
        """Place (from 1), trial and value of every increase."""
        before = (0.0, *self.values[:-1])
        rows = zip(self.trials, self.values, before, strict=True) if self.trials else ()
        return [(place, r, value) for place, (r, value, old) in enumerate(rows, start=1) if value > old]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two measures of one trial."""

    record: TrialRecord
    x: float
    y: float
    x_se: float | None = None
    """Standard error of `x`."""
    y_se: float | None = None


def growth(records: Iterable[TrialRecord], axis: CostAxis) -> Growth:
    """Hypervolume over all trials of a study, from the scores of when they ran."""
    trials = sorted((r for r in records if r.state not in REJECTED), key=lambda r: r.trial)
    rows = [(r.top1, r.cost(axis.name)) if r.feasible and r.top1 is not None else (math.nan, math.nan) for r in trials]
    known = [row for row in rows if not math.isnan(row[0])]
    if not known:
        return Growth(trials=tuple(trials), values=(0.0,) * len(trials), reference=None)
    lowest = min(top1 for top1, _ in known)
    highest = max(cost for _, cost in known) if axis.budget is None else axis.budget
    curve = hypervolume_curve(rows, (lowest, highest), (True, False))
    return Growth(trials=tuple(trials), values=tuple(map(float, curve)), reference=(highest, lowest))


def pairs(records: Iterable[TrialRecord], x: str, y: str) -> list[Pair]:
    """Trials that have values in two fields of `TrialRecord`, in order."""
    found = []
    for r in sorted(records, key=lambda r: r.trial):
        both = getattr(r, x), getattr(r, y)
        if None not in both:
            x_se, y_se = (getattr(r, ERRORS[name]) if name in ERRORS else None for name in (x, y))
            found.append(Pair(record=r, x=both[0], y=both[1], x_se=x_se, y_se=y_se))
    return found


def mean_error(pairs: Sequence[Pair]) -> float:
    """Mean relative difference of `y` from `x`."""
    return sum(abs(pair.y - pair.x) / pair.x for pair in pairs) / len(pairs)


def kendall_tau(pairs: Sequence[Pair]) -> float | None:
    """Kendall's tau-b: 1 the same order, 0 no relation, −1 the reverse; None if a measure is constant."""
    xs, ys = [pair.x for pair in pairs], [pair.y for pair in pairs]
    if len(set(xs)) < 2 or len(set(ys)) < 2:  # SciPy returns NaN or warns
        return None
    return float(kendalltau(xs, ys).statistic)


def agreement(pairs: Sequence[Pair]) -> str:
    """Kendall's tau in words."""
    tau = kendall_tau(pairs)
    if tau is None:
        return f"no Kendall tau: a measure is constant over {counted(len(pairs), 'trial')}"
    return f"Kendall tau {tau:z.2f} over {len(pairs)} trials".replace("-", "−")
