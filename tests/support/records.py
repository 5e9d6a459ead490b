"""Trial records made by hand, and run directories that contain them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.search.records import TRIALS, TrialRecord, trials_table, write_csv
from ltmsearch.search.run import Run

LAYERS = ("stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0")
BUDGET = 1.2
"""GFLOPs within which `make_trial` calls a trial feasible."""


def make_record(
    *, keep_ratios: Mapping[str, float], forms: Mapping[str, Form] | None = None, operator: str = "ltm", **fields: Any
) -> TrialRecord:
    """A record whose schedule is given by its parts."""
    schedule = MergeSchedule(keep_ratios=keep_ratios, operator=operator, forms=forms or {})
    return TrialRecord(schedule=schedule, **fields)


def make_trial(
    number: int, gflops: float, top1: float | None, rescored: float | None = None, **fields: Any
) -> TrialRecord:
    """A searched trial of three layers; without a top-1 it was rejected over the budget."""
    defaults: dict[str, Any] = {
        "kind": "searched",
        "state": "over budget" if top1 is None else "scored",
        "feasible": gflops <= BUDGET,
        "top1_se": None if top1 is None else 1.1,
        "loss": None if top1 is None else 0.9,
        "rescored_top1_se": None if rescored is None else 0.7,
        "rescored_loss": None if rescored is None else 0.8,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }
    return make_record(trial=number, gflops=gflops, top1=top1, rescored_top1=rescored, **(defaults | fields))


PLAIN = make_trial(0, 1.5467, 86.0, 87.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0))
UNIFORM = make_trial(1, 1.15, 79.0, 81.0, kind="baseline", label="uniform 0.5", keep_ratios=dict.fromkeys(LAYERS, 0.5))
START_UP = make_trial(2, 1.10, 78.0, 80.0, kind="start-up")
BEST = make_trial(
    3,
    1.18,
    82.0,
    84.0,
    forms={LAYERS[1]: "hard"},
    ib_weight=0.125,
    mi_x=3e-5,
    mi_y=1 / 3,
    ibb=-0.75,
    supernet_version=17,
)
OPEN = make_trial(4, 1.17, 77.0)
"""Not rescored."""
OVER = make_trial(5, 1.21, None)
RECORDS = [PLAIN, UNIFORM, START_UP, BEST, OPEN, OVER]
"""The front is BEST, UNIFORM and START_UP."""


def make_latency_trial(
    number: int, ms: float, top1: float, measured: float | None = None, **fields: Any
) -> TrialRecord:
    """A rescored trial under a budget of 20 ms; the faster, the more GFLOPs."""
    error = None if measured is None else 0.4
    defaults = {"latency_ms": ms, "latency_measured_ms": measured, "latency_measured_se_ms": error}
    return make_trial(number, 2.0 - ms / 100, top1, top1, **{"feasible": ms <= 20.0, **defaults, **fields})


LATENCIES = [
    make_latency_trial(1, 19.0, 80.0, 21.5),
    make_latency_trial(2, 15.0, 70.0, 14.0),
    make_latency_trial(3, 12.0, 60.0),
    make_latency_trial(4, 18.0, 65.0),
    make_latency_trial(0, 40.0, 90.0, 41.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0)),
    make_trial(5, 0.5, None, latency_ms=20.5, feasible=False),
]
"""The front is 1, 2 and 3; 1 was measured over the budget."""


def read_equal_columns(run: Path) -> pd.DataFrame:
    """The columns of `trials.csv` that are the same in equal studies."""
    return pd.read_csv(run / TRIALS).drop(columns="seconds")


def make_run(folder: Path, settings: ResolvedSettings, records: Iterable[TrialRecord]) -> Run:
    """A run directory with only a table of trials."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(trials_table(records), folder / TRIALS)
    return Run(folder, settings)
