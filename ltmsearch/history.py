"""What Optuna keeps of a study's trials, as plain records."""

from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ltmsearch.costs import within
from ltmsearch.prepare import Workbench
from ltmsearch.records import State, TrialRecord
from ltmsearch.trial import IB_WEIGHT

RESCORED = "rescored"
"""The study's attribute for scores with the final weights: `version`, `trials` (how many had been trained), `scores`
(trial → top-1, its standard error, loss)."""
MEASURED = "measured"
"""The study's attribute for latencies timed at the close: trial → milliseconds, their standard error."""

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "scored", TrialState.PRUNED: "over budget", TrialState.FAIL: "failed",
}  # fmt: skip


def trial_records(study: optuna.Study, bench: Workbench) -> list[TrialRecord]:
    """Every finished trial.

    Args:
        study: The Optuna study.
        bench: What it works with.
    """
    rescored = study.user_attrs.get(RESCORED, {"version": None, "scores": {}})
    measured = study.user_attrs.get(MEASURED, {})
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    return [_record(trial, bench, rescored, measured) for trial in finished]


def _record(
    trial: FrozenTrial, bench: Workbench, rescored: dict[str, Any], measured: dict[str, list[float]]
) -> TrialRecord:
    again = rescored["scores"].get(str(trial.number))
    timed_ms, timed_se_ms = measured.get(str(trial.number), (None, None))
    indices = np.array([trial.params[layer] for layer in bench.space.layers])
    schedule, weights = bench.space.schedule(indices), bench.space.ib_weights
    state, attrs = _STATES[trial.state], trial.user_attrs
    return TrialRecord(
        trial=trial.number,
        kind=attrs.get("kind", "searched"),
        label=attrs.get("label", ""),
        state=state,
        feasible=bool(within(bench.budgets, indices[None])[0]),
        gflops=bench.costs.gflops(schedule),
        latency_ms=bench.latency.model.latency_ms(schedule) if bench.latency else None,
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
        keep_ratios=schedule.keep_ratios,
        forms=schedule.forms,
    )
