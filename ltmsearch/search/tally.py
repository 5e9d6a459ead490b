"""Counts of a study's trials, and the log lines of each trial."""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.optuna_records import count_trained

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
        """Scored trials within the budget."""
        self.rejected = 0
        """Proposals over a budget."""
        self.best: float | None = None
        """Highest top-1 within the budget, in percent."""
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
        self.trained += count_trained([trial])
        self.rejected += trial.state == TrialState.PRUNED
        if trial.state == TrialState.COMPLETE and max(trial.constraints.values()) <= 0:
            self.feasible += 1
            self.best = trial.values[0] if self.best is None else max(self.best, trial.values[0])

    def summary(self, *, running: int = 0) -> str:
        """The counts in one line; `running` is the number of trials in progress, 0 leaves it out."""
        best = f", best {self.best:.1f} %" if self.best is not None else ""
        in_progress = f", {running} running" if running else ""
        return f"{self.feasible} within budget{best}, {self.rejected} over budget{in_progress}"


def sampler_is_stuck(trials: list[FrozenTrial]) -> bool:
    """Whether the last `MAX_REJECTED` proposals, or a multiple of that, were all over budget."""
    rejected = len(list(takewhile(lambda trial: trial.state == TrialState.PRUNED, reversed(trials))))
    return rejected > 0 and rejected % MAX_REJECTED == 0


class TrialLogger:
    """Writes one log line per trial."""

    def __init__(self, trial: Trial, schedule: MergeSchedule, *, sampling: float) -> None:
        attributes = trial.user_attrs
        kind = " ".join(filter(None, (attributes.get("kind", "searched"), attributes.get("label", ""))))
        self._trial = trial
        self._name = f"trial {trial.number} ({kind})"
        self._sampling = f"sampler {1e3 * sampling:.1f} ms"
        ratios = schedule.keep_ratios.items()
        self._ratios = " ".join(f"{ratio:g}{schedule.forms.get(layer, '')[:1]}" for layer, ratio in ratios)

    def rejected(self) -> None:
        """Log that the trial is outside a budget."""
        missed = ", ".join(f"{name}: {miss:.4f}" for name, miss in self._trial.constraints.items() if miss > 0)
        _log.info("%s rejected, %s; %s; keep ratios %s", self._name, missed, self._sampling, self._ratios)

    def failed(self, reason: str) -> None:
        """Log that the trial has no score."""
        _log.info("%s failed, %s; %s; keep ratios %s", self._name, reason, self._sampling, self._ratios)

    def scored(self, outcome: Mapping[str, Any], *, ib_weight: float, version: int, saving: float) -> None:
        """Log the trial's score."""
        score = f"top-1 {outcome['top1']:.2f} ± {outcome['top1_se']:.2f} %, loss {outcome['loss']:.4f}"
        _log.info(
            "%s: cost %.4f, %s, IB weight %.3g, %.2f s; %s, checkpoint %.1f ms; weights version %d to %d; "
            "keep ratios %s",
            self._name,
            outcome["cost"],
            score,
            ib_weight,
            outcome["seconds"],
            self._sampling,
            1e3 * saving,
            outcome["supernet_version"],
            version,
            self._ratios,
        )
