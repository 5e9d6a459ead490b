"""The study: Optuna proposes schedules, the shared weights answer, the front is what remains.

The driver in this module is the only writer: it asks Optuna, hands trials to the evaluator, moves the shared weights,
saves them, and tells the outcome. What a trial does depends on the settings and on what was told before, never on how
often the run was interrupted in between.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import Tensor

from ltmsearch.checkpoint import CheckpointState, load_checkpoint, save_checkpoint
from ltmsearch.costs import GIGA, covering_schedules
from ltmsearch.errors import InputError, TrialDiverged
from ltmsearch.files import write_atomic
from ltmsearch.observer import Observer
from ltmsearch.prepare import Workbench, prepare, warm_up_plan
from ltmsearch.records import TrialRecord, select_front, trials_table, write_csv
from ltmsearch.rescoring import choose_candidates, same_nets
from ltmsearch.results import TRIALS, write_results
from ltmsearch.settings import SETTINGS, ResolvedSettings, StudySettings
from ltmsearch.storage import make_sampler, open_study
from ltmsearch.trial import IB_WEIGHT, load_parameters, moved, parameters, suggest

STARTUP_SHARE = 1 / 3
"""Share of the trials that cover the range of costs before the sampler takes over."""
UNIFORM_BASELINES = 3
"""Uniform schedules within the budget that are tried for comparison, dearest first."""
PATIENCE = 12
"""Proposals over budget in a row before a schedule within the budget is drawn instead."""
CONSTRAINT = "gflops over budget"
"""Key of the constraint in Optuna: feasible trials have a value ≤ 0."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study leaves behind."""

    folder: Path
    """The run directory."""
    records: list[TrialRecord]
    """Every trial."""

    @property
    def front(self) -> list[TrialRecord]:
        """The trials of the front, best top-1 first."""
        return select_front(self.records)


def run_study(settings: StudySettings, observer: Observer | None = None) -> StudyResult:
    """Search, or continue a search that was interrupted or is to have more trials.

    Args:
        settings: What to search, on what, how.
        observer: Hears of progress.

    Returns:
        The trials, re-scored; their tables, plots and recipes lie in the run directory.

    Raises:
        InputError: If the settings cannot be followed, or do not continue the study in the run directory.
    """
    observer = observer or Observer()
    start = time.monotonic()
    try:
        stored = _stored_settings(settings.run_dir)
        bench = prepare(settings, on_progress=lambda done, total: _reading(observer, done, total))
        if stored is not None:
            bench.settings.refuse_unless_continues(stored, settings.run_dir)
        loaded = load_checkpoint(settings.run_dir, space=bench.space.digest())
        if loaded is None and (settings.run_dir / TRIALS).exists():
            raise InputError(f"{settings.run_dir} has trials but no shared weights; begin anew with --out DIR")
        for line in bench.describe():
            observer.note(line)
        driver = Driver(bench, _open_run_dir(bench.settings), observer)
        try:
            driver.warm_up(loaded)
            driver.search(until=None if settings.timeout is None else start + settings.timeout)
            driver.rescore()
        except KeyboardInterrupt:
            if driver.records():  # so that `ltmsearch front` shows how far it came
                write_csv(trials_table(driver.records()), driver.folder / TRIALS)
            raise
        records = driver.records()
        write_results(driver.folder, bench, records, observer)
        return StudyResult(folder=driver.folder, records=records)
    finally:
        observer.close()


def _reading(observer: Observer, done: int, total: int) -> None:
    if done == 1:
        observer.phase("reading images", total)
    observer.advance(done)


def _stored_settings(folder: Path) -> ResolvedSettings | None:
    path = folder / SETTINGS
    return ResolvedSettings.load(path) if path.exists() else None


def _open_run_dir(settings: ResolvedSettings) -> Path:
    folder = settings.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SETTINGS, settings.to_yaml())
    except OSError as error:
        raise InputError(f"the run directory {folder} cannot be written: {error.strerror or error}") from error
    return folder


