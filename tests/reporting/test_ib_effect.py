"""What a study says of the IB weight: an association that is there, none that is not, and nothing from too little."""

import random
from typing import Any

import pytest
from support.records import make_trial

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.findings import find, findings_record, sentences
from ltmsearch.reporting.ib_effect import ib_effect
from ltmsearch.search.records import TrialRecord

AXIS = CostAxis(measure="loss")


def trial(number: int, weight: float | None, loss: float, gflops: float = 1.0, **fields: Any) -> TrialRecord:
    return make_trial(number, gflops, 60.0, feasible=True, ib_weight=weight, loss=loss, **fields)


def studies(slope: float, number: int = 20, cost_slope: float = 0.0) -> list[TrialRecord]:
    """Trials whose loss moves with the weight, and with the cost, under noise of 0.05."""
    rng, found = random.Random(0), []
    for place in range(number):
        weight, gflops = rng.choice([0.0, rng.uniform(0.01, 1.0)]), 1.0 + rng.random()
        found.append(trial(place, weight, 2 + slope * weight + cost_slope * gflops + rng.gauss(0, 0.05), gflops))
    return found


@pytest.mark.parametrize(("slope", "way"), [(-1.0, "lower"), (1.0, "higher")])
def test_an_effect_is_told(slope: float, way: str) -> None:
    found = ib_effect(studies(slope), AXIS)
    assert found is not None
    assert found.trials == 20
    assert found.tau * slope > 0.5
    assert found.p < 0.001
    assert found.sentence(AXIS).startswith(f"Larger IB weights go with a {way} cross-entropy (Kendall's τ ")


def test_no_effect_is_told() -> None:
    found = ib_effect(studies(0.0), AXIS)
    assert found is not None
    assert found.p > 0.05
    assert found.sentence(AXIS).startswith("The IB weight shows no effect on the cross-entropy (Kendall's τ ")


def test_the_cost_is_taken_out() -> None:
    """Costs move the loss twenty times as far as the weight does."""
    clear, hidden = ib_effect(studies(-1.0), AXIS), ib_effect(studies(-1.0, cost_slope=20.0), AXIS)
    assert clear is not None
    assert hidden is not None
    assert hidden.tau == pytest.approx(clear.tau, abs=0.1)


def test_too_little_says_nothing() -> None:
    same = [trial(n, 0.5, 2.0 + n) for n in range(20)]
    without = [trial(n, None, 2.0 + n) for n in range(20)]
    baselines = [trial(n, n / 20, 2.0 + n, kind="baseline") for n in range(20)]
    for records in ([], studies(1.0, number=7), same, without, baselines):
        assert ib_effect(records, AXIS) is None


def test_the_findings_end_with_it() -> None:
    findings = find(studies(-1.0), AXIS)
    assert sentences(findings)[-1].startswith("Larger IB weights")
    record = findings_record(findings)
    assert record["ib_weight"]["trials"] == 20
    assert record["sentences"][-1] == sentences(findings)[-1]
    assert findings_record(find([], AXIS))["ib_weight"] is None
