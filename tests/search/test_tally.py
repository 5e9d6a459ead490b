"""How a study stands: counts that look at each trial once, and when a sampler is at a loss."""

import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from ltmsearch.search.optuna_records import trained
from ltmsearch.search.tally import PATIENCE, Tally, sampler_is_stuck

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def trial(number: int, state: TrialState, *, top1: float = 50.0, miss: float = -1.0, label: str = "") -> FrozenTrial:
    made = create_trial(
        state=state, values=[top1, 1.0] if state == COMPLETE else None, params={"a": 0},
        distributions={"a": IntDistribution(0, 1)}, constraints={"gflops": miss}, user_attrs={"label": label},
    )  # fmt: skip
    made.number = number
    return made


def trials(*states: TrialState) -> list[FrozenTrial]:
    return [trial(number, state) for number, state in enumerate(states)]


def test_what_ended_is_counted_once_however_often_it_is_looked_at() -> None:
    known = [
        trial(0, COMPLETE, label="plain"), trial(1, RUNNING), trial(2, PRUNED, miss=0.1),
        trial(3, COMPLETE, top1=60.0), trial(4, FAIL),
    ]  # fmt: skip
    tally = Tally()
    for _ in range(3):
        tally.update(known)
    assert (tally.trained, tally.feasible, tally.over, tally.best) == (trained(known), 2, 1, 60.0) == (2, 2, 1, 60.0)
    known = [*known, trial(5, COMPLETE, top1=90.0, miss=0.1)]
    known[1] = trial(1, COMPLETE, top1=70.0)
    tally.update(known)
    assert (tally.trained, tally.feasible, tally.over, tally.best) == (trained(known), 3, 1, 70.0) == (4, 3, 1, 70.0)
    assert tally.words(running=3) == "3 within budget, best 70.0 %, 1 over it, 3 running"


def test_nothing_scored_yet_is_told_without_a_best() -> None:
    assert Tally().words() == "0 within budget, 0 over it"


@pytest.mark.parametrize("rejected", [0, PATIENCE - 1, PATIENCE, PATIENCE + 1, 2 * PATIENCE])
def test_a_sampler_is_at_a_loss_after_so_many_rejections_in_a_row(rejected: int) -> None:
    known = trials(COMPLETE, *[PRUNED] * rejected)
    assert sampler_is_stuck(known) == (rejected in (PATIENCE, 2 * PATIENCE))


def test_with_several_workers_it_is_asked_again_as_soon_as_one_has_a_trial() -> None:
    """A trial that runs was within the budget, though those before it that ended were not."""
    assert sampler_is_stuck(trials(RUNNING, *[PRUNED] * PATIENCE))
    assert not sampler_is_stuck(trials(RUNNING, *[PRUNED] * PATIENCE, RUNNING))
    assert not sampler_is_stuck(trials(COMPLETE, *[PRUNED] * PATIENCE, RUNNING))
