"""A limit on one cost, and the costs it is held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltmsearch.config.objective import UNITS, CostName
from ltmsearch.costs.tables import CostTable


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The largest cost of a kind that a schedule of a space may have."""

    name: CostName
    """The kind of cost."""
    table: CostTable
    """Costs of the space."""
    limit: float
    """In units of the table."""
    per_unit: float = 1.0
    """Units of the table in a GFLOP or millisecond."""
    minimum: float = 0.0
    """Schedules that cost less, in units of the table, are within the budget but not worth a trial."""

    @property
    def constraint(self) -> str:
        """Key of its constraint in Optuna: feasible trials have a value of at most 0."""
        return f"{UNITS[self.name]} over budget"

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """(S,) costs of (S, L) schedules, in GFLOPs or milliseconds."""
        costs: np.ndarray = self.table.costs(indices) / self.per_unit
        return costs

    def excess(self, indices: np.ndarray) -> np.ndarray:
        """(S,) how far (S, L) schedules are over the limit, in GFLOPs or milliseconds; at most 0 within it."""
        excess: np.ndarray = (self.table.costs(indices) - self.limit) / self.per_unit
        return excess

    def shortfall(self, indices: np.ndarray) -> np.ndarray:
        """(S,) how far (S, L) schedules are below what is worth a trial; at most 0 for those that are."""
        shortfall: np.ndarray = (self.minimum - self.table.costs(indices)) / self.per_unit
        return shortfall

    def reachable(self) -> tuple[float, float]:
        """The smallest and the largest cost of any schedule of the space, in GFLOPs or milliseconds."""
        low, high = self.table.reachable()
        return low / self.per_unit, high / self.per_unit


def constraint_values(budgets: Sequence[Budget], indices: np.ndarray) -> dict[str, float]:
    """How far one (L,) schedule is from being worth a trial, by the budgets' keys in Optuna; at most 0 where it is."""
    one = indices[None]
    return {budget.constraint: float(max(budget.excess(one)[0], budget.shortfall(one)[0])) for budget in budgets}


def in_budget_range(budgets: Sequence[Budget], indices: np.ndarray) -> np.ndarray:
    """(S,) whether (S, L) schedules keep every budget, and none by too much."""
    enough: np.ndarray = np.all([budget.shortfall(indices) <= 0 for budget in budgets], axis=0)
    return enough & within_budgets(budgets, indices)


def within_budgets(budgets: Sequence[Budget], indices: np.ndarray) -> np.ndarray:
    """(S,) whether (S, L) schedules keep every budget."""
    kept: np.ndarray = np.all([budget.excess(indices) <= 0 for budget in budgets], axis=0)
    return kept
