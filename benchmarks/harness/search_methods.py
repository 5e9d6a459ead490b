"""Methods of search that `search_quality.py` compares; each trains the same number of trials."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.samplers import TPESampler
from torch import Tensor, nn

from harness.search_study import SavedNets, uniform_line
from harness.timing import Seconds
from ltmsearch.callbacks import Callbacks
from ltmsearch.costs import within_budgets
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.driver import Driver
from ltmsearch.search.records import select_front
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.shared_weights import SharedWeights
from ltmsearch.search.teacher import Teacher
from ltmsearch.search.trial import Evaluator, TrialResult, parameters

SAMPLERS = ("tpe", "gp", "nsga2", "random")
METHODS = ("default", "independent", "script", "uniform", "tpe", "random", "nsga2", "no start", "gp")


@dataclass
class TrialLog:
    """Trained trials of one method."""

    context: StudyContext
    base: nn.Module
    """Net that trials learn from."""
    start: Seconds = field(default_factory=Seconds.now)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, schedule: MergeSchedule, result: TrialResult) -> None:
        """Add a trial and the seconds since the search began."""
        indices, taken = self.context.space.indices(schedule), Seconds.now() - self.start
        self.rows.append(
            {
                "indices": indices.tolist(),
                "gflops": self.context.costs_at(schedule).gflops(schedule),
                "kl": result.score.kl,
                "feasible": bool(within_budgets(self.context.budgets, indices[None])[0]),
                "wall": taken.wall,
                "processor": taken.processor,
            }
        )


@dataclass(frozen=True, kw_only=True)
class LoggedEvaluator(Evaluator):
    """Evaluator that logs every trained trial."""

    log: TrialLog

    def evaluate(self, weights: Any, schedule: MergeSchedule, *, seed: int, **options: Any) -> TrialResult:
        result = super().evaluate(weights, schedule, seed=seed, **options)
        if options.get("steps") != 0:  # the plain net is not trained
            self.log.add(schedule, result)
        return result


class UnsavedWeights(SharedWeights):
    """Shared weights without checkpoints, which take the same time in every trial."""

    def save(self) -> None:
        """Keep them in memory alone."""


class UnsavedDriver(Driver):
    """Driver without checkpoints; its shared weights begin with those of the supernet."""

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        made, own = self.settings, self.shared
        self.shared = UnsavedWeights(
            own.supernet, own.folder, own.state, share=made.update_share, staleness_power=made.staleness_power
        )


class NoFirstTrials(UnsavedDriver):
    """Driver that tries nothing before the sampler's own proposals."""

    def _first_trials(self) -> Any:
        return type(super()._first_trials())()


def logged(context: StudyContext, log: TrialLog, **settings: Any) -> LoggedEvaluator:
    """The context's evaluator, with a log, the base net's predictions, and other settings."""
    own, teacher = context.evaluator, Teacher()
    made = context.settings.model_copy(update=settings)
    teacher.learn(log.base, own.data, own.scoring, made)
    parts = {name: getattr(own, name) for name in ("supernet", "data", "training", "scoring", "sides")}
    return LoggedEvaluator(**parts, settings=made, teacher=teacher, log=log)


def run_driver(
    driver_class: type[UnsavedDriver], context: StudyContext, log: TrialLog, **settings: Any
) -> dict[str, Any]:
    """Search with the real driver from the supernet's present weights; its proposals and its front scored again."""
    with tempfile.TemporaryDirectory() as folder:
        evaluator = logged(context, log, out=folder, **settings)
        made = evaluator.settings
        driver = driver_class(replace(context, evaluator=evaluator, settings=made), Path(folder), Callbacks())
        driver.search(until=None)
        proposals = {"proposals": len(driver.study.get_trials(deepcopy=False))}
        if made.update_share == 0:
            return proposals  # no shared weights to score the front with
        driver.rescore()
        front = [context.space.indices(r.schedule).tolist() for r in select_front(driver.records(), made.axis)]
        return proposals | {"rescored_front": front}


def moved(weights: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights moved by a share of the way to those trained from them, if any were."""
    return {name: torch.lerp(value, trained.get(name, value), share) for name, value in weights.items()}


def run_script(context: StudyContext, log: TrialLog) -> dict[str, Any]:
    """Search as Optuna's documentation has it: every proposal is trained, its cost reported as a constraint."""
    made, evaluator = context.settings, logged(context, log)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=TPESampler(seed=made.seed))
    weights = parameters(evaluator.supernet)
    for number in range(made.trials):
        trial = study.ask()
        named = zip(context.space.names, context.space.options, strict=True)
        indices = np.array([trial.suggest_int(name, 0, number - 1) for name, number in named])
        result = evaluator.evaluate(weights, context.space.schedule(indices), seed=number)
        weights = moved(weights, result.weights, made.update_share)
        trial.set_constraint("over budget", float(context.budgets[0].excess(indices[None])[0]))
        study.tell(trial, [result.score.kl or 0.0, float(context.budgets[0].costs(indices[None])[0])])
    return {"proposals": made.trials}


def run_uniform(context: StudyContext, log: TrialLog) -> dict[str, Any]:
    """Uniform schedules, trial by trial from the shared weights."""
    evaluator = logged(context, log)
    weights = parameters(evaluator.supernet)
    for number, indices in enumerate(uniform_line(context)):
        result = evaluator.evaluate(weights, context.space.schedule(indices), seed=number)
        weights = moved(weights, result.weights, context.settings.update_share)
    return {"proposals": len(log.rows)}


def run_method(method: str, context: StudyContext, nets: SavedNets, independent_steps: int) -> dict[str, Any]:
    """Run one method on one seed: its trained trials with the seconds since the base net."""
    independent = method == "independent"
    base = nets.base_net()
    warmed = nets.load("base" if independent else "warm")
    log = TrialLog(context, base)
    if method == "script":
        found = run_script(context, log)
    elif method == "uniform":
        found = run_uniform(context, log)
    elif independent:
        alone = {"update_share": 0.0, "proxy_steps": independent_steps}
        found = run_driver(NoFirstTrials, context, log, sampler="tpe", **alone)
    else:
        driver = NoFirstTrials if method == "no start" else UnsavedDriver
        sampler = "auto" if method == "default" else method
        found = run_driver(driver, context, log, sampler=sampler if sampler in ("auto", *SAMPLERS) else "tpe")
    # The base counts for no method, since all start from it.
    warm_up = [0.0, 0.0] if independent else [warmed.wall, warmed.processor]
    print(f"seed {context.settings.seed}, {method}: {len(log.rows)} trials", flush=True)
    return {"rows": log.rows, "warm_up": warm_up, "load": os.getloadavg()[0], **found}
