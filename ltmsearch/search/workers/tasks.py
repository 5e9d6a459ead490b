"""Tasks for workers and their answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import TrialResult


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial to evaluate."""

    trial: int
    schedule: MergeSchedule
    ib_weight: float
    seed: int
    steps: int | None
    """Training steps; None: as in the settings."""
    limit: float
    """Seconds."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a task, or the reason why there is none."""

    trial: int
    result: TrialResult | None = None
    """None if the trial failed."""
    failure: str = ""
    worker: str = ""
    """Host and process of the worker; empty for this process."""


class Workers(Protocol):
    """Interface of workers: this process, or several others at once."""

    remote: bool
    """Whether trials run in other processes."""

    def free(self) -> int:
        """Number of trials that can be started now."""

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        """Start a trial from this version of the weights, which are not changed."""

    def answers(self) -> list[Answer]:
        """Wait for trials to end and return them; the list is empty if only a worker became free.

        Raises:
            WorkersLost: If no worker is left and none can be started.
        """

    def close(self) -> None:
        """End all workers and drop the trials that run."""
