"""Random schedules spread evenly over the costs of a budget's range."""

from collections.abc import Sequence

import numpy as np

from ltmsearch.costs.budget import Budget, in_budget_range
from ltmsearch.schedules.space import SearchSpace

POOL = 20_000
"""Number of random candidates; computing their costs takes milliseconds."""


def sample_by_cost(
    space: SearchSpace, budgets: Sequence[Budget], *, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Random schedules in the range of all budgets, with costs spread evenly over the range of the first.

    Returns:
        (≤ number, L) distinct choice indices by decreasing cost; fewer if the space has no more.
    """
    first = budgets[0]
    pool = np.unique(np.concatenate([space.random(rng, POOL), space.cheapest[None]]), axis=0)
    pool = pool[in_budget_range(budgets, pool)]
    pool = pool[rng.permutation(len(pool))]  # or ties in cost would be broken by the order of indices
    if not len(pool) or number < 1:
        return pool[:0]
    costs = first.table.costs(pool)
    taken: list[int] = []
    for target in np.linspace(first.limit, costs.min(), number):
        distance = np.abs(costs - target)
        distance[taken] = np.inf
        best = int(np.argmin(distance))
        if best not in taken:
            taken.append(best)
    return pool[taken]
