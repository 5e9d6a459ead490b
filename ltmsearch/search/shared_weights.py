"""The shared weights of a search: given to trials, updated by their results, saved after every update."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from ltmsearch.models.supernet import Supernet
from ltmsearch.search.checkpoint import Checkpoint, CheckpointState, save_checkpoint
from ltmsearch.search.optuna_records import is_own
from ltmsearch.search.trial import load_parameters, parameters

Weights = dict[str, Tensor]


class SharedWeights:
    """The current weights, and the earlier versions that running trials started from."""

    def __init__(
        self,
        supernet: Supernet,
        folder: Path,
        state: CheckpointState,
        *,
        share: float,
        staleness_power: float,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self.supernet = supernet
        self.folder = folder
        self.state = state
        self.share = share
        self.staleness_power = staleness_power
        self.confirm = confirm
        self.weights = parameters(supernet)
        self._users: Counter[int] = Counter()
        self._versions: dict[int, Weights] = {}

    @property
    def version(self) -> int:
        return self.state.version

    def resume(self, checkpoint: Checkpoint) -> None:
        self.supernet.load_state_dict(checkpoint.weights)
        self.weights, self.state = parameters(self.supernet), checkpoint.state

    def check_out(self) -> tuple[int, Weights]:
        """The current version and its weights, which are kept until `check_in`."""
        self._users[self.version] += 1
        self._versions[self.version] = self.weights
        return self.version, self.weights

    def check_in(self, version: int) -> Weights:
        """The weights of a version that a trial has finished with."""
        weights = self._versions[version]
        self._users[version] -= 1
        if not self._users[version]:
            del self._users[version], self._versions[version]
        return weights

    def update(self, trained: Mapping[str, Tensor], start: Weights, *, age: int) -> None:
        """Take over a share of a trial's change, W ← W + share · (W' − W_start), unless it did not train.

        `age` is the number of versions by which W_start is behind.
        """
        if not trained:
            return
        share = decayed_share(self.share, age, power=self.staleness_power)
        if age == 0:
            self.weights = {n: torch.lerp(value, trained[n].to(value), share) for n, value in self.weights.items()}
        else:
            self.weights = {
                n: value + share * (trained[n].to(value) - start[n].to(value)) for n, value in self.weights.items()
            }
        self.state = replace(self.state, version=self.version + 1)

    def save_outcome(self, trial: int, outcome: dict[str, Any]) -> None:
        """Save the weights together with a trial's outcome, before Optuna stores it."""
        self.state = replace(self.state, trial=trial, outcome=outcome, scored=self.state.scored + 1)
        self.save()

    def save(self) -> None:
        self.confirm()
        load_parameters(self.supernet, self.weights)
        save_checkpoint(self.folder, self.supernet.state_dict(), self.state)


def decayed_share(share: float, age: int, *, power: float) -> float:
    """The share of a trial's change that the shared weights take over: share / (1 + age)^power.

    With several workers, a trial's update is computed at older weights than those it is added to. Xie et al.,
    "Asynchronous Federated Optimization", https://arxiv.org/abs/1903.03934, polynomial staleness weighting.
    """
    return float(share * (1 + age) ** -power)


def unstored_trial(state: CheckpointState, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The running trial whose outcome is saved with the weights but not stored in the study; None if there is none."""
    if state.outcome is None:
        return None
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    return next((trial for trial in running if trial.number == state.trial), None)


def select_checkpoint(found: Sequence[Checkpoint], trials: Sequence[FrozenTrial]) -> tuple[Checkpoint, str | None]:
    """The checkpoint that contains the same trials as the study; and a note if that is not simply the last one.

    The last trial of the weights may still be running in the study: a crash came in between.
    """
    newest, stored = found[0], sum(trial.state == TrialState.COMPLETE and is_own(trial) for trial in trials)
    for place, checkpoint in enumerate(found):
        ahead = unstored_trial(checkpoint.state, trials) is not None
        if checkpoint.state.scored in (stored, stored + ahead):
            mismatch = f"the last shared weights contain {newest.state.scored} scored trials, the study {stored}"
            return checkpoint, None if place == 0 else f"{mismatch}: continuing with the weights before, which match"
    note = (
        f"the shared weights contain {newest.state.scored} scored trials, the study {stored}: one of them was restored "
        "or lost its last trials; continuing with both as they are"
    )
    return newest._replace(state=replace(newest.state, scored=stored, trial=None, outcome=None)), note
