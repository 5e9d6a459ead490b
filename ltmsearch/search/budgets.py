"""Budgets of a study, and the refusal of those that no schedule can meet, or every one."""

from collections.abc import Sequence

import numpy as np

from ltmsearch.config.objective import CostName
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import GIGA, Budget, CostModel, SizedCosts, sample_by_cost
from ltmsearch.costs.budget import Costs
from ltmsearch.errors import InputError
from ltmsearch.latency import StudyLatency
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.measured import MeasuredCosts

BELOW_RANGE = 0.1
"""Margin below a range of budgets in which schedules are still tried, as a share of the range, so that the lowest
budget has points on both sides."""


def make_budgets(
    settings: StudySettings,
    space: SearchSpace,
    costs: CostModel,
    latency: StudyLatency | None,
    measured: MeasuredCosts | None,
    sizes: Sequence[CostModel] = (),
) -> tuple[Budget, ...]:
    """The budgets of a study; a latency budget comes first.

    `sizes`: costs at each image size of the space.
    """
    budgets = []
    if latency is not None and settings.budget_ms is not None:
        budgets.append(Budget(name="latency_ms", table=latency.model.table(space.choices), limit=settings.budget_ms))
    if settings.budget_gflops is not None:
        table: Costs = measured or costs.table(space.choices)
        if space.img_sizes:
            tables = [each.table(space.choices) for each in sizes]
            table = SizedCosts(tables=tables, searched=space.searched_sizes)
        limit, least = int(settings.budget_gflops * GIGA), 0.0
        if settings.lowest_gflops is not None:
            width = settings.budget_gflops - settings.lowest_gflops
            least = (settings.lowest_gflops - BELOW_RANGE * width) * GIGA
        name: CostName = "gflops" if settings.budget_quantile is None else "gflops_quantile"
        budgets.append(Budget(name=name, table=table, limit=limit, per_unit=GIGA, minimum=least))
    return tuple(budgets)


def check_budgets(settings: StudySettings, space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise `InputError` for a budget that no schedule meets, or every schedule."""
    for budget in budgets:
        of_latency = budget.name == "latency_ms"
        option, unit, digits = ("--budget-ms", "ms", 2) if of_latency else ("--budget-gflops", "GFLOPs", 4)
        limit, (low, high) = budget.limit / budget.per_unit, budget.reachable()
        lowest = limit if of_latency or settings.lowest_gflops is None else settings.lowest_gflops
        given = f"{limit:g}" if lowest == limit else f"{lowest:g}-{limit:g}"
        net = f"{settings.backbone} at {settings.img_size} px"
        if low == high:
            advice = "; try larger images or batches, or another runtime" if of_latency else ""
            raise InputError(
                f"{option} {given} leaves nothing to search: no merge in the space saves {unit}; {net} costs "
                f"{low:.{digits}f}{advice}"
            )
        if not low <= lowest <= limit < high:
            rule = "is too low" if lowest < low else "is above the cost of the plain network"
            raise InputError(
                f"{option} {given} {rule}: merging reaches {low:.{digits}f} to {high:.{digits}f} {unit} for {net} "
                f"(per {'batch' if of_latency else 'image, multiply-adds'})"
            )
    if len(budgets) > 1 and not len(sample_by_cost(space, budgets, number=1, rng=np.random.default_rng(0))):
        raise InputError(
            f"--budget-gflops {settings.budget_gflops:g} and --budget-ms {settings.budget_ms:g} can be met separately, "
            "but no schedule meets both; raise one of them"
        )


def check_measured(settings: StudySettings, space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Raise `InputError` if the cheapest schedule of measured cost is over a budget, with the present weights."""
    for budget in budgets:
        if budget.table.measured and budget.excess(space.cheapest[None])[0] > 0:
            cost, share = float(budget.costs(space.cheapest[None])[0]), settings.budget_quantile
            images = "on average" if share is None else f"for {share:g} of the images"
            raise InputError(
                f"--budget-gflops {settings.budget_gflops:g} is too low: with the shared weights as they are now, the "
                f"lowest thresholds of the space reach {cost:.4f} GFLOPs {images}; repeat the command with a higher "
                "budget, or start another study with lower `thresholds` in its --space"
            )
