"""The real driver on simulated workers, with made-up scores."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from harness.timing import peak_mib
from harness.virtual_cluster import Durations, VirtualWorkers
from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.costs import within_budgets
from ltmsearch.engine.evaluation import Score
from ltmsearch.reporting.dashboard.pages import DashboardHooks
from ltmsearch.schedules.grid import kept_share
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.driver import Driver
from ltmsearch.search.pareto import hypervolume
from ltmsearch.search.setup import StudyContext, prepare
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.storage import RetryingStorage, open_storage
from ltmsearch.search.trial import ExampleMerges, TrialResult, parameters
from ltmsearch.search.workers import Answer, Task

MARKS = (60, 100, 300, 1000, 3000, 10_000)
"""Numbers of trials after which a study is measured."""
WINDOW = 20
"""Trials that the seconds per trial at a mark are the median of."""
NOISE = 1.0
"""Standard deviation of a made-up score, in points."""


def prepare_simulation(backbone: str, **settings: Any) -> StudyContext:
    """Study whose images are small, since nothing is trained."""
    made = StudySettings.make(backbone=backbone, proxy_img_size=64, precision="fp32", **settings)
    return prepare(made, Callbacks())


def with_settings(context: StudyContext, **settings: Any) -> StudyContext:
    """The same study with other settings."""
    return replace(context, settings=context.settings.model_copy(update=settings))


def example_merges(context: StudyContext) -> ExampleMerges | None:
    """Merges that a real trial found at keep ratio 0.5, for the driver to draw."""
    schedule = context.space.schedule(context.space.nearest(0.5))
    return context.evaluator.evaluate(parameters(context.evaluator.supernet), schedule, seed=0, steps=1).merges


class MadeUpScores:
    """Scores that fall smoothly with the keep ratios and carry noise; merges are the same in all trials."""

    def __init__(self, context: StudyContext, merges: ExampleMerges | None) -> None:
        self.layers, self.merges = context.evaluator.supernet.layers, merges
        self.tokens = dict(zip(context.space.layers, context.space.layer_tokens, strict=True))
        self.weights = np.random.default_rng(1).uniform(0.2, 1.8, len(self.layers))

    def truth(self, schedule: MergeSchedule) -> float:
        """Top-1 without noise: each layer's loss, and a little for neighbours that both merge."""
        kept = [kept_share(self.tokens[layer], schedule.keep_ratio(layer)) for layer in self.layers]
        lost = 1 - np.array(kept)
        return 80 - 20 * float((self.weights * lost**2).mean() + 0.5 * (lost[1:] * lost[:-1]).mean())

    def __call__(self, task: Task, _: Any) -> Answer:
        top1 = self.truth(task.schedule) + NOISE * np.random.default_rng(task.seed).normal()
        score = Score(top1=top1, top1_se=2.0, loss=5 - top1 / 20, images=384, predictions=np.zeros(384, int))
        result = TrialResult(weights={}, score=score, seconds=60.0, scoring_seconds=20.0, merges=self.merges)
        return Answer(trial=task.trial, result=result)


class CountedWeights(SharedWeights):
    """Versions of weights that do not move; moving and saving is charged."""

    def update(self, trained: Any, start: Any, *, age: int) -> None:
        self.state = replace(self.state, version=self.version + 1)

    def save(self) -> None:
        pass


class SimulatedDriver(Driver):
    """Driver on virtual workers.

    Args:
        context: Study.
        folder: Run directory.
        workers: Virtual workers.
        storage: Storage of the study.
        charges: Seconds of work that is not done; empty: all work but moving and saving weights is done.
    """

    workers: VirtualWorkers

    def __init__(
        self,
        context: StudyContext,
        folder: Path,
        workers: VirtualWorkers,
        storage: BaseStorage,
        charges: dict[str, float],
    ) -> None:
        hooks = None if charges else DashboardHooks(context, folder)
        super().__init__(context, folder, Callbacks(), storage=storage, workers=workers, hooks=hooks)
        own = self.shared
        self.shared = CountedWeights(own.supernet, folder, own.state, share=0.25, staleness_power=0.5)
        self.charges = charges
        self.busy = {"proposal": 0.0, "answer": 0.0}
        """Processor seconds of sending proposals and of receiving answers."""
        self.done = {"proposal": 0, "answer": 0}
        """Number of each."""
        self.ended: dict[int, float] = {}
        """Virtual time at which each trial ended."""
        self.processor: list[float] = []
        """Processor time at the end of each trial."""
        self.memory: dict[int, float] = {}
        """Peak MiB at each mark."""

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        before = time.process_time()
        yield
        self.busy[part] += time.process_time() - before

    def _next_trial(self, *known: Any) -> Any:
        with self._timed("proposal"):
            return super()._next_trial(*known)

    def _begin(self, *asked: Any) -> None:
        with self._timed("proposal"):
            super()._begin(*asked)
        self.done["proposal"] += 1
        self.workers.spend(self.charges.get("proposal", 0.0))

    def _finish(self, *ended: Any) -> None:
        with self._timed("answer"):
            super()._finish(*ended)
        self.done["answer"] += 1
        self.workers.spend(sum(self.charges.get(part, 0.0) for part in ("answer", "weights", "ray")))
        self.ended[ended[0].trial.number] = self.workers.now
        self.processor.append(time.process_time())
        if len(self.ended) in MARKS:
            self.memory[len(self.ended)] = peak_mib()

    def seconds_at(self, trials: int) -> float:
        """Median processor seconds of the last trials before a number of them."""
        return float(np.median(np.diff(self.processor[max(0, trials - WINDOW - 1) : trials])))


