"""The shared weights of a search: lent to trials, moved by what comes back, on disk after every move."""

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
from ltmsearch.search.trial import load_parameters, parameters

Weights = dict[str, Tensor]
"""Parameters by name."""


class SharedWeights:
    """The present weights, and those before them that trials still run with.

    Args:
        supernet: Its parameters are the first version; it is what is saved.
        folder: The run directory.
        state: What its weights stand for.
        share: How much of a trial's change they keep.
        staleness_power: How quickly that falls with the age of what the trial started from; see `decayed_share`.
        confirm: Raises where they must not be saved any more.
    """

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
        self._lent: Counter[int] = Counter()
        self._versions: dict[int, Weights] = {}

    @property
    def version(self) -> int:
        """How often they were moved."""
        return self.state.version

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take the place of weights that were saved."""
        self.supernet.load_state_dict(checkpoint.weights)
        self.weights, self.state = parameters(self.supernet), checkpoint.state

    def save_warmed_up(self) -> None:
        """Take the supernet's present parameters, and save them."""
        self.weights = parameters(self.supernet)
        self.save()

    def lend(self) -> tuple[int, Weights]:
        """The present version and its weights, which are kept until they are back."""
        self._lent[self.version] += 1
        self._versions[self.version] = self.weights
        return self.version, self.weights

    def take_back(self, version: int) -> Weights:
        """What a trial started from, which it needs no longer."""
        weights = self._versions[version]
        self._lent[version] -= 1
        if not self._lent[version]:
            del self._lent[version], self._versions[version]
        return weights

    def move(self, trained: Mapping[str, Tensor], start: Weights, *, age: int) -> None:
        """Take over a share of what a trial changed; without training nothing moves.

        Args:
            trained: Its parameters W'; empty without training.
            start: Those that it started from, W_base.
            age: How many versions these are behind.
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

    def keep(self, trial: int, outcome: dict[str, Any]) -> None:
        """Save the weights together with what a trial came to, before it is told."""
        self.state = replace(self.state, trial=trial, outcome=outcome, scored=self.state.scored + 1)
        self.save()

    def save(self) -> None:
        """Write them to the run directory."""
        self.confirm()
        load_parameters(self.supernet, self.weights)
        save_checkpoint(self.folder, self.supernet.state_dict(), self.state)


def decayed_share(share: float, age: int, *, power: float) -> float:
    """How much of a trial's change the shared weights keep: share / (1 + age)^power.

    Several workers finish trials that started from weights which others have moved since. What they learned is told
    about another place than where it is applied, the more so the older it is (Xie et al., "Asynchronous Federated
    Optimization", 2019, equation 5 with polynomial weighting).

    Args:
        share: Without age.
        age: Versions since the trial started.
        power: 0 weighs all alike.
    """
    return float(share * (1 + age) ** -power)


def scored(trials: Sequence[FrozenTrial]) -> int:
    """How many trials have come to a score."""
    return sum(trial.state == TrialState.COMPLETE for trial in trials)


def fits(state: CheckpointState, trials: Sequence[FrozenTrial]) -> bool:
    """Whether weights and study tell of the same trials.

    They do also where the last one is in the weights and was not told yet: a crash came in between.

    Args:
        state: Of the weights.
        trials: Of the study.
    """
    told = scored(trials)
    return state.scored == told or (state.scored == told + 1 and waits(state, trials) is not None)


def waits(state: CheckpointState, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The trial whose outcome is in the weights and was not told yet, if there is one."""
    if state.outcome is None:
        return None
    running = (trial for trial in trials if trial.state == TrialState.RUNNING)
    return next((trial for trial in running if trial.number == state.trial), None)


def choose(found: Sequence[Checkpoint], trials: Sequence[FrozenTrial]) -> tuple[Checkpoint, str | None]:
    """The weights that go with a study, of the last two; and a line for a person where they are not simply the last.

    Args:
        found: Newest first; at least one.
        trials: Of the study.
    """
    for place, checkpoint in enumerate(found):
        if fits(checkpoint.state, trials):
            behind = f"the last shared weights know {found[0].state.scored} scored trials, the study {scored(trials)}"
            return checkpoint, None if place == 0 else f"{behind}: going on from those before, which fit"
    newest, told = found[0], scored(trials)
    line = (
        f"the shared weights know {newest.state.scored} scored trials, the study {told}: one of the two was put back "
        "or lost its last trials; going on with both as they are"
    )
    return newest._replace(state=replace(newest.state, scored=told, trial=None, outcome=None)), line
