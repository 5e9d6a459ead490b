"""The progress of a search, in numbers that can be checked by hand."""

import pytest
from support.records import make_trial

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.convergence import Pair, agreement, growth, kendall_tau, mean_error, pairs
from ltmsearch.search.records import TrialRecord

AXIS = CostAxis(budget=1.2)
FIRST, LOWEST, BETTER = make_trial(1, 1.0, 80.0), make_trial(2, 0.9, 70.0), make_trial(4, 1.1, 85.0)
PLAIN, REJECTED = make_trial(0, 1.5, 90.0, kind="baseline", label="plain"), make_trial(3, 1.3, None)
FAILED = make_trial(5, 1.0, None, state="failed")


def test_hypervolume_of_three_trials() -> None:
    found = growth([BETTER, FAILED, FIRST, REJECTED, LOWEST, PLAIN], AXIS)
    assert found.reference == (1.2, 70.0)
    assert found.trials == (PLAIN, FIRST, LOWEST, BETTER, FAILED)
    # 0.2 · 10 for the first, nothing for the lowest score, 0.1 · 5 more for the better one.
    assert found.values == pytest.approx((0, 2.0, 2.0, 2.5, 2.5))
    assert [(place, record.trial) for place, record, _ in found.raised] == [(2, 1), (4, 4)]


def test_hypervolume_without_a_budget_is_bounded_by_the_highest_cost() -> None:
    found = growth([FIRST, LOWEST, BETTER], CostAxis())
    assert found.reference == (1.1, 70.0)
    assert found.values == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize("records", [[], [REJECTED], [PLAIN], [FAILED]], ids=["none", "rejected", "plain", "failed"])
def test_without_a_feasible_score_there_is_no_hypervolume(records: list[TrialRecord]) -> None:
    found = growth(records, AXIS)
    assert found.reference is None
    assert set(found.values) <= {0.0}
    assert found.raised == []


def points(*places: tuple[float, float]) -> list[Pair]:
    return [Pair(record=FIRST, x=x, y=y) for x, y in places]


def test_kendall_tau() -> None:
    assert kendall_tau(points((1, 10), (2, 30), (3, 20))) == pytest.approx(1 / 3)  # two pairs agree, one does not
    assert agreement(points((1, 3), (2, 2), (3, 1))) == "Kendall tau −1.00 over 3 trials"
    # One tie in x: (2 − 0) / √(2 · 3).
    assert kendall_tau(points((1, 1), (1, 2), (2, 3))) == pytest.approx(2 / 6**0.5)


@pytest.mark.parametrize("places", [(), ((1, 2),), ((1, 2), (1, 3)), ((1, 2), (2, 2))])
def test_a_constant_measure_has_no_tau(places: tuple[tuple[float, float], ...]) -> None:
    assert kendall_tau(points(*places)) is None
    assert agreement(points(*places)).startswith("no Kendall tau: a measure is constant over ")


def test_pairs_are_the_trials_with_both_measures() -> None:
    again = make_trial(6, 1.0, 80.0, 82.0, mi_x=0.25, latency_ms=8.8, latency_measured_ms=8.0)
    fast = make_trial(7, 1.0, 79.0, latency_ms=4.5, latency_measured_ms=5.0)
    records = [fast, again, make_trial(8, 1.0, 78.0, latency_ms=9.0), REJECTED]
    assert pairs(records, "top1", "rescored_top1") == [Pair(record=again, x=80.0, y=82.0, x_se=1.1, y_se=0.7)]
    assert pairs(records, "mi_x", "top1") == [Pair(record=again, x=0.25, y=80.0, y_se=1.1)]
    timed = pairs(records, "latency_measured_ms", "latency_ms")
    assert [(p.record, p.x, p.y) for p in timed] == [(again, 8.0, 8.8), (fast, 5.0, 4.5)]
    assert mean_error(timed) == pytest.approx(0.1)
