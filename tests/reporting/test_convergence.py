"""The progress of a search, in numbers that can be checked by hand."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from support.records import make_trial

from ltmsearch.config.objective import CostAxis, Measure
from ltmsearch.reporting.convergence import FINAL, QUANTITIES, agreement, growth, measured, with_fields
from ltmsearch.search.records import TrialRecord

AXIS = CostAxis(budget=1.2)


def trial(number: int, gflops: float, loss: float | None, **fields: Any) -> TrialRecord:
    """A trial with its loss on the search images; KL divergence orders the same trials otherwise."""
    measured = {} if loss is None else {"loss": loss, "kl": 1 / loss}
    return make_trial(number, gflops, None if loss is None else 50.0, **measured | fields)


FIRST, MIDDLE, BETTER = trial(1, 1.0, 2.0), trial(2, 0.9, 3.0), trial(4, 1.1, 1.5)
WORST = trial(6, 0.8, 5.0)
PLAIN, REJECTED = trial(0, 1.5, 0.5, kind="baseline", label="plain"), trial(3, 1.3, None)
FAILED = trial(5, 1.0, None, state="failed")


def test_hypervolume_of_four_trials() -> None:
    found = growth([BETTER, FAILED, WORST, FIRST, REJECTED, MIDDLE, PLAIN], AXIS)
    assert found.reference == (1.2, 2.5), "the budget, and the median of 2, 3, 1.5 and 5 nats"
    assert found.trials == (PLAIN, FIRST, MIDDLE, BETTER, FAILED, WORST)
    # 0.2 · 0.5 for the first, nothing for a loss above the median, 0.1 · 0.5 more for the better one.
    assert found.values == pytest.approx((0, 0.1, 0.1, 0.15, 0.15, 0.15))
    assert [(place, record.trial) for place, record, _ in found.raised] == [(2, 1), (4, 4)]


def test_hypervolume_goes_by_the_measure() -> None:
    found = growth([FIRST, MIDDLE, BETTER], replace(AXIS, measure="kl"))
    assert found.reference == (1.2, 0.5), "the median of 1/2, 1/3 and 1/1.5"
    assert found.values == pytest.approx((0, 0.3 * (1 / 2 - 1 / 3), 0.3 * (1 / 2 - 1 / 3)))


def test_one_useless_trial_hides_no_progress() -> None:
    useless = trial(9, 1.0, 1000.0)
    for records in ([FIRST, MIDDLE, BETTER], [FIRST, MIDDLE, BETTER, useless]):
        found = growth(records, AXIS)
        assert found.reference is not None
        assert found.reference[1] < 4
        assert found.values[2] > 1.1 * found.values[0]


def test_hypervolume_without_a_budget() -> None:
    found = growth([FIRST, MIDDLE, BETTER], CostAxis())
    assert found.reference == (1.1, 2.0)
    assert found.values == pytest.approx((0, 0, 0)), "the costliest and the median bound it"
    assert growth([FIRST, MIDDLE, BETTER, WORST], CostAxis()).values == pytest.approx((0.05, 0.05, 0.05, 0.05))


@pytest.mark.parametrize("records", [[], [REJECTED], [PLAIN], [FAILED]], ids=["none", "rejected", "plain", "failed"])
def test_without_a_feasible_score_there_is_no_hypervolume(records: list[TrialRecord]) -> None:
    found = growth(records, AXIS)
    assert found.reference is None
    assert set(found.values) <= {0.0}
    assert found.raised == []


def points(*places: tuple[float, float]) -> list[TrialRecord]:
    return [trial(n, 1.0, loss, mi_x=x) for n, (x, loss) in enumerate(places)]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([(1, 10), (2, 30), (3, 20)], "Kendall tau 0.33 over 3 trials"),  # two pairs agree, one does not
        ([(1, 3), (2, 2), (3, 1)], "Kendall tau −1.00 over 3 trials"),
        ([(1, 1), (1, 2), (2, 3)], "Kendall tau 0.82 over 3 trials"),  # one tie in x: (2 − 0) / √(2 · 3)
        ([], "no Kendall tau: one of both is constant over 0 trials"),
        ([(1, 2)], "no Kendall tau: one of both is constant over 1 trial"),
        ([(1, 2), (1, 3)], "no Kendall tau: one of both is constant over 2 trials"),
        ([(1, 2), (2, 2)], "no Kendall tau: one of both is constant over 2 trials"),
    ],
)
def test_agreement(places: list[tuple[float, float]], words: str) -> None:
    assert agreement(points(*places), "mi_x", "loss") == words


def test_quantities_have_title_unit_and_standard_error() -> None:
    again = make_trial(6, 1.0, 80.0, 82.0, mi_x=0.25, latency_measured_ms=12.5, latency_measured_se_ms=0.25)
    assert with_fields([again, make_trial(4, 1.0, 78.0), REJECTED], "kl", "rescored_kl") == [again]
    assert measured(again, "latency_measured_ms") == "12.50 ± 0.25"
    assert measured(again, "mi_x", named=True) == "I(X̃;X) 0.25 nats"
    assert measured(again, "kl", named=True) == "KL when the trial ran 0.5000 nats"
    assert (set(FINAL), {*FINAL, *FINAL.values()} <= set(QUANTITIES)) == (set(get_args(Measure)), True)
