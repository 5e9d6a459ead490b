"""The driver of a study: Optuna proposes schedules, the shared weights answer.

It is the only writer: it asks Optuna, hands trials to the evaluator, moves the shared weights, saves them, and tells
the outcome. What a trial does depends on the settings and on what was told before, never on how often the run was
interrupted in between.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import Tensor

from ltmsearch.checkpoint import CheckpointState, save_checkpoint
from ltmsearch.dashboard.pages import Pages
from ltmsearch.errors import TrialDiverged
from ltmsearch.history import (
    MEASURED,
    RESCORED,
    as_told,
    tell_constraints,
    told_again,
    trained,
    trial_record,
    trial_records,
)
from ltmsearch.observer import Observer
from ltmsearch.opening import FirstTrial, drawn_within_budget, first_trials, queued_params, seed_at
from ltmsearch.prepare import Workbench, warm_up_plan
from ltmsearch.records import TrialRecord, select_front
from ltmsearch.report import prediction_lines
from ltmsearch.rescoring import choose_candidates, same_nets
from ltmsearch.samplers import make_sampler
from ltmsearch.standing import TrialLog, at_a_loss, standing
from ltmsearch.storage import open_storage, open_study, under_limits
from ltmsearch.times import SCORING, TIMING, TRAINING, Clock
from ltmsearch.trial import load_parameters, moved, parameters, suggest

_log = logging.getLogger(__name__)


class Driver:
    """One study in one run directory: the shared weights, the Optuna study, and what is written of both."""

    def __init__(
        self,
        bench: Workbench,
        folder: Path,
        observer: Observer,
        clock: Clock | None = None,
        storage: BaseStorage | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        self.bench = bench
        self.settings = bench.settings
        self.budgets = bench.budgets
        self.folder = folder
        self.observer = observer
        self.clock = clock or Clock()
        self.confirm = confirm  # raises once another driver took the study over; before what two must not write
        storage = storage or open_storage(self.settings, folder)
        self.study = open_study(storage, self.settings.study, cost=self.settings.axis.name)
        self.weights: dict[str, Tensor] = {}
        self._asked_at = 0.0
        self.state = CheckpointState(
            class_names=list(bench.evaluator.data.class_names),
            version=0,
            space=bench.space.digest(),
            trial=None,
            outcome=None,
        )

    # -- shared weights ------------------------------------------------------------------------------------------

    def warm_up(self, loaded: tuple[dict[str, Tensor], CheckpointState] | None) -> None:
        """Train the shared weights, or take those that the study has already.

        Args:
            loaded: What `load_checkpoint` found.
        """
        supernet = self.bench.evaluator.supernet
        if loaded is not None:
            weights, self.state = loaded
            supernet.load_state_dict(weights)
            self.weights = parameters(supernet)
            self.observer.note(f"continuing with shared weights of version {self.state.version}")
            return
        self.observer.phase("warming up", warm_up_plan(self.settings).steps)
        for step, loss in enumerate(self.bench.warm_up()):
            self.observer.advance(step + 1, f"loss {loss:.2f}")
            _log.debug("warm-up step %d: loss %.4f", step + 1, loss)
        self.weights = parameters(supernet)
        self._save()

    def _save(self) -> None:
        self.confirm()
        supernet = self.bench.evaluator.supernet
        load_parameters(supernet, self.weights)
        save_checkpoint(self.folder, supernet.state_dict(), self.state)

    def keep_budgets(self) -> None:
        """Tell the trials of an earlier run again, if it had other budgets."""
        if self.state.outcome is not None:
            for trial in self._trials():
                if trial.state == TrialState.RUNNING and trial.number == self.state.trial:
                    self._tell(Trial(self.study, trial._trial_id), self.state.outcome)
        limits = {b.constraint: [b.least / b.per_unit, b.limit / b.per_unit] for b in self.budgets}
        before, done = self.study, trained(self._trials())
        self.study = under_limits(before, limits, lambda trial: told_again(trial, self.bench), keep=(MEASURED,))
        self.pages.renew(self.records())
        if self.study is not before:
            known = f"{done} trials are known from other budgets"
            more = "" if done < self.settings.trials else f"; --trials {done + done // 2} would search under these too"
            self.observer.note(known + more)

    # -- trials --------------------------------------------------------------------------------------------------

    def search(self, *, until: float | None) -> None:
        """Run trials until their number is reached or the time is up.

        Args:
            until: No new trial begins after this `time.monotonic()`.
        """
        first = self._first_trials()
        self.observer.phase("searching", self.settings.trials)
        while (done := trained(trials := self._trials())) < self.settings.trials:
            self.observer.advance(done, standing(trials))
            if until is not None and time.monotonic() > until:
                self.observer.note(f"time is up after {done} of {self.settings.trials} trials")
                return
            if all(trial.state.is_finished() for trial in trials):
                # One at a time: the storage reads every unfinished trial again whenever it is asked for trials.
                if first:
                    self._enqueue(first.popleft())
                elif at_a_loss(trials):
                    self._enqueue(drawn_within_budget(self.bench, len(trials)))
            self._one_trial(*self._next_trial(trials))
        self.observer.advance(self.settings.trials, standing(trials))

    def _next_trial(self, trials: list[FrozenTrial]) -> tuple[Trial, Callable[[int], BaseSampler]]:
        """The trial that an earlier run left unfinished, else a new one; and the sampler of its i-th parameter.

        Samplers are made afresh for every trial from the number of trials before it, so that an interrupted study
        makes the same proposals as one that was not.
        """
        self._asked_at = time.perf_counter()
        before = sum(trial.state.is_finished() for trial in trials)

        def sampler(place: int) -> BaseSampler:
            return make_sampler(self.settings.sampler, seed=seed_at(self.settings.seed, before, place))

        self.study.sampler = sampler(0)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        trial = Trial(self.study, running[0]._trial_id) if running else self.study.ask()
        return trial, lambda place: sampler(1 + place)

    def _one_trial(self, trial: Trial, sampler: Callable[[int], BaseSampler]) -> None:
        """Suggest, evaluate, move the shared weights, tell."""
        if self.state.trial == trial.number and self.state.outcome is not None:
            self._tell(trial, self.state.outcome)  # it was evaluated before a crash; only the telling is missing
            return
        indices, ib_weight = suggest(trial, self.bench.space, sampler)
        schedule = self.bench.space.schedule(indices)
        log = TrialLog(trial, schedule, sampling=time.perf_counter() - self._asked_at)
        trial.set_user_attr("ib_weight", ib_weight)
        self.pages.describe(trial, schedule)
        cost, told = float(self.budgets[0].costs(indices[None])[0]), tell_constraints(trial, self.budgets, indices)
        reference = not indices.any()  # the plain net is scored as a reference even if it is over the budget
        if max(told) > 0 and not reference:
            self._end(trial, state=TrialState.PRUNED)
            log.rejected()
            return
        try:
            with self.clock.part(TRAINING):
                result = self.bench.evaluator.evaluate(
                    self.weights,
                    schedule,
                    ib_weight=ib_weight,
                    seed=seed_at(self.settings.seed, trial.number + 1),
                    steps=0 if reference else None,
                )
                self.clock.move(result.scoring_seconds, SCORING)
        except TrialDiverged as error:
            trial.set_user_attr("failure", str(error))
            self._end(trial, state=TrialState.FAIL)
            log.failed(error)
            self.observer.note(f"trial {trial.number} failed alone: {error}")
            return
        outcome = {
            "top1": result.score.top1, "top1_se": result.score.top1_se, "loss": result.score.loss,
            "cost": cost, "seconds": round(result.seconds, 3), "supernet_version": self.state.version,
        }  # fmt: skip
        if (terms := result.score.ib) is not None:
            outcome |= {"mi_x": terms.mi_x, "mi_y": terms.mi_y, "ibb": terms.ibb}
        if reference and result.score.is_chance(len(self.state.class_names)):
            self.observer.note(
                f"the plain net has learned next to nothing ({result.score.top1:.1f} %): scores cannot tell schedules "
                "apart; more --base-steps, --pretrained or --checkpoint FILE would help"
            )
        self.confirm()
        self.pages.attach(trial, trial_record(as_told(trial, outcome), self.bench), result.merges)
        version = self.state.version
        if result.weights:
            self.weights = moved(self.weights, result.weights, self.settings.update_share)
            version += 1
        self.state = CheckpointState(
            class_names=self.state.class_names, version=version, space=self.state.space,
            trial=trial.number, outcome=outcome,
        )  # fmt: skip
        start = time.perf_counter()
        self._save()
        log.scored(outcome, ib_weight=ib_weight, version=version, saving=time.perf_counter() - start)
        self._tell(trial, outcome)
        self.clock.tick()

    def _tell(self, trial: Trial, outcome: dict[str, Any]) -> None:
        for name, value in outcome.items():
            if name not in ("top1", "cost"):
                trial.set_user_attr(name, value)
        self._end(trial, values=[outcome["top1"], outcome["cost"]])

    def _end(self, trial: Trial, *, values: list[float] | None = None, state: TrialState | None = None) -> None:
        self.confirm()
        told = self.study.tell(trial, values, state)
        self.pages.note(told, trial_record(told, self.bench))

    def _first_trials(self) -> deque[FirstTrial]:
        """The first trials, but those that the study has already."""
        queued = [trial.system_attrs.get("fixed_params", trial.params) for trial in self._trials()]
        held = {tuple(sorted(params.items())) for params in queued}
        first = first_trials(self.bench, np.random.default_rng(seed_at(self.settings.seed)))
        return deque(t for t in first if tuple(sorted(queued_params(self.bench, t).items())) not in held)

    def _enqueue(self, trial: FirstTrial) -> None:
        params = queued_params(self.bench, trial)
        self.study.enqueue_trial(params, user_attrs={"kind": trial.kind, "label": trial.label})

    # -- the end -------------------------------------------------------------------------------------------------

    def rescore(self) -> None:
        """Score the candidates for the front again, all with the final shared weights and on more images."""
        known = self.study.user_attrs.get(RESCORED, {})
        if known.get("version") == self.state.version and known.get("trials") == trained(self._trials()):
            return
        load_parameters(self.bench.evaluator.supernet, self.weights)
        alike = same_nets(self.records(), self._proxy_net)
        chosen, cost = [group[0] for group in alike], self.settings.axis.name
        candidates = choose_candidates(chosen, self.settings.rescore_candidates, cost)
        self.observer.phase("scoring again", len(candidates))
        scores = {}
        for done, record in enumerate(candidates):
            self.observer.advance(done, record.name)
            schedule = record.schedule(self.settings.operator)
            score = self.bench.evaluator.score(schedule, images=self.settings.rescore_images)
            _log.info(
                "%s scored again: top-1 %.2f ± %.2f %%, loss %.4f", record.name, score.top1, score.top1_se, score.loss
            )
            for same in next(group for group in alike if group[0] is record):
                scores[str(same.trial)] = [score.top1, score.top1_se, score.loss]
        self.observer.advance(len(candidates))
        self.confirm()
        self.study.set_user_attr(
            RESCORED, {"version": self.state.version, "trials": trained(self._trials()), "scores": scores}
        )

    def measure(self) -> None:
        """Time the front and the plain net end to end, where there is a latency budget and this is its device."""
        latency = self.bench.latency
        if latency is None or not latency.here:
            return
        front = select_front(self.records(), self.settings.axis.name)
        plain = [r for r in self.records() if r.label == "plain"]
        known = self.study.user_attrs.get(MEASURED, {})
        missing = [r for r in front + plain if str(r.trial) not in known]
        if missing:
            schedules = {r.trial: r.schedule(self.settings.operator) for r in missing}
            with self.clock.part(TIMING):
                readings = latency.measure(list(schedules.values()), self.observer)
            self.confirm()
            seen = {str(t): [readings[s].ms, readings[s].ms * readings[s].error] for t, s in schedules.items()}
            self.study.set_user_attr(MEASURED, known | seen)
        for line in prediction_lines(select_front(self.records(), self.settings.axis.name), self.settings.axis):
            self.observer.note(line)

    def _proxy_net(self, record: TrialRecord) -> Hashable:
        """What tells the trial's net from others at the size of proxy training."""
        return self.bench.proxy_costs.net(record.schedule(self.settings.operator))

    @property
    def pages(self) -> Pages:
        """What the dashboard shows of the study."""
        return Pages(self.study, self.bench, self.folder)

    def records(self) -> list[TrialRecord]:
        """Every finished trial as plain data."""
        return trial_records(self.study, self.bench)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)
