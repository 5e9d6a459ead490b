"""Proposals of the sampler `auto`: schedules that screening promoted with the shared weights of the time.

They are stored with the study, so that a continued search makes the same ones. Once all are trials, because `--trials`
was raised, the next round screens with the weights as they are then.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.search.initial_trials import (
    InitialTrial,
    derive_seed,
    draw_within_budget,
    enqueue_params,
    initial_trials,
)
from ltmsearch.search.optuna_records import count_trained, is_own
from ltmsearch.search.samplers import ScreeningSampler
from ltmsearch.search.screening import Scorer, Screening, few_images
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.timing import SCREENING, Clock
from ltmsearch.search.trial import IB_WEIGHT
from ltmsearch.search.workers import Workers

SCREENED = "screened"
"""Study attribute: the rounds of screening, each with the version of its weights, the number of schedules scored, and
the promoted ones as choice indices with their scores."""
_SEED = 2**32
"""Seeds of rounds are not those of trials."""


class Proposals:
    """Screens when the study has no proposal left."""

    def __init__(self, context: StudyContext, callbacks: Callbacks, clock: Clock, confirm: Callable[[], None]) -> None:
        self.context, self.callbacks, self.clock, self.confirm = context, callbacks, clock, confirm

    def sampler(
        self, study: optuna.Study, workers: Workers, version: int, weights: Mapping[str, Tensor], *, seed: int
    ) -> ScreeningSampler:
        """A sampler for the next trial, which screens with these weights, by these workers, if it must."""
        space = self.context.space

        def score(rows: Sequence[np.ndarray], images: int | None) -> list[float]:
            schedules = [space.schedule(row) for row in rows]
            return workers.scores(schedules, images, version, weights, limit=self.context.trial_limit())

        def propose(trial: FrozenTrial) -> dict[str, Any]:
            return self._next(study, trial, version, score)

        return ScreeningSampler(self._distributions(), propose, seed=seed)

    def _distributions(self) -> dict[str, BaseDistribution]:
        space = self.context.space
        found: dict[str, BaseDistribution] = {
            name: IntDistribution(0, number - 1) for name, number in zip(space.names, space.options, strict=True)
        }
        if (weights := space.ib_weights) is not None:
            found[IB_WEIGHT] = FloatDistribution(weights.floor, weights.high, log=True)
        return found

    def _next(self, study: optuna.Study, trial: FrozenTrial, version: int, score: Scorer) -> dict[str, Any]:
        """Parameters of the first promoted schedule that is no trial yet, after further rounds of screening if needed.

        Where a round finds no new schedule, since all of a tiny space near the budget are trials, one is drawn.
        """
        names = self.context.space.names
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number and is_own(each)]
        tried = {tuple(each.params[name] for name in names) for each in others}
        rounds = list(study.user_attrs.get(SCREENED, []))
        while True:
            promoted = (indices for each in rounds for indices, _ in each["promoted"])
            if (new := next((indices for indices in promoted if tuple(indices) not in tried), None)) is not None:
                initial = InitialTrial(indices=np.array(new), kind="start-up")
            elif rounds and not rounds[-1]["promoted"]:
                initial = draw_within_budget(self.context, trial.number)
            else:
                rounds.append(self._screen(others, len(rounds), version, score))
                self.confirm()
                study.set_user_attr(SCREENED, rounds)
                continue
            return enqueue_params(self.context, initial)

    def _screen(self, others: Sequence[FrozenTrial], number: int, version: int, score: Scorer) -> dict[str, Any]:
        """One round, to propose schedules for all trials that are left besides `others`."""
        context, settings = self.context, self.context.settings
        names = context.space.names
        best_first = sorted(
            others, key=lambda each: (each.state != TrialState.COMPLETE, each.values or [], each.number)
        )
        held = [np.array([each.params[name] for name in names]) for each in best_first]
        running = sum(not each.state.is_finished() and each.user_attrs.get("label") != "plain" for each in others)
        left = max(1, settings.trials - count_trained(others) - running)
        schedules = settings.screened_schedules
        with self.clock.part(SCREENING):
            self.callbacks.phase("screening schedules", schedules)
            screening = Screening(
                space=context.space,
                budgets=context.budgets,
                score=score,
                net=lambda indices: context.proxy_key(context.space.schedule(indices)),
                few=few_images(context.evaluator.data.search_size),
                seed=derive_seed(settings.seed, _SEED, number),
                progress=self.callbacks.advance,
            )
            rng = np.random.default_rng(derive_seed(settings.seed))
            starts = [one.indices for one in initial_trials(context, rng)]
            promoted = screening.run(starts=[*starts, *held], known=held, schedules=schedules, promoted=left)
        self.callbacks.note(
            f"screened {len(screening.scores)} schedules without training; the best {len(promoted)} become trials"
        )
        self.callbacks.phase("searching", settings.trials)
        return {
            "version": version,
            "schedules": len(screening.scores),
            "promoted": [[list(one.indices), one.score] for one in promoted],
        }
