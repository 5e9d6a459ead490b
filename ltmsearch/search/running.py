"""Trials that workers are evaluating."""

from collections.abc import Callable
from dataclasses import dataclass

from optuna.trial import Trial

from ltmsearch.search.workers import Task


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that a worker is evaluating."""

    trial: Trial
    task: Task
    cost: float
    version: int
    """Version of the shared weights that the trial started from."""
    counts: bool
    """Whether it counts towards `--trials`."""
    log: Callable[[str], None]
