"""The driver of a study: it asks Optuna for schedules and has workers evaluate them with the shared weights.

The driver is the only writer: it asks Optuna, sends trials to workers, updates and saves the shared weights, and stores
the outcome. With one worker, a trial depends only on the settings and on the trials before it, never on how often the
run was interrupted; with several workers it also depends on the order in which they finish.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from ltmsearch.callbacks import Callbacks
from ltmsearch.search.announcement import announce
from ltmsearch.search.answers import ANSWERS
from ltmsearch.search.baseline_curves import score_curves
from ltmsearch.search.budgets import check_measured
from ltmsearch.search.checkpoint import Checkpoint, CheckpointState
from ltmsearch.search.curve_points import BASELINES, write_curves
from ltmsearch.search.final_scores import final_scores, time_front
from ltmsearch.search.hooks import StudyHooks
from ltmsearch.search.initial_trials import (
    INITIAL,
    InitialTrial,
    derive_seed,
    draw_within_budget,
    enqueue_params,
    initial_trials,
)
from ltmsearch.search.optuna_records import (
    COSTS,
    MEASURED,
    RESCORED,
    WEIGHT,
    completed_trial,
    count_trained,
    objectives,
    outside_space,
    set_constraints,
    trial_costs,
    trial_record,
    trial_records,
    with_current_budgets,
)
from ltmsearch.search.proposals import Proposals
from ltmsearch.search.records import TrialRecord
from ltmsearch.search.running import RunningTrial
from ltmsearch.search.samplers import make_sampler
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.shared_weights import SharedWeights, select_checkpoint, unstored_trial
from ltmsearch.search.storage import open_storage, open_study, under_limits
from ltmsearch.search.storage.optuna_private import trial_id
from ltmsearch.search.tally import Tally, log_trial, sampler_is_stuck
from ltmsearch.search.timing import ELSEWHERE, PROBE, SCORING, TIMING, TRAINING, Clock
from ltmsearch.search.trial import load_parameters, parameters, suggest
from ltmsearch.search.warmup import WarmUpRun
from ltmsearch.search.workers import Answer, LocalWorker, Task, Workers

_log = logging.getLogger(__name__)


class Driver:
    """Runs one study in one run directory.

    Before every write it calls `confirm`, which raises `LeaseLost` if another driver has taken the study over.
    """

    def __init__(
        self,
        context: StudyContext,
        folder: Path,
        callbacks: Callbacks,
        clock: Clock | None = None,
        storage: BaseStorage | None = None,
        workers: Workers | None = None,
        confirm: Callable[[], None] = lambda: None,
        hooks: StudyHooks | None = None,
    ) -> None:
        self.context = context
        self.settings = context.settings
        self.budgets = context.budgets
        self.folder = folder
        self.callbacks = callbacks
        self.clock = clock or Clock()
        self.workers = workers or LocalWorker(context.evaluator)
        self.confirm = confirm
        self.hooks = hooks or StudyHooks()
        storage = storage or open_storage(self.settings, folder)
        self.study = open_study(storage, self.settings.study, self.settings.axis)
        self.proposals = Proposals(context, callbacks, self.clock, confirm)
        self.running: dict[int, RunningTrial] = {}
        self._asked_at = 0.0
        self.shared = SharedWeights(
            context.evaluator.supernet,
            folder,
            CheckpointState(
                class_names=list(context.evaluator.data.class_names),
                version=0,
                scored=0,
                space=context.space.digest(),
                trial=None,
                outcome=None,
            ),
            share=self.settings.update_share,
            staleness_power=self.settings.staleness_power,
            confirm=confirm,
        )

    def warm_up(self, found: Sequence[Checkpoint]) -> None:
        """Train the shared weights, or load the checkpoint that matches the study."""
        if found:
            checkpoint, line = select_checkpoint(found, self._trials())
            self.shared.resume(checkpoint)
            if self.settings.axis.measure == "kl":
                self.context.evaluator.teacher.load(self.folder, self.context.evaluator.data, self.settings)
            if line is not None:
                self.callbacks.note(line)
            self.callbacks.note(f"continuing with shared weights of version {self.shared.version}")
            self._announce(None)
            return
        warming = WarmUpRun(self.context, self.folder)
        if begun := warming.resume():
            self.callbacks.note(f"continuing the warm-up after step {begun} of {warming.plan.steps}")
        self._announce(begun, probe=warming.needs_probe)
        if warming.needs_probe:
            with self.clock.part(PROBE):
                warming.fit_classifiers(self.callbacks, self.confirm)
        warming.run(self.callbacks, self.confirm)
        self.shared.weights = parameters(self.context.evaluator.supernet)
        self.shared.save()
        warming.remove()

    def _announce(self, first_step: int | None, *, probe: bool = False) -> None:
        """Tell the expected duration of this call, unless nothing is left to train or to score."""
        trials = max(0, self.settings.trials - count_trained(self._trials()))
        if first_step is not None or trials or not self._is_rescored():
            announce(self.context, self.clock, self.callbacks, first_step=first_step, trials=trials, probe=probe)

    def settle(self) -> None:
        """Store the outcome of a trial that a crash left running, and apply changed budgets to earlier trials."""
        pending = unstored_trial(self.shared.state, self._trials())
        if pending is not None and self.shared.state.outcome is not None:
            self._store(Trial(self.study, trial_id(pending)), self.shared.state.outcome)
        limits = {b.constraint: [b.minimum / b.per_unit, b.limit / b.per_unit] for b in self.budgets}
        before, done = self.study, count_trained(self._trials())
        self.study = under_limits(
            before, limits, lambda trial: with_current_budgets(trial, self.context), keep=(MEASURED,)
        )
        self.hooks.study_updated(self.study, self.records())
        if self.study is not before:
            known = f"{done} trials were made under other budgets"
            more = "" if done < self.settings.trials else f"; use --trials {done + done // 2} to search under these too"
            self.callbacks.note(known + more)

    def wants_trials(self) -> bool:
        return count_trained(self._trials()) < self.settings.trials

    def search(self, *, until: float | None) -> None:
        """Run trials until their number or `until`, in `time.monotonic()`, is reached.

        Raises:
            WorkersLost: If no worker is left.
        """
        first = self._first_trials()
        self.callbacks.phase("searching", self.settings.trials)
        tally = Tally()
        while True:
            tally.update(trials := self._trials())
            done = tally.trained
            self.callbacks.advance(done, tally.summary(running=len(self.running) if self.workers.remote else 0))
            begun = done + sum(running.counts for running in self.running.values())
            time_is_up = until is not None and time.monotonic() > until
            if begun < self.settings.trials and not time_is_up and self.workers.free():
                self._begin(*self._next_trial(trials, tally.unfinished, first))
            elif (begun < self.settings.trials and not time_is_up) or self.running:
                for answer in self._answers():
                    self._finish(self.running.pop(answer.trial), answer)
            else:
                break
        if done < self.settings.trials:
            self.callbacks.note(f"time is up after {done} of {self.settings.trials} trials")

    def _next_trial(
        self, trials: list[FrozenTrial], unfinished: list[FrozenTrial], first: deque[InitialTrial]
    ) -> tuple[Trial, Callable[[int], BaseSampler]]:
        """The trial that an earlier run left unfinished, else a new one; and the sampler of its i-th parameter.

        Each trial gets new samplers, seeded by its number, so that an interrupted study makes the same proposals as an
        uninterrupted one.
        """
        self._asked_at = time.perf_counter()
        left = [t for t in unfinished if t.state == TrialState.RUNNING and t.number not in self.running]
        waiting = [t for t in unfinished if t.state == TrialState.WAITING]
        if not left and not waiting:
            if first:
                self._enqueue(first.popleft())
            elif sampler_is_stuck(trials):
                self._enqueue(draw_within_budget(self.context, len(trials)))
        number = left[0].number if left else waiting[0].number if waiting else len(trials)

        def sampler(place: int) -> BaseSampler:
            seed = derive_seed(self.settings.seed, number, place)
            if self.context.screens:
                shared = self.shared.version, self.shared.weights
                return self.proposals.sampler(self.study, self.workers, *shared, seed=seed)
            return make_sampler(self.settings.sampler, seed=seed)

        self.study.sampler = sampler(0)
        trial = Trial(self.study, trial_id(left[0])) if left else self.study.ask()
        return trial, lambda place: sampler(1 + place)

    def _begin(self, trial: Trial, sampler: Callable[[int], BaseSampler]) -> None:
        """Suggest a schedule; reject it if it is over budget, else send it to a worker."""
        indices, ib_weight = suggest(trial, self.context.space, sampler)
        if foreign := outside_space(trial, self.context.space):
            self.confirm()
            self.study.tell(trial, state=TrialState.FAIL)
            self.callbacks.note(f"trial {trial.number}, which another program has queued, is left out: {foreign}")
            return
        schedule = self.context.space.schedule(indices)
        log = partial(log_trial, trial, schedule, sampling=time.perf_counter() - self._asked_at)
        trial.set_user_attr(WEIGHT, ib_weight)
        if self.context.measured is not None:
            self._measure_from_now()
            trial.set_user_attr(COSTS, self.context.measured.record(indices))
        self.hooks.trial_started(trial, schedule)
        cost, values = float(self.budgets[0].costs(indices[None])[0]), set_constraints(trial, self.context)
        reference = not indices.any()  # the plain network is scored for comparison even if it is over budget
        if max(values) > 0 and not reference:
            self._end(trial, state=TrialState.PRUNED)
            log("rejected, " + ", ".join(f"{name}: {by:.4f}" for name, by in trial.constraints.items() if by > 0))
            return
        seed, steps = derive_seed(self.settings.seed, trial.number + 1), 0 if reference else None
        version, weights = self.shared.check_out()

        task = Task(
            trial=trial.number,
            schedule=schedule,
            ib_weight=ib_weight,
            seed=seed,
            steps=steps,
            limit=self.context.trial_limit(),
        )
        self.workers.start(task, version, weights)
        self.running[trial.number] = RunningTrial(
            trial=trial,
            task=task,
            cost=cost,
            version=version,
            counts=trial.user_attrs.get("label") != "plain",
            log=log,
        )

    def _measure_from_now(self) -> None:
        """Measure costs that depend on the image with the shared weights as they are now."""
        if self.context.measured is not None:
            self.context.measured.use(self.shared.version, self.shared.weights)

    def _answers(self) -> list[Answer]:
        with self.clock.part(ELSEWHERE if self.workers.remote else TRAINING):
            answers = self.workers.answers()
            for answer in answers:
                if answer.result is not None and not self.workers.remote:
                    self.clock.move(answer.result.scoring_seconds, SCORING)
        return answers

    def _finish(self, running: RunningTrial, answer: Answer) -> None:
        """Update the shared weights with a trial's result, and store its outcome."""
        trial, result, start = running.trial, answer.result, self.shared.check_in(running.version)
        if answer.worker:
            trial.set_user_attr("worker", answer.worker)  # one machine of many may be faulty
        if result is None:
            trial.set_user_attr("failure", answer.failure)
            self._end(trial, state=TrialState.FAIL)
            running.log(f"failed, {answer.failure}")
            self.callbacks.note(f"trial {trial.number} failed: {answer.failure}")
            return
        age = self.shared.version - running.version
        outcome = {
            "top1": result.score.top1,
            "top1_se": result.score.top1_se,
            "loss": result.score.loss,
            "kl": result.score.kl,
            "cost": running.cost,
            "tokens_sent": trial_costs(trial, self.context).get("tokens_sent"),
            "seconds": round(result.seconds, 3),
            "supernet_version": running.version,
            "age": age,
        }
        if (terms := result.score.ib) is not None:
            outcome |= {"mi_x": terms.mi_x, "mi_y": terms.mi_y, "ibb": terms.ibb}
        if result.batch_size is not None:
            outcome["batch_size"] = result.batch_size
            self.callbacks.note(f"trial {trial.number} trained with batch size {result.batch_size}: memory was full")
        if not running.counts and result.score.is_at_chance(len(self.shared.state.class_names)):
            self.callbacks.note(
                f"the plain network is near chance ({result.score.top1:.1f} %), so scores say nothing about schedules; "
                "use more --base-steps, --pretrained or --checkpoint FILE"
            )
        self.confirm()
        self.hooks.trial_scored(
            trial,
            trial_record(completed_trial(trial, outcome, self.settings.axis.measure), self.context),
            result.merges,
        )
        self.shared.update(result.weights, start, age=age)
        saving = time.perf_counter()
        self.shared.save_outcome(trial.number, outcome)
        running.log(
            f"cost {running.cost:.4f}, top-1 {result.score.top1:.2f} ± {result.score.top1_se:.2f} %, "
            f"loss {result.score.loss:.4f}, KL {result.score.kl or 0.0:.4f}, "
            f"IB weight {running.task.ib_weight:.3g}, {result.seconds:.2f} s, "
            f"checkpoint {1e3 * (time.perf_counter() - saving):.1f} ms, weights version {running.version} to "
            f"{self.shared.version}"
        )
        self._store(trial, outcome)
        self.clock.tick()

    def _store(self, trial: Trial, outcome: dict[str, Any]) -> None:
        for name, value in outcome.items():
            if name not in ("cost", "tokens_sent") and value is not None:
                trial.set_user_attr(name, value)
        self._end(trial, values=objectives(outcome, self.settings.axis.measure))

    def _end(self, trial: Trial, *, values: list[float] | None = None, state: TrialState | None = None) -> None:
        self.confirm()
        stored = self.study.tell(trial, values, state)
        self.hooks.trial_finished(self.study, stored, trial_record(stored, self.context))

    def _first_trials(self) -> deque[InitialTrial]:
        """The initial trials that the study does not have yet."""
        queued = [trial.system_attrs.get("fixed_params", trial.params) for trial in self._trials()]
        held = {tuple(sorted(params.items())) for params in queued}
        first = self._initial_trials()
        return deque(t for t in first if tuple(sorted(enqueue_params(self.context, t).items())) not in held)

    def _initial_trials(self) -> list[InitialTrial]:
        """The same whenever the study continues: where they depend on weights by their costs, the study keeps them."""
        rng, context = np.random.default_rng(derive_seed(self.settings.seed)), self.context
        if context.measured is None:
            return initial_trials(context, rng)
        if INITIAL not in self.study.user_attrs:
            self._measure_from_now()
            check_measured(self.settings, context.space, self.budgets)
            self.confirm()
            self.study.set_user_attr(INITIAL, [trial.as_json() for trial in initial_trials(context, rng)])
        return [InitialTrial.from_json(trial) for trial in self.study.user_attrs[INITIAL]]

    def _enqueue(self, trial: InitialTrial) -> None:
        params = enqueue_params(self.context, trial)
        self.study.enqueue_trial(params, user_attrs={"kind": trial.kind, "label": trial.label})

    def rescore(self) -> None:
        """Score the candidates for the front again, with the final shared weights and on more images."""
        if self._is_rescored():
            return
        load_parameters(self.context.evaluator.supernet, self.shared.weights)
        self._measure_from_now()
        records = self.records()
        found, answers = final_scores(self.context, records, self.callbacks)
        curves = score_curves(self.context, records, answers, self.callbacks)
        self.confirm()
        write_curves(curves, self.folder / BASELINES)
        answers.save(self.folder / ANSWERS)
        about = {"version": self.shared.version, "trials": count_trained(self._trials())}
        self.study.set_user_attr(RESCORED, about | found)

    def _is_rescored(self) -> bool:
        written = all((self.folder / name).exists() for name in (ANSWERS, BASELINES))
        known = self.study.user_attrs.get(RESCORED, {}) if written else {}
        return (known.get("version"), known.get("trials")) == (self.shared.version, count_trained(self._trials()))

    def measure(self) -> None:
        """Time the front and the plain network end to end, if latency has a budget and is measured on this device."""
        if self.context.latency is None:
            return
        known = self.study.user_attrs.get(MEASURED, {})
        with self.clock.part(TIMING):
            seen = time_front(self.context, self.records(), known, self.callbacks)
        if seen:
            self.confirm()
            self.study.set_user_attr(MEASURED, known | seen)

    def records(self) -> list[TrialRecord]:
        return trial_records(self.study, self.context)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)
