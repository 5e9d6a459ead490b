"""How a search went, in numbers that a hand can check."""

from typing import Any

import pytest
from support.records import make_record

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.convergence import (
    Agreement,
    Pair,
    agreement,
    first_and_final,
    growth,
    information,
    mean_error,
    predicted_and_measured,
)
from ltmsearch.search.records import TrialRecord

AXIS = CostAxis(budget=1.2)
MS = CostAxis(name="latency_ms", budget=10.0)


def trial(number: int, gflops: float, top1: float | None, **fields: Any) -> TrialRecord:
    state = "over budget" if top1 is None else "scored"
    defaults: dict[str, Any] = {
        "kind": "searched",
        "state": state,
        "feasible": gflops <= 1.2,
        "keep_ratios": {"a": 0.5},
    }
    return make_record(trial=number, gflops=gflops, top1=top1, **(defaults | fields))


FIRST, LOWEST, BETTER = trial(1, 1.0, 80.0), trial(2, 0.9, 70.0), trial(4, 1.1, 85.0)
PLAIN, REJECTED = trial(0, 1.5, 90.0, kind="baseline", label="plain"), trial(3, 1.3, None)
FAILED = trial(5, 1.0, None, state="failed")


def test_hypervolume_of_three_trials_by_hand() -> None:
    told = growth([BETTER, FAILED, FIRST, REJECTED, LOWEST, PLAIN], AXIS)
    assert told.reference == (1.2, 70.0)
    assert told.trials == (PLAIN, FIRST, LOWEST, BETTER, FAILED)
    # 0.2 · 10 for the first, nothing for the lowest score, 0.1 · 5 more for the better one.
    assert told.values == pytest.approx((0, 2.0, 2.0, 2.5, 2.5))
    assert [(place, record.trial) for place, record, _ in told.raised] == [(2, 1), (4, 4)]


def test_hypervolume_without_a_budget_is_bounded_by_the_dearest_score() -> None:
    told = growth([FIRST, LOWEST, BETTER], CostAxis())
    assert told.reference == (1.1, 70.0)
    assert told.values == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize("records", [[], [REJECTED], [PLAIN], [FAILED]], ids=["none", "rejected", "plain", "failed"])
def test_without_a_score_within_the_budget_there_is_no_hypervolume(records: list[TrialRecord]) -> None:
    told = growth(records, AXIS)
    assert told.reference is None
    assert set(told.values) <= {0.0}
    assert told.raised == []


def pairs(*points: tuple[float, float]) -> list[Pair]:
    return [Pair(record=FIRST, x=x, y=y) for x, y in points]


def test_tau_by_hand() -> None:
    assert agreement(pairs((1, 10), (2, 30), (3, 20))).tau == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert agreement(pairs((1, 3), (2, 2), (3, 1))).tau == pytest.approx(-1)
    # One tie in x: (2 − 0) / √(2 · 3).
    assert agreement(pairs((1, 1), (1, 2), (2, 3))).tau == pytest.approx(2 / 6**0.5)
    assert str(agreement(pairs((1, 3), (2, 2), (3, 1)))) == "Kendall tau −1.00 over 3 trials"
    assert str(Agreement(tau=-0.001, pairs=4)) == "Kendall tau 0.00 over 4 trials"


@pytest.mark.parametrize("points", [(), ((1, 2),), ((1, 2), (1, 3)), ((1, 2), (2, 2))])
def test_where_there_is_no_order_there_is_no_tau(points: tuple[tuple[float, float], ...]) -> None:
    found = agreement(pairs(*points))
    assert found.tau is None
    assert str(found).startswith("no Kendall tau, for want of an order among ")


def test_pairs_hold_the_trials_that_have_both_measures() -> None:
    again = trial(6, 1.0, 80.0, rescored_top1=82.0, mi_x=0.25, latency_ms=8.8, latency_measured_ms=8.0)
    fast = trial(7, 1.0, 79.0, latency_ms=4.5, latency_measured_ms=5.0)
    records = [again, fast, trial(8, 1.0, 78.0, latency_ms=9.0), REJECTED]
    assert [(p.record, p.x, p.y) for p in first_and_final(records)] == [(again, 80.0, 82.0)]
    assert [(p.record, p.x, p.y) for p in information(records, "mi_x")] == [(again, 0.25, 80.0)]
    timed = predicted_and_measured(records, MS)
    assert [(p.record, p.x, p.y) for p in timed] == [(fast, 5.0, 4.5), (again, 8.0, 8.8)]
    assert mean_error(timed) == pytest.approx(0.1)
    assert predicted_and_measured(records, AXIS) == []