class Driver:
    """One study in one run directory: the shared weights, the Optuna study, and what is written of both."""

    def __init__(self, bench: Workbench, folder: Path, observer: Observer) -> None:
        self.bench = bench
        self.settings = bench.settings
        self.folder = folder
        self.observer = observer
        self.study = open_study(folder, self.settings.study)
        self.weights: dict[str, Tensor] = {}
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
        self.weights = parameters(supernet)
        self._save()

    def _save(self) -> None:
        supernet = self.bench.evaluator.supernet
        load_parameters(supernet, self.weights)
        save_checkpoint(self.folder, supernet.state_dict(), self.state)

    # -- trials --------------------------------------------------------------------------------------------------

    def search(self, *, until: float | None) -> None:
        """Run trials until their number is reached or the time is up.

        Args:
            until: No new trial begins after this `time.monotonic()`.
        """
        self._enqueue_first_trials()
        self.observer.phase("searching", self.settings.trials)
        while (done := self._trained()) < self.settings.trials:
            self.observer.advance(done, self._standing())
            if until is not None and time.monotonic() > until:
                self.observer.note(f"time is up after {done} of {self.settings.trials} trials")
                return
            if self._at_a_loss():
                (indices,) = self._covering(1, len(self._trials()))
                self._enqueue(indices, kind="start-up", label="drawn within budget")
            self._one_trial(self._next_trial())
        self.observer.advance(self.settings.trials, self._standing())

    def _at_a_loss(self) -> bool:
        """Whether the last `PATIENCE` proposals, or a multiple of it, were over budget and nothing is queued."""
        finished = [trial.state for trial in self._trials() if trial.state.is_finished()]
        rejected = len(list(takewhile(lambda state: state == TrialState.PRUNED, reversed(finished))))
        return rejected > 0 and rejected % PATIENCE == 0 and len(finished) == len(self._trials())

    def _next_trial(self) -> Trial:
        """The trial that an earlier run left unfinished, else a new one.

        The sampler is made afresh for every trial from the number of trials before it, so that an interrupted study
        makes the same proposals as one that was not.
        """
        self.study.sampler = self._sampler(0)
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING]
        if running:
            return Trial(self.study, running[0]._trial_id)
        return self.study.ask()

    def _sampler(self, place: int) -> BaseSampler:
        before = sum(trial.state.is_finished() for trial in self._trials())
        return make_sampler(self.settings.sampler, seed=_seed(self.settings.seed, before, place))

    def _one_trial(self, trial: Trial) -> None:
        """Suggest, evaluate, move the shared weights, tell."""
        if self.state.trial == trial.number and self.state.outcome is not None:
            self._tell(trial, self.state.outcome)  # it was evaluated before a crash; only the telling is missing
            return
        indices, ib_weight = suggest(trial, self.bench.space, lambda place: self._sampler(1 + place))
        trial.set_user_attr("ib_weight", ib_weight)
        macs = int(self.bench.table.macs(indices[None])[0])
        excess = (macs - self.settings.max_macs) / GIGA
        if CONSTRAINT not in trial.constraints:  # an interrupted trial has it already, and Optuna keeps the first
            trial.set_constraint(CONSTRAINT, excess)
        # optuna-dashboard 0.21 knows only Optuna 4's form of constraints: without it, infeasible trials look feasible.
        self.study._storage.set_trial_system_attr(trial._trial_id, "constraints", [excess])
        reference = not indices.any()  # the plain net is scored as a reference even if it is over the budget
        if excess > 0 and not reference:
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        try:
            result = self.bench.evaluator.evaluate(
                self.weights,
                self.bench.space.schedule(indices),
                ib_weight=ib_weight,
                seed=_seed(self.settings.seed, trial.number + 1),
                steps=0 if reference else None,
            )
        except TrialDiverged as error:
            trial.set_user_attr("failure", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            self.observer.note(f"trial {trial.number} failed alone: {error}")
            return
        outcome = {
            "top1": result.score.top1, "top1_se": result.score.top1_se, "loss": result.score.loss,
            "gflops": macs / GIGA, "seconds": round(result.seconds, 3), "supernet_version": self.state.version,
        }  # fmt: skip
        if (terms := result.score.ib) is not None:
            outcome |= {"mi_x": terms.mi_x, "mi_y": terms.mi_y, "ibb": terms.ibb}
        if reference and result.score.is_chance(len(self.state.class_names)):
            self.observer.note(
                f"the plain net has learned next to nothing ({result.score.top1:.1f} %): scores cannot tell schedules "
                "apart; more --base-steps, --pretrained or --checkpoint FILE would help"
            )
        version = self.state.version
        if result.weights:
            self.weights = moved(self.weights, result.weights, self.settings.update_share)
            version += 1
        self.state = CheckpointState(
            class_names=self.state.class_names, version=version, space=self.state.space,
            trial=trial.number, outcome=outcome,
        )  # fmt: skip
        self._save()
        self._tell(trial, outcome)

    def _tell(self, trial: Trial, outcome: dict[str, Any]) -> None:
        for name, value in outcome.items():
            if name not in ("top1", "gflops"):
                trial.set_user_attr(name, value)
        self.study.tell(trial, [outcome["top1"], outcome["gflops"]])

    def _enqueue_first_trials(self) -> None:
        """Queue the baselines and the schedules that cover the range of costs; those queued before are left.

        Of schedules that are the same net the first stands for all.
        """
        space, table = self.bench.space, self.bench.table
        plain = np.zeros(len(space.layers), dtype=int)
        ratios = sorted({c.keep_ratio for options in space.choices for c in options if c.keep_ratio < 1}, reverse=True)
        uniform = [(f"uniform {ratio:g}", space.nearest(ratio)) for ratio in ratios]
        within = [(label, i) for label, i in uniform if table.macs(i[None])[0] <= self.settings.max_macs]
        first = [("baseline", "plain", plain)]
        first += [("baseline", label, indices) for label, indices in within[:UNIFORM_BASELINES]]
        first += [("start-up", "", indices) for indices in self._covering(round(STARTUP_SHARE * self.settings.trials))]
        known: set[Hashable] = set()
        for kind, label, indices in first:
            net = self.bench.costs.net(space.schedule(indices))
            if net not in known:
                self._enqueue(indices, kind=kind, label=label)
            known.add(net)

    def _covering(self, number: int, *place: int) -> np.ndarray:
        rng = np.random.default_rng(_seed(self.settings.seed, *place))
        return covering_schedules(
            self.bench.space, self.bench.table, max_macs=self.settings.max_macs, number=number, rng=rng
        )

    def _enqueue(self, indices: np.ndarray, *, kind: str, label: str) -> None:
        params: dict[str, float] = dict(zip(self.bench.space.layers, indices.tolist(), strict=True))
        if (weights := self.bench.space.ib_weights) is not None:
            # By the schedule and not by its place, so that what is queued again is known again.
            rng = np.random.default_rng(_seed(self.settings.seed, *indices.tolist()))
            params[IB_WEIGHT] = weights.zero if kind == "baseline" else weights.draw(rng)
        self.study.enqueue_trial(params, user_attrs={"kind": kind, "label": label}, skip_if_exists=True)

    # -- the end -------------------------------------------------------------------------------------------------

    def rescore(self) -> None:
        """Score the candidates for the front again, all with the final shared weights and on more images."""
        known = self.study.user_attrs.get("rescored", {})
        if known.get("version") == self.state.version and known.get("trials") == self._trained():
            return
        load_parameters(self.bench.evaluator.supernet, self.weights)
        alike = same_nets(self.records(), self._proxy_net)
        candidates = choose_candidates([group[0] for group in alike], self.settings.rescore_candidates)
        self.observer.phase("scoring again", len(candidates))
        scores = {}
        for done, record in enumerate(candidates):
            self.observer.advance(done, record.name)
            schedule = record.schedule(self.settings.operator)
            score = self.bench.evaluator.score(schedule, images=self.settings.rescore_images)
            for same in next(group for group in alike if group[0] is record):
                scores[str(same.trial)] = [score.top1, score.top1_se, score.loss]
        self.observer.advance(len(candidates))
        self.study.set_user_attr(
            "rescored", {"version": self.state.version, "trials": self._trained(), "scores": scores}
        )

    def _proxy_net(self, record: TrialRecord) -> Hashable:
        """What tells the trial's net from others at the size of proxy training."""
        return self.bench.proxy_costs.net(record.schedule(self.settings.operator))

    def records(self) -> list[TrialRecord]:
        """Every finished trial as plain data."""
        rescoring = self.study.user_attrs.get("rescored", {"version": None, "scores": {}})
        finished = [trial for trial in self._trials() if trial.state.is_finished()]
        return [self._record(trial, rescoring) for trial in finished]

    def _record(self, trial: FrozenTrial, rescoring: dict[str, Any]) -> TrialRecord:
        rescored = rescoring["scores"].get(str(trial.number))
        indices = np.array([trial.params[layer] for layer in self.bench.space.layers])
        macs = int(self.bench.table.macs(indices[None])[0])
        schedule, weights = self.bench.space.schedule(indices), self.bench.space.ib_weights
        scored = trial.state == TrialState.COMPLETE
        attrs = trial.user_attrs
        return TrialRecord(
            trial=trial.number,
            kind=attrs.get("kind", "searched"),
            label=attrs.get("label", ""),
            state="scored" if scored else "over budget" if trial.state == TrialState.PRUNED else "failed",
            feasible=macs <= self.settings.max_macs,
            gflops=macs / GIGA,
            top1=trial.values[0] if scored else None,
            top1_se=attrs.get("top1_se"),
            loss=attrs.get("loss"),
            rescored_top1=rescored[0] if rescored else None,
            rescored_top1_se=rescored[1] if rescored else None,
            rescored_loss=rescored[2] if rescored else None,
            rescored_version=rescoring["version"] if rescored else None,
            ib_weight=weights.weight(trial.params[IB_WEIGHT]) if weights else 0.0,
            mi_x=attrs.get("mi_x"),
            mi_y=attrs.get("mi_y"),
            ibb=attrs.get("ibb"),
            supernet_version=attrs.get("supernet_version"),
            seconds=attrs.get("seconds"),
            keep_ratios=schedule.keep_ratios,
            forms=schedule.forms,
        )

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _trained(self) -> int:
        """Trials that count: trained, whether they came to a score or failed."""
        counted = (TrialState.COMPLETE, TrialState.FAIL)
        return sum(t.state in counted and t.user_attrs.get("label") != "plain" for t in self._trials())

    def _standing(self) -> str:
        trials = self._trials()
        feasible = [t for t in trials if t.state == TrialState.COMPLETE and t.values[1] <= self.settings.budget_gflops]
        over = sum(t.state == TrialState.PRUNED for t in trials)
        best = f", best {max(t.values[0] for t in feasible):.1f} %" if feasible else ""
        return f"{len(feasible)} within budget{best}, {over} proposals over it"


def _seed(seed: int, *path: int) -> int:
    """A seed of its own for each place in a study."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1)[0])
