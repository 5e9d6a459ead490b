"""Counts of a study's trials, and the log lines of each trial."""

import logging
from collections.abc import Sequence
from itertools import takewhile

from optuna.trial import FrozenTrial, Trial, TrialState

from ltmsearch.schedules.schedule import MergeSchedule, amount_of
from ltmsearch.search.optuna_records import count_trained, is_own

_log = logging.getLogger(__name__)

MAX_REJECTED = 12
"""Proposals over budget in a row after which a schedule within the budget is drawn instead."""


class Tally:
    """Running counts of a study's trials.

    Each trial is counted once, when it has ended: recounting all of them at every step would make a long search slow.
    """

    def __init__(self) -> None:
        self.trained = 0
        """Trials that count towards `--trials`."""
        self.feasible = 0
        self.rejected = 0
        self.best: float | None = None
        """Lowest measure within the budget, in nats."""
        self.unfinished: list[FrozenTrial] = []
        """Waiting and running trials, in order."""
        self._seen = 0

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Count the trials that have ended since the last call."""
        numbers = [*(trial.number for trial in self.unfinished), *range(self._seen, len(trials))]
        self._seen = len(trials)
        self.unfinished = [trials[number] for number in numbers if not trials[number].state.is_finished()]
        for number in numbers:
            if trials[number].state.is_finished():
                self._count(trials[number])

    def _count(self, trial: FrozenTrial) -> None:
        if not is_own(trial):
            return
        self.trained += count_trained([trial])
        self.rejected += trial.state == TrialState.PRUNED
        if trial.state == TrialState.COMPLETE and max(trial.constraints.values()) <= 0:
            self.feasible += 1
            self.best = trial.values[0] if self.best is None else min(self.best, trial.values[0])

    def summary(self, *, running: int = 0) -> str:
        """The counts in one line; `running` is the number of trials in progress, 0 leaves it out."""
        best = f", best {self.best:.4f} nats" if self.best is not None else ""
        in_progress = f", {running} running" if running else ""
        return f"{self.feasible} within budget{best}, {self.rejected} over budget{in_progress}"


def sampler_is_stuck(trials: list[FrozenTrial]) -> bool:
    """Whether the last `MAX_REJECTED` proposals, or a multiple of that, were all over budget."""
    rejected = len(list(takewhile(lambda trial: trial.state == TrialState.PRUNED, reversed(trials))))
    return rejected > 0 and rejected % MAX_REJECTED == 0


def log_trial(trial: Trial, schedule: MergeSchedule, outcome: str, *, sampling: float) -> None:
    """Log how a trial ended. `sampling` is the time in seconds that its proposal took."""
    kind, label = trial.user_attrs.get("kind", "searched"), trial.user_attrs.get("label", "")
    ratios = " ".join(f"{ratio:g}{schedule.forms.get(layer, '')[:1]}" for layer, ratio in schedule.keep_ratios.items())
    _log.info(
        "trial %d (%s): %s; sampler %.1f ms; %ss %s",
        trial.number, f"{kind} {label}".strip(), outcome, 1e3 * sampling, amount_of(schedule.operator), ratios,
    )  # fmt: skip
