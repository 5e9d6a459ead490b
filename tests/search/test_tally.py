"""Counts of trials, and detection of a sampler that proposes nothing within the budget."""

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ltmsearch.search.optuna_records import WEIGHT
from ltmsearch.search.tally import MAX_REJECTED, Tally, sampler_is_stuck

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


OWN = {WEIGHT: 0.0, "loss": 1.0}  # attributes that the search sets


def trial(number: int, state: TrialState, *, kl: float = 0.5, miss: float = -1.0, label: str = "") -> FrozenTrial:
    made = create_trial(
        state=state, values=[kl, 1.0] if state == COMPLETE else None, params={"a": 0},
        distributions={"a": IntDistribution(0, 1)}, constraints={"gflops": miss}, user_attrs={**OWN, "label": label},
    )  # fmt: skip
    made.number = number
    return made


def trials(*states: TrialState) -> list[FrozenTrial]:
    return [trial(number, state) for number, state in enumerate(states)]


def test_finished_trials_are_counted_once() -> None:
    known = [
        trial(0, COMPLETE, label="plain"), trial(1, RUNNING), trial(2, PRUNED, miss=0.1),
        trial(3, COMPLETE, kl=0.4), trial(4, FAIL),
    ]  # fmt: skip
    tally = Tally()
    for _ in range(3):
        tally.update(known)
    assert (tally.trained, tally.feasible, tally.rejected, tally.best) == (2, 2, 1, 0.4)
    known = [*known, trial(5, COMPLETE, kl=0.1, miss=0.1)]
    known[1] = trial(1, COMPLETE, kl=0.3)
    tally.update(known)
    assert (tally.trained, tally.feasible, tally.rejected, tally.best) == (4, 3, 1, 0.3)
    assert Tally().summary() == "0 within budget, 0 over budget"
    assert tally.summary(running=3) == "3 within budget, best 0.3000 nats, 1 over budget, 3 running"


@pytest.mark.parametrize("rejected", [0, MAX_REJECTED - 1, MAX_REJECTED, MAX_REJECTED + 1, 2 * MAX_REJECTED])
def test_sampler_is_stuck_after_repeated_rejections(rejected: int) -> None:
    known = trials(COMPLETE, *[PRUNED] * rejected)
    assert sampler_is_stuck(known) == (rejected in (MAX_REJECTED, 2 * MAX_REJECTED))


def test_a_running_trial_resets_the_rejections() -> None:
    """A trial that runs was within the budget, though those before it that ended were not."""
    assert not sampler_is_stuck(trials(RUNNING, *[PRUNED] * MAX_REJECTED, RUNNING))
    assert not sampler_is_stuck(trials(COMPLETE, *[PRUNED] * MAX_REJECTED, RUNNING))
