"""Schedules that spread over the costs below a budget: what a study tries first."""

import numpy as np

from ltmsearch.costs.macs import CostTable
from ltmsearch.space import SearchSpace

POOL = 20_000
"""Random schedules to pick from; costing them takes milliseconds."""


def covering_schedules(
    space: SearchSpace, table: CostTable, *, max_macs: int, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Random schedules within the budget whose costs are spread evenly from the cheapest to the budget.

    Args:
        space: What to draw from.
        table: Its costs.
        max_macs: The budget.
        number: How many.
        rng: Source of randomness.

    Returns:
        (≤ number, L) choice indices, distinct, dearest first; fewer where the space has no more.
    """
    pool = np.unique(np.concatenate([space.random(rng, POOL), space.cheapest[None]]), axis=0)
    macs = table.macs(pool)
    pool, macs = pool[macs <= max_macs], macs[macs <= max_macs]
    order = rng.permutation(len(pool))  # so that ties in cost are not broken by the order of indices
    pool, macs = pool[order], macs[order]
    if not len(pool) or number < 1:
        return pool[:0]
    wanted = np.linspace(max_macs, macs.min(), number)
    taken: list[int] = []
    for target in wanted:
        distance = np.abs(macs - target)
        distance[taken] = np.inf
        best = int(np.argmin(distance))
        if best not in taken:
            taken.append(best)
    return pool[taken]
