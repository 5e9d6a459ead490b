"""Updates of the shared weights, and the choice of the checkpoint that matches a study."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import Checkpoint, CheckpointState
from ltmsearch.search.optuna_records import WEIGHT
from ltmsearch.search.shared_weights import (
    SharedWeights,
    select_checkpoint,
    unstored_trial,
)

STATE = CheckpointState(class_names=["a", "b"], version=0, scored=0, space="s", trial=None, outcome=None)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet("mobilevit_xxs", num_classes=2)


def shared(supernet: Supernet, folder: Path, *, share: float = 0.25, power: float = 0.5) -> SharedWeights:
    return SharedWeights(supernet, folder, STATE, share=share, staleness_power=power)


def plus(weights: dict[str, torch.Tensor], amount: float) -> dict[str, torch.Tensor]:
    return {name: value + amount for name, value in weights.items()}


def test_a_fresh_update_moves_by_its_share(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path)
    version, start = weights.check_out()
    trained = plus(start, 1.0)
    weights.update(trained, weights.check_in(version), age=0)
    assert weights.version == 1
    assert all(torch.equal(weights.weights[n], torch.lerp(start[n], trained[n], 0.25)) for n in start)


def test_a_stale_update_moves_less(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path, power=1.0)
    loans = [weights.check_out() for _ in range(3)]
    begun = loans[0][1]
    for age, (version, start) in enumerate(loans):
        weights.update(plus(start, 1.0), weights.check_in(version), age=age)
    expected = 0.25 * (1 + 1 / 2 + 1 / 3)  # each adds its own change from where it started, not from where it arrives
    assert all(torch.allclose(weights.weights[n] - begun[n], torch.tensor(expected), atol=1e-5) for n in begun)
    assert weights.version == 3
    weights.update({}, begun, age=0)
    assert weights.version == 3, "a trial without training changes nothing"


def test_only_versions_in_use_are_kept(supernet: Supernet, tmp_path: Path) -> None:
    weights = shared(supernet, tmp_path)
    first = [weights.check_out()[0] for _ in range(2)]
    weights.update(plus(weights.weights, 1.0), weights.check_in(first[0]), age=0)
    second = weights.check_out()[0]
    assert sorted(weights._versions) == [0, 1]
    weights.check_in(first[1])
    assert sorted(weights._versions) == [1]
    weights.check_in(second)
    assert not weights._versions


def trials(stored: int, *, running: int = 0) -> list[FrozenTrial]:
    own = {WEIGHT: 0.0, "loss": 1.0}
    made = [create_trial(values=[1.0, 1.0], state=TrialState.COMPLETE, user_attrs=own) for _ in range(stored)]
    made += [create_trial(state=TrialState.RUNNING) for _ in range(running)]
    for number, trial in enumerate(made):
        trial.number = number
    return made


def saved(scored: int) -> Checkpoint:
    """As it is after `scored` trials, numbered from 0."""
    outcome = {"top1": 50.0} if scored else None
    return Checkpoint({}, replace(STATE, scored=scored, version=scored, trial=scored - 1, outcome=outcome))


def test_weights_may_be_one_running_trial_ahead() -> None:
    pending = unstored_trial(saved(3).state, trials(2, running=1))
    assert pending is not None
    assert pending.number == 2
    assert unstored_trial(saved(3).state, trials(3)) is None


@pytest.mark.parametrize(
    ("stored", "running", "chosen", "said"),
    [
        (5, 0, 5, None),
        (4, 1, 5, None),  # a crash between saving and storing
        (4, 0, 4, "contain 5 scored trials, the study 4: continuing with the weights before"),
        (3, 1, 4, "contain 5 scored trials, the study 3: continuing with the weights before"),
        (7, 0, 7, "contain 5 scored trials, the study 7: one of them was restored"),  # older weights were put back
        (1, 0, 1, "contain 5 scored trials, the study 1: one of them was restored"),
    ],
)
def test_the_matching_checkpoint_is_selected(stored: int, running: int, chosen: int, said: str | None) -> None:
    checkpoint, line = select_checkpoint([saved(5), saved(4)], trials(stored, running=running))
    assert checkpoint.state.scored == chosen
    assert (line is None) if said is None else (line is not None and said in line)
    if said and "restored" in said:
        assert checkpoint.state.version == 5, "the newest weights there are"
        assert checkpoint.state.outcome is None, "that of another trial"
