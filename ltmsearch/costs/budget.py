"""Budgets: limits on a cost of the schedules of a space, and random schedules within them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ltmsearch.config.objective import UNITS, CostName
from ltmsearch.errors import check_choice
from ltmsearch.schedules.space import SearchSpace

POOL = 20_000
"""Number of random candidates; computing their costs takes milliseconds."""
BAND = 0.9
"""Lower end of the costs at which a search is aimed, as a share of its budget."""
WIDER = (0.8, 0.6, 0.0)
"""Lower ends to fall back to."""
FEW_IN_BAND = 64
"""Schedules that a band must have, or it is made wider."""
PARTS = 8
"""Parts of equal width of a range of budgets, from each of which about the same number of schedules is drawn."""
PROBES = 4
"""Schedules that are measured, at most, in search of one with a certain cost."""
NEAR = 0.05
"""Distance from that cost, as a share of the range, at which the search ends."""


class Costs(Protocol):
    """Costs of the schedules of a space: a `CostTable`, or measured ones."""

    @property
    def measured(self) -> bool:
        """Whether each cost takes a measurement of seconds, and is known for the present weights only."""
        ...

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L) choice indices."""
        ...

    def reachable(self) -> tuple[float, float]:
        """Smallest and largest cost of the space; measured ones are at least the smallest."""
        ...


@dataclass(frozen=True, kw_only=True)
class SizedCosts:
    """Costs of schedules whose last index is their image size."""

    tables: Sequence[Costs]
    """Costs of the layers' choices at each size."""
    searched: int
    """Number of the sizes that are searched, from the first."""
    measured: bool = False

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L + 1) choice indices."""
        layers, sizes = indices[:, :-1], indices[:, -1]
        found = np.empty(len(indices))
        for size in np.unique(sizes):
            found[sizes == size] = self.tables[size].costs(layers[sizes == size])
        return found

    def reachable(self) -> tuple[float, float]:
        """Smallest and largest cost of the sizes that are searched."""
        ends = [table.reachable() for table in self.tables[: self.searched]]
        return min(low for low, _ in ends), max(high for _, high in ends)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limit on one kind of cost."""

    name: CostName
    table: Costs
    limit: float
    """Largest cost, in units of the table."""
    per_unit: float = 1.0
    """Units of the table per GFLOP or millisecond."""
    minimum: float = 0.0
    """Lower end of the range, in units of the table: cheaper schedules meet the budget, but get no trial."""

    def __post_init__(self) -> None:
        check_choice("the cost of a budget", self.name, CostName)

    @property
    def constraint(self) -> str:
        """Key of the constraint in Optuna; feasible trials have a value of at most 0."""
        return f"{UNITS[self.name]} over budget"

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L) schedules, in GFLOPs or milliseconds."""
        costs: np.ndarray = self.table.costs(indices) / self.per_unit
        return costs

    def excess(self, indices: np.ndarray) -> np.ndarray:
        """(S,) excess of (S, L) schedules over the limit, in GFLOPs or milliseconds; at most 0 within the budget."""
        excess: np.ndarray = (self.table.costs(indices) - self.limit) / self.per_unit
        return excess

    def breach(self, cost: float) -> float:
        """Distance of a cost from the range of the budget, both in GFLOPs or milliseconds; at most 0 inside."""
        return max(cost - self.limit / self.per_unit, self.minimum / self.per_unit - cost)

    def shortfall(self, indices: np.ndarray) -> np.ndarray:
        """(S,) shortfall of (S, L) schedules below the minimum, in GFLOPs or milliseconds; at most 0 in the range."""
        shortfall: np.ndarray = (self.minimum - self.table.costs(indices)) / self.per_unit
        return shortfall

    def reachable(self) -> tuple[float, float]:
        """The smallest and the largest cost of any schedule of the space, in GFLOPs or milliseconds."""
        low, high = self.table.reachable()
        return low / self.per_unit, high / self.per_unit


def constraint_values(budgets: Sequence[Budget], indices: np.ndarray) -> dict[str, float]:
    """Constraint values of one (L,) schedule by the budgets' keys in Optuna; at most 0 in the range of a budget."""
    one = indices[None]
    return {budget.constraint: float(max(budget.excess(one)[0], budget.shortfall(one)[0])) for budget in budgets}


