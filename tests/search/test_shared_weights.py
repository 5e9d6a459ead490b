"""The shared weights of a search: what moves them, and which of the saved ones go with a study."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import Checkpoint, CheckpointState
from ltmsearch.search.shared_weights import SharedWeights, choose, decayed_share, fits, waits

STATE = CheckpointState(class_names=["a", "b"], version=0, scored=0, space="s", trial=None, outcome=None)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet("mobilevit_xxs", num_classes=2)


def shared(supernet: Supernet, folder: Path, *, share: float = 0.25, power: float = 0.5) -> SharedWeights:
    return SharedWeights(supernet, folder, STATE, share=share, staleness_power=power)


def plus(weights: dict[str, torch.Tensor], amount: float) -> dict[str, torch.Tensor]:
    return {name: value + amount for name, value in weights.items()}


def test_what_is_fresh_moves_them_by_its_share(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path)
    version, start = weights.lend()
    trained = plus(start, 1.0)
    weights.move(trained, weights.take_back(version), age=0)
    assert weights.version == 1
    assert all(torch.equal(weights.weights[n], torch.lerp(start[n], trained[n], 0.25)) for n in start)


def test_what_is_stale_moves_them_by_its_own_change_and_less(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path, power=1.0)
    loans = [weights.lend() for _ in range(3)]
    begun = loans[0][1]
    for age, (version, start) in enumerate(loans):
        weights.move(plus(start, 1.0), weights.take_back(version), age=age)
    wanted = 0.25 * (1 + 1 / 2 + 1 / 3)  # each adds its own change from where it started, not from where it arrives
    assert all(torch.allclose(weights.weights[n] - begun[n], torch.tensor(wanted), atol=1e-5) for n in begun)
    assert weights.version == 3


def test_only_versions_that_trials_run_with_are_kept(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path)
    first = [weights.lend()[0] for _ in range(2)]
    weights.move(plus(weights.weights, 1.0), weights.take_back(first[0]), age=0)
    second = weights.lend()[0]
    assert sorted(weights._versions) == [0, 1]
    weights.take_back(first[1])
    assert sorted(weights._versions) == [1]
    weights.take_back(second)
    assert not weights._versions


def test_without_training_nothing_moves(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path)
    version, start = weights.lend()
    weights.move({}, weights.take_back(version), age=0)
    assert weights.version == 0
    assert weights.weights is start


@pytest.mark.parametrize(("age", "power", "share"), [(0, 0.5, 0.2), (3, 0.5, 0.1), (3, 0.0, 0.2), (4, 1.0, 0.04)])
def test_share_by_age(age: int, power: float, share: float) -> None:
    assert decayed_share(0.2, age, power=power) == pytest.approx(share)


# -- weights and study ------------------------------------------------------------------------------------------------


def trials(told: int, *, running: int = 0) -> list[FrozenTrial]:
    made = [create_trial(values=[1.0, 1.0], state=TrialState.COMPLETE) for _ in range(told)]
    made += [create_trial(state=TrialState.RUNNING) for _ in range(running)]
    for number, trial in enumerate(made):
        trial.number = number
    return made


def saved(scored: int) -> Checkpoint:
    """As it is after `scored` trials, numbered from 0."""
    outcome = {"top1": 50.0} if scored else None
    return Checkpoint({}, replace(STATE, scored=scored, version=scored, trial=scored - 1, outcome=outcome))


def test_weights_that_are_one_trial_ahead_fit_if_that_trial_still_runs() -> None:
    assert fits(saved(3).state, trials(3))
    assert fits(saved(3).state, trials(2, running=1))
    assert not fits(saved(3).state, trials(2))
    assert not fits(saved(3).state, trials(4))
    untold = waits(saved(3).state, trials(2, running=1))
    assert untold is not None
    assert untold.number == 2
    assert waits(saved(3).state, trials(3)) is None


@pytest.mark.parametrize(
    ("told", "running", "chosen", "said"),
    [
        (5, 0, 5, None),
        (4, 1, 5, None),  # a crash between saving and telling
        (4, 0, 4, "know 5 scored trials, the study 4: going on from those before"),  # the study lost its last trial
        (3, 1, 4, "know 5 scored trials, the study 3: going on from those before"),
        (7, 0, 7, "know 5 scored trials, the study 7: one of the two was put back"),  # older weights were put back
        (1, 0, 1, "know 5 scored trials, the study 1: one of the two was put back"),
    ],
)
def test_the_right_one_of_the_last_two_is_taken(told: int, running: int, chosen: int, said: str | None) -> None:
    checkpoint, line = choose([saved(5), saved(4)], trials(told, running=running))
    assert checkpoint.state.scored == chosen
    assert (line is None) if said is None else (line is not None and said in line)
    if said and "put back" in said:
        assert checkpoint.state.version == 5, "the newest weights there are"
        assert checkpoint.state.outcome is None, "what they tell of belongs to another course of the study"
