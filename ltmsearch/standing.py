"""How a study stands: Optuna's trials in counts and words, for the progress and the log."""

import logging
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from ltmsearch.schedule import MergeSchedule

_log = logging.getLogger(__name__)

PATIENCE = 12
"""Proposals over budget in a row before a schedule within the budget is drawn instead."""


def standing(trials: list[FrozenTrial], *, running: int = 0) -> str:
    """What has come of the trials so far, in a few words.

    Args:
        trials: Of the study.
        running: How many workers have one; 0: that is not told.
    """
    scored = [t for t in trials if t.state == TrialState.COMPLETE]
    feasible = [t for t in scored if max(t.constraints.values()) <= 0]
    over = sum(t.state == TrialState.PRUNED for t in trials)
    best = f", best {max(t.values[0] for t in feasible):.1f} %" if feasible else ""
    at_work = f", {running} running" if running else ""
    return f"{len(feasible)} within budget{best}, {over} over it{at_work}"


def at_a_loss(trials: list[FrozenTrial]) -> bool:
    """Whether the last `PATIENCE` proposals that ended, or a multiple of it, were over budget."""
    ended = [trial for trial in trials if trial.state.is_finished()]
    rejected = len(list(takewhile(lambda trial: trial.state == TrialState.PRUNED, reversed(ended))))
    return rejected > 0 and rejected % PATIENCE == 0


class TrialLog:
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
