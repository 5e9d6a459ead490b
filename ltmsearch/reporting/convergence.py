"""Progress of a search: its hypervolume, and the agreement of two quantities of the same trials."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from scipy.stats import kendalltau

from ltmsearch.config.objective import CostAxis, Measure
from ltmsearch.reporting.numbers import counted, text
from ltmsearch.search.pareto import hypervolume_curve
from ltmsearch.search.records import TrialRecord

REJECTED = ("over budget", "below range")
"""States of trials that were neither trained nor scored."""

TOKENS_BEYOND = 1.1
"""Reference of the tokens sent, as a multiple of the most: trials that send all of them count too."""


class Quantity(NamedTuple):
    """A field of `TrialRecord` in plots and tables."""

    title: str
    unit: str
    form: str
    error: str = ""
    """Field with its standard error."""


QUANTITIES = {
    "kl": Quantity("KL when the trial ran", "nats", ".4f"),
    "loss": Quantity("loss when the trial ran", "nats", ".4f"),
    "rescored_kl": Quantity("final KL", "nats", ".4f"),
    "rescored_loss": Quantity("final loss", "nats", ".4f"),
    "latency_ms": Quantity("predicted", "ms", ".2f"),
    "latency_measured_ms": Quantity("measured", "ms", ".2f", "latency_measured_se_ms"),
    "mi_x": Quantity("I(X̃;X)", "nats", ".4g"),
    "mi_y": Quantity("I(X̃;Y)", "nats", ".4g"),
    "ibb": Quantity("IBB", "nats", ".4g"),
}
"""A measure's name is that of its field on search images, as Optuna was told it when the trial ran."""
FINAL: dict[Measure, str] = {"kl": "rescored_kl", "loss": "rescored_loss"}
"""Field with the measure on validation images with the final weights, which ranks the front."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Hypervolume of the trials so far, after each trial."""

    trials: tuple[TrialRecord, ...]
    """Trials that were not rejected by their cost, in order."""
    values: tuple[float, ...]
    """Area between the trials and the reference point, in units of the cost times nats; a volume, times tokens, with
    tokens sent as a third objective."""
    reference: tuple[float, ...] | None
    """(cost, measure) that bounds the area: the budget, or without one the highest cost of a scored trial, and the
    median of the measure within the budget, because the worst may be so far off that no progress would be visible; with
    tokens sent also those, `TOKENS_BEYOND` times the most of a scored trial. None if nothing within the budget was
    scored."""

    @property
    def raised(self) -> list[tuple[int, TrialRecord, float]]:
        """Place (from 1), trial and value of every increase."""
        before = (0.0, *self.values[:-1])
        rows = zip(self.trials, self.values, before, strict=True) if self.trials else ()
        return [(place, r, value) for place, (r, value, old) in enumerate(rows, start=1) if value > old]


def growth(records: Iterable[TrialRecord], axis: CostAxis) -> Growth:
    """Hypervolume over all trials of a study, from the measure of when they ran."""
    trials = sorted((r for r in records if r.state not in REJECTED), key=lambda r: r.trial)
    unknown = (math.nan,) * (1 + len(axis.costs))
    told = [r.told(axis.measure) if r.feasible else None for r in trials]
    rows = [unknown if value is None else (value, *r.costs(axis.costs)) for r, value in zip(trials, told, strict=True)]
    known = [row for row in rows if not math.isnan(row[0])]
    if not known:
        return Growth(trials=tuple(trials), values=(0.0,) * len(trials), reference=None)
    middle = median(row[0] for row in known)
    highest = max(row[1] for row in known) if axis.budget is None else axis.budget
    most = () if axis.second is None else (TOKENS_BEYOND * max(row[2] for row in known),)
    curve = hypervolume_curve(rows, (middle, highest, *most), [False] * (1 + len(axis.costs)))
    return Growth(trials=tuple(trials), values=tuple(map(float, curve)), reference=(highest, middle, *most))


def with_fields(records: Iterable[TrialRecord], *names: str) -> list[TrialRecord]:
    """Trials that have values in some fields of `TrialRecord`, in order."""
    chosen = [r for r in records if all(getattr(r, name) is not None for name in names)]
    return sorted(chosen, key=lambda r: r.trial)


def measured(record: TrialRecord, name: str, *, named: bool = False) -> str:
    """A quantity of a trial, with its standard error if it has one, and on request with its title and unit."""
    title, unit, form, error = QUANTITIES[name]
    value, spread = text(getattr(record, name), form), getattr(record, error, None)
    value += "" if spread is None else f" ± {spread:{form}}"
    return f"{title} {value} {unit}" if named else value


def agreement(records: Sequence[TrialRecord], x: str, y: str) -> str:
    """Kendall's tau-b of two fields in words: 1 the same order, 0 no relation, −1 the reverse."""
    xs, ys = ([getattr(r, name) for r in records] for name in (x, y))
    if len(set(xs)) < 2 or len(set(ys)) < 2:  # SciPy returns NaN or warns
        return f"no Kendall tau: one of both is constant over {counted(len(records), 'trial')}"
    return f"Kendall tau {kendalltau(xs, ys).statistic:z.2f} over {len(records)} trials".replace("-", "−")