def simulate(
    context: StudyContext,
    workers: int,
    *,
    merges: ExampleMerges | None = None,
    charges: dict[str, float] | None = None,
    durations: Durations | None = None,
) -> dict[str, Any]:
    """One search on virtual workers.

    Args:
        context: Study.
        workers: Number of workers.
        merges: Merges that the driver draws of every trial.
        charges: Seconds of a proposal, an answer, weights and Ray that are charged; None: all is done, with SQLite.
        durations: Durations and failures of trials.
    """
    scores = MadeUpScores(context, merges)
    cluster = VirtualWorkers(workers, durations or Durations(), scores, seed=context.settings.seed)
    with tempfile.TemporaryDirectory() as name:
        folder, context = Path(name), with_settings(context, out=name)
        storage: BaseStorage = InMemoryStorage()
        if charges is None:
            storage = RetryingStorage(open_storage(context.settings, folder), context.settings, Callbacks())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        driver = SimulatedDriver(context, folder, cluster, storage, charges or {})
        cluster.resume()
        driver.search(until=None)
        trials = driver.study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.FAIL)]
    ages = [trial.user_attrs["age"] for trial in ended if "age" in trial.user_attrs]
    return {
        "workers": workers,
        "trials": len(ended),
        "failed": sum(trial.state == TrialState.FAIL for trial in ended),
        "deaths": cluster.deaths,
        "virtual_seconds": cluster.now,
        "trials_an_hour": 3600 * len(ended) / cluster.now,
        "driver_busy": cluster.driver_seconds / cluster.now,
        "workers_busy": cluster.worker_seconds / cluster.now / workers,
        "driver_each": cluster.driver_seconds / len(ended),
        "each": {part: seconds / driver.done[part] for part, seconds in driver.busy.items()},
        "age": mean(ages),
        "max_age": max(ages),
        "growth": {n: {"seconds": driver.seconds_at(n), "peak_mib": mib} for n, mib in driver.memory.items()},
        "curve": value_curve(context, scores, driver, trials),
    }


def value_curve(
    context: StudyContext, scores: MadeUpScores, driver: SimulatedDriver, trials: list[FrozenTrial]
) -> list[dict[str, float]]:
    """Hypervolume of the true scores after each mark, in the order in which trials ended, and the hours until then."""
    budget, space = context.budgets[0], context.space
    scored = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    scored.sort(key=lambda trial: driver.ended[trial.number])
    indices = np.array([[trial.params[name] for name in space.names] for trial in scored])
    costs, inside = budget.costs(indices), within_budgets(context.budgets, indices)
    truth = np.array([scores.truth(space.schedule(each)) for each in indices])
    low, limit = budget.reachable()[0], budget.limit / budget.per_unit
    ratios = {choice.keep_ratio for options in space.choices for choice in options if choice.keep_ratio > 0}
    uniform = [space.nearest(ratio) for ratio in ratios]
    corner = min(
        scores.truth(space.schedule(each)) for each in uniform if within_budgets(context.budgets, each[None])[0]
    )
    points = []
    for n in sorted({*(mark for mark in MARKS if mark < len(scored)), len(scored)}):
        some = [(t, c) for t, c, i in zip(truth[:n], costs[:n], inside[:n], strict=True) if i]
        value = hypervolume(some, (corner, limit), (True, False)) / (limit - low)
        points.append({"trials": n, "value": value, "hours": driver.ended[scored[n - 1].number] / 3600})
    return points
