"""The progress of a search, in numbers that can be checked by hand."""

import pytest
from support.records import make_trial

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.convergence import agreement, growth, measured, with_fields
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


def test_hypervolume_without_a_budget() -> None:
    found = growth([FIRST, LOWEST, BETTER], CostAxis())
    assert found.reference == (1.1, 70.0)
    assert found.values == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize("records", [[], [REJECTED], [PLAIN], [FAILED]], ids=["none", "rejected", "plain", "failed"])
def test_without_a_feasible_score_there_is_no_hypervolume(records: list[TrialRecord]) -> None:
    found = growth(records, AXIS)
    assert found.reference is None
    assert set(found.values) <= {0.0}
    assert found.raised == []


def points(*places: tuple[float, float]) -> list[TrialRecord]:
    return [make_trial(n, 1.0, top1, mi_x=x) for n, (x, top1) in enumerate(places)]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([(1, 10), (2, 30), (3, 20)], "Kendall tau 0.33 over 3 trials"),  # two pairs agree, one does not
        ([(1, 3), (2, 2), (3, 1)], "Kendall tau −1.00 over 3 trials"),
        ([(1, 1), (1, 2), (2, 3)], "Kendall tau 0.82 over 3 trials"),  # one tie in x: (2 − 0) / √(2 · 3)
        ([], "no Kendall tau: a measure is constant over 0 trials"),
        ([(1, 2)], "no Kendall tau: a measure is constant over 1 trial"),
        ([(1, 2), (1, 3)], "no Kendall tau: a measure is constant over 2 trials"),
        ([(1, 2), (2, 2)], "no Kendall tau: a measure is constant over 2 trials"),
    ],
)
def test_agreement(places: list[tuple[float, float]], words: str) -> None:
    assert agreement(points(*places), "mi_x", "top1") == words


def test_measures_have_their_standard_error() -> None:
    again = make_trial(6, 1.0, 80.0, 82.0, mi_x=0.25)
    assert with_fields([again, make_trial(4, 1.0, 78.0), REJECTED], "top1", "rescored_top1") == [again]
    assert measured(again, "top1") == "80.0 ± 1.1"
    assert measured(again, "mi_x", named=True) == "I(X̃;X) 0.25 nats"