def in_budget_range(budgets: Sequence[Budget], indices: np.ndarray) -> np.ndarray:
    """(S,) whether (S, L) schedules are in the range of every budget."""
    above: np.ndarray = np.all([budget.shortfall(indices) <= 0 for budget in budgets], axis=0)
    return above & within_budgets(budgets, indices)


def within_budgets(budgets: Sequence[Budget], indices: np.ndarray) -> np.ndarray:
    """(S,) whether (S, L) schedules are within every budget."""
    below: np.ndarray = np.all([budget.excess(indices) <= 0 for budget in budgets], axis=0)
    return below


def spread_order(number: int) -> list[int]:
    """0 to `number` − 1 in an order that covers the range ever more finely: the van der Corput sequence."""

    def reversed_bits(place: int) -> float:
        digits = f"{place:b}"
        return int(digits[::-1], 2) / 2 ** len(digits)

    return sorted(range(number), key=reversed_bits)


def sample_by_cost(
    space: SearchSpace, budgets: Sequence[Budget], *, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Random schedules in the range of all budgets, with costs spread evenly over the range of the first.

    Returns:
        (≤ number, L) distinct choice indices by decreasing cost; fewer if the space has no more.
    """
    first = budgets[0]
    if first.table.measured:
        return _sample_measured(space, budgets, number=number, rng=rng)
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


def band_schedules(space: SearchSpace, budgets: Sequence[Budget], *, rng: np.random.Generator) -> np.ndarray:
    """Random schedules at which a search is aimed: within all budgets, and near the first.

    A single budget asks for costs from `BAND` of it; a range of budgets for all its costs, drawn evenly. Where the
    space has few such schedules, the band is wider.

    Returns:
        (S, L) distinct choice indices, in random order; at least the cheapest schedule.
    """
    first = budgets[0]
    pool = np.unique(np.concatenate([space.random(rng, POOL), space.cheapest[None]]), axis=0)
    pool = pool[within_budgets(budgets, pool)]
    pool = pool[rng.permutation(len(pool))]
    costs = first.table.costs(pool)
    if not first.minimum:
        bands = [pool[costs >= share * first.limit] for share in (BAND, *WIDER)]
        return next(
            (band for band in bands if len(band) >= FEW_IN_BAND), bands[-1] if len(pool) else space.cheapest[None]
        )
    part = np.floor((costs - first.minimum) / (first.limit - first.minimum) * PARTS)
    parts = [pool[part == number] for number in range(PARTS + 1)]
    each = -(-sum(map(len, parts)) // PARTS)
    band = np.concatenate([members[:each] for members in parts])
    return band if len(band) else space.cheapest[None]


def _sample_measured(
    space: SearchSpace, budgets: Sequence[Budget], *, number: int, rng: np.random.Generator
) -> np.ndarray:
    """`sample_by_cost` where each cost is measured: levels of merging are searched for in a few measurements each.

    As in `SearchSpace.random`, the layers of a schedule vary around a common level.
    """
    first, taken = budgets[0], {}
    plain, cheapest = first.table.costs(np.stack([0 * space.cheapest, space.cheapest]))
    for target in np.linspace(first.limit, cheapest, number):
        offsets = rng.normal(0.0, 0.3, size=len(space.layers))
        # Offsets are cut off at 1: beyond these levels nothing merges, and everything does.
        (low, dear), (high, cheap) = (-1.0, plain), (2.0, cheapest)
        best: tuple[float, np.ndarray] | None = None
        for _ in range(PROBES):
            step = (dear - target) / (dear - cheap) if dear > cheap else 0.5
            level = low + (high - low) * min(max(step, 0.1), 0.9)
            indices = np.rint(np.clip(level + np.clip(offsets, -1, 1), 0, 1) * space.cheapest).astype(np.int64)
            cost = float(first.table.costs(indices[None])[0])
            off = abs(cost - target) / max(first.limit - cheapest, 1.0)
            if in_budget_range(budgets, indices[None])[0] and (best is None or off < best[0]):
                best = off, indices
            if best is not None and best[0] < NEAR:
                break
            if cost > target:
                low, dear = level, cost
            else:
                high, cheap = level, cost
        if best is not None:
            taken[tuple(best[1].tolist())] = float(first.table.costs(best[1][None])[0])
    drawn = sorted(taken, key=lambda indices: -taken[indices])
    return np.array(drawn, dtype=np.int64).reshape(len(drawn), len(space.layers))
