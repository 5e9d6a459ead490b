"""What Optuna keeps of a study's trials: as plain records, and told again when budgets change."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ltmsearch.costs import Budget, constraint_values, within_budgets
from ltmsearch.search.records import State, TrialRecord
from ltmsearch.search.rescoring import with_expected_top1
from ltmsearch.search.setup import Workbench
from ltmsearch.search.trial import IB_WEIGHT

RESCORED = "rescored"
"""The study's attribute for scores with the final weights: `version`, `trials` (how many had been trained), `scores`
(trial → top-1, its standard error, loss)."""
DASHBOARD_CONSTRAINTS = "constraints"
"""A trial's system attribute for constraints as Optuna 4 had them, and what Optuna 5's begin with."""
UNTRIED = "untried"
"""A trial's attribute: it was over an earlier budget and keeps the present one, but nothing is known of it."""
MEASURED = "measured"
"""The study's attribute for latencies timed at the close: trial → milliseconds, their standard error."""

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "scored", TrialState.PRUNED: "over budget", TrialState.FAIL: "failed",
}  # fmt: skip


def trial_records(study: optuna.Study, bench: Workbench) -> list[TrialRecord]:
    """Every finished trial, but those of which nothing is known.

    Args:
        study: The Optuna study.
        bench: What it works with.
    """
    attributes = study.user_attrs
    rescored, measured = attributes.get(RESCORED), attributes.get(MEASURED)
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.is_finished() and UNTRIED not in trial.user_attrs]
    return with_expected_top1(trial_record(trial, bench, rescored, measured) for trial in finished)


def completed_trial(trial: Trial, outcome: dict[str, Any]) -> FrozenTrial:
    """A trial that runs, as it will be once its outcome is told.

    Args:
        trial: Running, with all its parameters.
        outcome: What its evaluation came to.
    """
    told = create_trial(
        state=TrialState.COMPLETE,
        values=[outcome["top1"], outcome["cost"]],
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs | outcome,
    )
    told.number = trial.number
    return told


def set_constraints(trial: Trial, budgets: Sequence[Budget], indices: np.ndarray) -> list[float]:
    """Tell Optuna how far a schedule is outside each budget.

    Args:
        trial: Running.
        budgets: What it is held against.
        indices: (L,) its choices.
    """
    told = constraint_values(budgets, indices)
    for name, miss in told.items():
        if name not in trial.constraints:  # an interrupted trial has it already, and Optuna keeps the first
            trial.set_constraint(name, miss)
    # optuna-dashboard 0.21 knows only Optuna 4's form of constraints: without it, infeasible trials look feasible.
    trial.storage.set_trial_system_attr(trial._trial_id, DASHBOARD_CONSTRAINTS, list(told.values()))
    return list(told.values())


def trained(trials: Sequence[FrozenTrial]) -> int:
    """How many count: trained, whether they came to a score or failed."""
    counted = (TrialState.COMPLETE, TrialState.FAIL)
    return sum(
        t.state in counted and t.user_attrs.get("label") != "plain" and UNTRIED not in t.user_attrs for t in trials
    )


def with_current_budgets(trial: FrozenTrial, bench: Workbench) -> FrozenTrial:
    """A finished trial as it would have been told under the present budgets.

    What was over budget then and is not now has no score, so that nothing is known of it. It keeps its place, since
    seeds and recipes go by numbers, but is told as failed, which samplers pass over.
    """
    copy, indices = deepcopy(trial), np.array([trial.params[layer] for layer in bench.space.layers])
    constraints = constraint_values(bench.budgets, indices)
    copy.system_attrs = {n: v for n, v in copy.system_attrs.items() if n.partition(":")[0] != DASHBOARD_CONSTRAINTS}
    for name, miss in constraints.items():
        copy.set_constraint(name, miss)
    copy.system_attrs = {**copy.system_attrs, DASHBOARD_CONSTRAINTS: list(constraints.values())}
    if copy.state == TrialState.PRUNED or UNTRIED in copy.user_attrs:
        untried = max(constraints.values()) <= 0
        copy.state = TrialState.FAIL if untried else TrialState.PRUNED
        attributes = {name: value for name, value in copy.user_attrs.items() if name != UNTRIED}
        copy.user_attrs = attributes | ({UNTRIED: True} if untried else {})
    return copy


def trial_record(
    trial: FrozenTrial,
    bench: Workbench,
    rescored: dict[str, Any] | None = None,
    measured: dict[str, list[float]] | None = None,
) -> TrialRecord:
    """A finished trial as plain data.

    Args:
        trial: Of the study.
        bench: What the study works with.
        rescored: Its attribute `RESCORED`.
        measured: Its attribute `MEASURED`.
    """
    rescored = rescored or {"version": None, "scores": {}}
    again = rescored["scores"].get(str(trial.number))
    timed_ms, timed_se_ms = (measured or {}).get(str(trial.number), (None, None))
    indices = np.array([trial.params[layer] for layer in bench.space.layers])
    schedule, weights = bench.space.schedule(indices), bench.space.ib_weights
    state, attrs, feasible = (
        _STATES[trial.state],
        trial.user_attrs,
        bool(within_budgets(bench.budgets, indices[None])[0]),
    )
    if state == "over budget" and feasible:
        state = "below range"
    return TrialRecord(
        trial=trial.number,
        kind=attrs.get("kind", "searched"),
        label=attrs.get("label", ""),
        state=state,
        feasible=feasible,
        gflops=bench.costs.gflops(schedule),
        # A fit knows no zero: far from what was timed it may fall below.
        latency_ms=max(0.0, bench.latency.model.latency_ms(schedule)) if bench.latency else None,
        latency_measured_ms=timed_ms,
        latency_measured_se_ms=timed_se_ms,
        top1=trial.values[0] if state == "scored" else None,
        top1_se=attrs.get("top1_se"),
        loss=attrs.get("loss"),
        rescored_top1=again[0] if again else None,
        rescored_top1_se=again[1] if again else None,
        rescored_loss=again[2] if again else None,
        rescored_version=rescored["version"] if again else None,
        ib_weight=weights.weight(trial.params[IB_WEIGHT]) if weights else 0.0,
        mi_x=attrs.get("mi_x"),
        mi_y=attrs.get("mi_y"),
        ibb=attrs.get("ibb"),
        supernet_version=attrs.get("supernet_version"),
        seconds=attrs.get("seconds"),
        schedule=schedule,
    )
