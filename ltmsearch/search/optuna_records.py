"""Trials as Optuna stores them: converted to plain records, and adapted when budgets change."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ltmsearch.config.objective import Measure
from ltmsearch.costs import constraint_values, within_budgets
from ltmsearch.errors import check_choice
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.search.records import State, TrialRecord
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.storage.optuna_private import trial_id
from ltmsearch.search.trial import IB_WEIGHT

RESCORED, SCORES = "rescored", "scores"
"""Study attribute with the scores by the final weights: `version`, `trials` (number of trained ones), `scores`
(trial → fields of a record)."""
MEASURED = "measured"
"""Study attribute with the latencies timed at the end: trial → milliseconds, their standard error."""
UNTRIED = "untried"
"""Trial attribute: the trial was rejected under an earlier budget, is within the present one, and has no score."""
DASHBOARD_CONSTRAINTS = "constraints"
"""Trial system attribute for constraints in Optuna 4; a prefix of those of Optuna 5. optuna-dashboard 0.21 reads only
this one: without it, infeasible trials look feasible."""

COSTS = "costs"
"""Trial attribute where costs depend on the image: those measured before the trial, as fields of a record; and entry of
`RESCORED`: trial → those measured with the final weights."""
FURTHER_COSTS = ("gflops_sd", "gflops_quantile", "latency_ms", "tokens_sent")
"""Costs that not every study has, by the names of a record's fields."""
WEIGHT = "ib_weight"
"""Trial attribute that every trial of the search has from its start: the weight of its IB loss."""

_TRIAL_FIELDS = ("top1", "top1_se", "loss", "kl", "mi_x", "mi_y", "ibb", "supernet_version", "seconds")
"""Attributes of a scored trial that are fields of its record."""

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "scored",
    TrialState.PRUNED: "over budget",
    TrialState.FAIL: "failed",
}


def trial_records(study: optuna.Study, context: StudyContext) -> list[TrialRecord]:
    """Records of all finished trials of the search, except those without any result."""
    attributes = study.user_attrs
    rescored, measured = attributes.get(RESCORED), attributes.get(MEASURED)
    trials = study.get_trials(deepcopy=False)
    finished = [t for t in trials if t.state.is_finished() and is_own(t) and UNTRIED not in t.user_attrs]
    return [trial_record(trial, context, rescored, measured) for trial in finished]


def is_own(trial: FrozenTrial) -> bool:
    """Whether a finished trial is the search's, and not one that another program added to the study or ended."""
    return WEIGHT in trial.user_attrs and (trial.state != TrialState.COMPLETE or "loss" in trial.user_attrs)


def outside_space(trial: Trial, space: SearchSpace) -> str:
    """The first parameter of a trial that the space does not contain, and its value; empty if there is none.

    Other programs may queue such trials, and Optuna uses their values as they are.
    """
    ranges = {name: (0.0, number - 1.0) for name, number in zip(space.names, space.options, strict=True)}
    if space.ib_weights is not None:
        ranges[IB_WEIGHT] = (space.ib_weights.floor, space.ib_weights.high)
    for name, (low, high) in ranges.items():
        value = trial.params[name]
        if not low <= value <= high:
            return f"{name} must be in {low:g} to {high:g}, but is {value:g}"
    return ""


def completed_trial(trial: Trial, outcome: dict[str, Any], measure: Measure) -> FrozenTrial:
    """A running trial as it will be stored with its outcome."""
    completed = create_trial(
        state=TrialState.COMPLETE,
        values=objectives(outcome, measure),
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs | outcome,
    )
    completed.number = trial.number
    return completed


def objectives(outcome: dict[str, Any], measure: Measure) -> list[float]:
    """Values of a scored trial in Optuna: the measure, cost, and in a study with a split layer the tokens sent."""
    check_choice("the measure of a trial", measure, Measure)
    return [outcome[name] for name in (measure, "cost", "tokens_sent") if outcome.get(name) is not None]


def trial_costs(trial: Trial | FrozenTrial, context: StudyContext) -> dict[str, Any]:
    """The costs of a trial by the names of a record's fields: computed, or as measured before the trial."""
    if context.measured is not None:
        return dict(trial.user_attrs[COSTS])
    indices = _indices(trial, context)
    schedule, latency = context.space.schedule(indices), context.latency
    model = context.costs_at(schedule)
    return {
        "gflops": model.gflops(schedule),
        # The linear fit may go below zero far from the timed subnets.
        "latency_ms": max(0.0, latency.model.latency_ms(schedule)) if latency else None,
        "tokens_sent": context.tokens_sent(schedule),
        "kept_shares": model.kept_shares(schedule),
    }


