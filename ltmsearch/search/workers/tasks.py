"""Tasks for workers and their answers."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """A schedule to score with weights as they are, for the screening."""

    place: int
    """In the list of those that are scored together."""
    schedule: MergeSchedule
    images: int | None
    """The first of the search images; None: all."""
    limit: float
    """Seconds."""


@dataclass(frozen=True, kw_only=True)
class ScoreAnswer:
    """The score of a schedule."""

    place: int
    value: float


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

    def scores(
        self,
        schedules: Sequence[MergeSchedule],
        images: int | None,
        version: int,
        weights: Mapping[str, Tensor],
        *,
        limit: float,
    ) -> list[float]:
        """Score schedules with this version of the weights, while trials that run go on.

        Args:
            images: Number of search images, the first ones; None: all.
            limit: Time limit of one score, in seconds.

        Raises:
            WorkersLost: As `answers`, and if one schedule is the end of several workers.
        """

    def close(self) -> None:
        """End all workers and drop the trials that run."""
