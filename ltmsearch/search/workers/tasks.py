"""What is handed to whoever evaluates trials, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import TrialResult


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial to be evaluated."""

    trial: int
    """Its number."""
    schedule: MergeSchedule
    """The subnet."""
    ib_weight: float
    """Weight of the IB loss."""
    seed: int
    """Of the training images."""
    steps: int | None
    """Training steps; None: as the settings say."""
    limit: float
    """Seconds that it may take."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a trial came to: a result, or the reason why there is none."""

    trial: int
    """Its number."""
    result: TrialResult | None = None
    """None if it failed."""
    failure: str = ""
    """Why it failed."""
    worker: str = ""
    """Who evaluated it; empty: this process."""


class Workers(Protocol):
    """Whoever evaluates trials: this process, or several others at once."""

    elsewhere: bool
    """Whether trials run in other processes."""

    def free(self) -> int:
        """How many more trials can be started now."""

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        """Hand out a trial.

        Args:
            task: The trial.
            version: Of the weights.
            weights: Parameters to start from, by name. They are not changed.
        """

    def answers(self) -> list[Answer]:
        """Wait for something to happen; the trials that ended, possibly none, where a worker became free.

        Raises:
            WorkersLost: If no worker is left, and none can be had.
        """

    def close(self) -> None:
        """End all workers; trials that run are dropped."""