def trial_constraints(trial: Trial | FrozenTrial, context: StudyContext) -> dict[str, float]:
    """Constraint values of a trial by the budgets' keys in Optuna; at most 0 in the range of a budget."""
    if context.measured is None:
        return constraint_values(context.budgets, _indices(trial, context))
    return {b.constraint: b.breach(trial.user_attrs[COSTS][b.name]) for b in context.budgets}


def _indices(trial: Trial | FrozenTrial, context: StudyContext) -> np.ndarray:
    return np.array([trial.params[name] for name in context.space.names])


def set_constraints(trial: Trial, context: StudyContext) -> list[float]:
    """Store and return the distance of a schedule from each budget; at most 0 is feasible."""
    values = trial_constraints(trial, context)
    for name, value in values.items():
        if name not in trial.constraints:  # Optuna keeps the first value; an interrupted trial has one already
            trial.set_constraint(name, value)
    trial.storage.set_trial_system_attr(trial_id(trial), DASHBOARD_CONSTRAINTS, list(values.values()))
    return list(values.values())


def count_trained(trials: Sequence[FrozenTrial]) -> int:
    """Number of trials that count towards `--trials`: trained, whether scored or failed."""
    counted = (TrialState.COMPLETE, TrialState.FAIL)
    return sum(
        t.state in counted and is_own(t) and t.user_attrs.get("label") != "plain" and UNTRIED not in t.user_attrs
        for t in trials
    )


def with_current_budgets(trial: FrozenTrial, context: StudyContext) -> FrozenTrial:
    """A finished trial with constraints and state recomputed for the present budgets.

    A trial that was rejected then and is feasible now has no score. It keeps its number, since seeds and recipes depend
    on numbers, and becomes a failed trial, which samplers ignore.
    """
    copy = deepcopy(trial)
    if not is_own(trial):
        return copy
    constraints = trial_constraints(trial, context)
    copy.system_attrs = {n: v for n, v in copy.system_attrs.items() if n.partition(":")[0] != DASHBOARD_CONSTRAINTS}
    for name, value in constraints.items():
        copy.set_constraint(name, value)
    copy.system_attrs = {**copy.system_attrs, DASHBOARD_CONSTRAINTS: list(constraints.values())}
    if copy.state == TrialState.PRUNED or UNTRIED in copy.user_attrs:
        untried = max(constraints.values()) <= 0
        copy.state = TrialState.FAIL if untried else TrialState.PRUNED
        attributes = {name: value for name, value in copy.user_attrs.items() if name != UNTRIED}
        copy.user_attrs = attributes | ({UNTRIED: True} if untried else {})
    return copy


def trial_record(
    trial: FrozenTrial,
    context: StudyContext,
    rescored: dict[str, Any] | None = None,
    measured: dict[str, list[float]] | None = None,
) -> TrialRecord:
    """The record of a finished trial."""
    rescored = rescored or {"version": None, "scores": {}}
    final = rescored["scores"].get(str(trial.number))
    timed_ms, timed_se_ms = (measured or {}).get(str(trial.number), (None, None))
    schedule, weights = context.space.schedule(_indices(trial, context)), context.space.ib_weights
    attrs = trial.user_attrs
    costs: dict[str, Any] = trial_costs(trial, context) | rescored.get(COSTS, {}).get(str(trial.number), {})
    feasible = _is_feasible(trial, context, costs)
    state = _STATES[trial.state]
    if state == "over budget" and feasible:
        state = "below range"
    return TrialRecord(
        trial=trial.number,
        kind=attrs.get("kind", "searched"),
        label=attrs.get("label", ""),
        state=state,
        feasible=feasible,
        gflops=costs["gflops"],
        **{name: costs.get(name) for name in FURTHER_COSTS},
        latency_measured_ms=timed_ms,
        latency_measured_se_ms=timed_se_ms,
        **{name: attrs.get(name) for name in _TRIAL_FIELDS},
        **(final or {}),
        rescored_version=rescored["version"] if final else None,
        ib_weight=weights.weight(trial.params[IB_WEIGHT]) if weights else 0.0,
        schedule=schedule,
        kept_shares=costs["kept_shares"],
    )


def _is_feasible(trial: FrozenTrial, context: StudyContext, costs: dict[str, Any]) -> bool:
    if context.measured is None:
        return bool(within_budgets(context.budgets, _indices(trial, context)[None])[0])
    return all(costs[budget.name] <= budget.limit / budget.per_unit for budget in context.budgets)
