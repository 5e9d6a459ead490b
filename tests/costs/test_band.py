"""The band of costs at which a search is aimed."""

import numpy as np

from ltmsearch.costs import Budget, CostModel, backbone_costs, band_schedules
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

FILE = SpaceFile(schema_version=1, family="vit", keep_ratios=(1.0, 0.9, 0.8, 0.7, 0.5), forms=("matched",))


def made(share: float, lowest: float = 0.0) -> tuple[CostModel, SearchSpace, Budget]:
    costs = backbone_costs("vit_tiny_patch16_224", 224, "ltm")
    space = SearchSpace.build(FILE, costs)
    table = costs.table(space.choices)
    return costs, space, Budget(name="gflops", table=table, limit=share * costs.base, minimum=lowest * costs.base)


def test_schedules_are_within_a_tenth_of_the_budget() -> None:
    costs, space, budget = made(0.5)
    band = band_schedules(space, [budget], rng=np.random.default_rng(0))
    shares = budget.table.costs(band) / costs.base
    assert len(band) > 500
    assert len(np.unique(band, axis=0)) == len(band)
    assert (shares <= 0.5).all()
    assert (shares >= 0.45).all()


def test_a_range_of_budgets_is_covered_evenly() -> None:
    costs, space, budget = made(0.8, 0.4)
    shares = budget.table.costs(band_schedules(space, [budget], rng=np.random.default_rng(0))) / costs.base
    counts, _ = np.histogram(shares, bins=[0.4, 0.5, 0.6, 0.7, 0.8])
    assert counts.min() > 0.5 * counts.max()
    assert shares.min() >= 0.4
    assert shares.max() <= 0.8


def test_every_band_has_a_schedule() -> None:
    """A budget that only the cheapest schedule meets."""
    _, space, budget = made(0.5)
    cheapest = float(budget.table.costs(space.cheapest[None])[0])
    for limit in (cheapest, 0.9 * cheapest):
        tight = Budget(name="gflops", table=budget.table, limit=limit)
        band = band_schedules(space, [tight], rng=np.random.default_rng(0))
        assert (budget.table.costs(band) == cheapest).all()
        assert len(band)
