"""Whether the weight of the IB loss goes with the scores of a study's trials."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from ltmsearch.config.objective import MEASURES, CostAxis
from ltmsearch.search.records import TrialRecord

FEWEST = 8
"""Smallest number of trials for which the association is computed."""
SIGNIFICANT = 0.05
"""Largest p-value at which the sentence reports an effect."""


@dataclass(frozen=True, kw_only=True)
class IBEffect:
    """Association of the IB weight with the measure, over the searched trials."""

    trials: int
    tau: float
    """Kendall's τ of the weight and the measure at equal cost; negative: larger weights go with better scores."""
    p: float
    """Probability of so large a τ, of either sign, by chance."""

    def as_json(self) -> dict[str, Any]:
        return {"trials": self.trials, "tau": self.tau, "p": self.p}

    def sentence(self, axis: CostAxis) -> str:
        numbers = f"Kendall's τ {self.tau:+.2f}, p = {self.p:.2g}, {self.trials} searched trials"
        if self.p > SIGNIFICANT:
            return f"The IB weight shows no effect on the {MEASURES[axis.measure]} ({numbers})."
        way = "lower" if self.tau < 0 else "higher"
        return f"Larger IB weights go with a {way} {MEASURES[axis.measure]} ({numbers})."


def ib_effect(records: Iterable[TrialRecord], axis: CostAxis) -> IBEffect | None:
    """The association, with what is linear in the cost taken out; None where weights are not searched.

    The measure is that on the search images when the trial ran. Baselines, whose weight is 0, are left out.
    """
    known = [r for r in records if r.kind != "baseline" and r.feasible and r.ib_weight is not None]
    rows = [
        (r.ib_weight, value, r.costs(axis.costs)[0]) for r in known if (value := getattr(r, axis.measure)) is not None
    ]
    weights, values, costs = np.array(rows, dtype=float).reshape(-1, 3).T
    if len(rows) < FEWEST or np.ptp(weights) == 0:
        return None
    if np.ptp(costs) > 0:
        values = values - np.polyval(np.polyfit(costs, values, 1), costs)
    found = kendalltau(weights, values)
    return IBEffect(trials=len(rows), tau=float(found.statistic), p=float(found.pvalue))
