"""How a study stands: Optuna's trials in counts and words, for the progress and the log."""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.optuna_records import trained

_log = logging.getLogger(__name__)

PATIENCE = 12
"""Proposals over budget in a row before a schedule within the budget is drawn instead."""


class Tally:
    """What has come of a study's trials so far. Each is looked at once it has ended, and then no more: going through
    all of them at every step of a search would take the longer the more there are."""

    def __init__(self) -> None:
        self.trained = 0
        """Trials that count, as `history.trained` has it."""
        self.feasible = 0
        """Scored within the budget."""
        self.over = 0
        """Proposals over a budget."""
        self.best: float | None = None
        """Highest top-1 within the budget."""
        self.unfinished: list[FrozenTrial] = []
        """Trials that wait or run, in their order."""
        self._seen = 0

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Count what has ended since.

        Args:
            trials: All of the study, in their order.
        """
        numbers = [*(trial.number for trial in self.unfinished), *range(self._seen, len(trials))]
        self._seen = len(trials)
        self.unfinished = [trials[number] for number in numbers if not trials[number].state.is_finished()]
        for number in numbers:
            if trials[number].state.is_finished():
                self._count(trials[number])

    def _count(self, trial: FrozenTrial) -> None:
        self.trained += trained([trial])
        self.over += trial.state == TrialState.PRUNED
        if trial.state == TrialState.COMPLETE and max(trial.constraints.values()) <= 0:
            self.feasible += 1
            self.best = trial.values[0] if self.best is None else max(self.best, trial.values[0])

    def words(self, *, running: int = 0) -> str:
        """All that in a few words.

        Args:
            running: How many workers have a trial; 0: that is not told.
        """
        best = f", best {self.best:.1f} %" if self.best is not None else ""
        at_work = f", {running} running" if running else ""
        return f"{self.feasible} within budget{best}, {self.over} over it{at_work}"


def sampler_is_stuck(trials: list[FrozenTrial]) -> bool:
    """Whether the last `PATIENCE` proposals, or a multiple of it, were over budget; one that a worker has was not."""
    rejected = len(list(takewhile(lambda trial: trial.state == TrialState.PRUNED, reversed(trials))))
    return rejected > 0 and rejected % PATIENCE == 0


class TrialLogger:
    """What the log tells of one trial.

    Args:
        trial: As it runs.
        schedule: What was proposed.
        sampling: Seconds that the proposal took.
    """

    def __init__(self, trial: Trial, schedule: MergeSchedule, *, sampling: float) -> None:
        attributes = trial.user_attrs
        kind = " ".join(filter(None, (attributes.get("kind", "searched"), attributes.get("label", ""))))
        self._trial = trial
        self._name = f"trial {trial.number} ({kind})"
        self._sampling = f"sampler {1e3 * sampling:.1f} ms"
        self._ratios = " ".join(
            f"{ratio:g}{schedule.forms.get(layer, '')[:1]}" for layer, ratio in schedule.keep_ratios.items()
        )

    def rejected(self) -> None:
        """It is over a budget, or below the range of budgets."""
        missed = ", ".join(f"{name}: {miss:.4f}" for name, miss in self._trial.constraints.items() if miss > 0)
        _log.info("%s rejected, %s; %s; keep ratios %s", self._name, missed, self._sampling, self._ratios)

    def failed(self, reason: str) -> None:
        """It came to no score."""
        _log.info("%s failed, %s; %s; keep ratios %s", self._name, reason, self._sampling, self._ratios)

    def scored(self, outcome: Mapping[str, Any], *, ib_weight: float, version: int, saving: float) -> None:
        """It has a score.

        Args:
            outcome: What is told of it.
            ib_weight: Of its training.
            version: Of the shared weights after it.
            saving: Seconds that saving them took.
        """
        _log.info(
            "%s: cost %.4f, top-1 %.2f ± %.2f %%, loss %.4f, IB weight %.3g, %.2f s; %s, checkpoint %.1f ms; "
            "weights version %d to %d; keep ratios %s",
            self._name, outcome["cost"], outcome["top1"], outcome["top1_se"], outcome["loss"], ib_weight,
            outcome["seconds"], self._sampling, 1e3 * saving, outcome["supernet_version"], version, self._ratios,
        )  # fmt: skip
