"""Schedules that spread over the costs below a budget: what a study tries first."""

from collections.abc import Sequence

import numpy as np

from ltmsearch.costs.budget import Budget, in_budget_range
from ltmsearch.schedules.space import SearchSpace

POOL = 20_000
"""Random schedules to pick from; costing them takes milliseconds."""


def sample_by_cost(
    space: SearchSpace, budgets: Sequence[Budget], *, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Random schedules within the budgets whose costs are spread evenly from the cheapest to the first budget.

    The cheapest is the cheapest that is worth a trial.

    Args:
        space: What to draw from.
        budgets: What they must keep; their costs are those of the first.
        number: How many.
        rng: Source of randomness.

    Returns:
        (≤ number, L) choice indices, distinct, dearest first; fewer where the space has no more.
    """
    first = budgets[0]
    pool = np.unique(np.concatenate([space.random(rng, POOL), space.cheapest[None]]), axis=0)
    pool = pool[in_budget_range(budgets, pool)]
    pool = pool[rng.permutation(len(pool))]  # so that ties in cost are not broken by the order of indices
    if not len(pool) or number < 1:
        return pool[:0]
    costs = first.table.costs(pool)
    wanted = np.linspace(first.limit, costs.min(), number)
    taken: list[int] = []
    for target in wanted:
        distance = np.abs(costs - target)
        distance[taken] = np.inf
        best = int(np.argmin(distance))
        if best not in taken:
            taken.append(best)
    return pool[taken]
