"""Trial records made by hand, the answers that agree with them, and run directories that contain both."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.search.answers import ANSWERS, Answers
from ltmsearch.search.records import TRIALS, TrialRecord, trials_table, write_csv
from ltmsearch.search.run import Run

LAYERS = ("stages.2.1.transformer.0", "stages.2.1.transformer.1", "stages.3.1.transformer.0")
BUDGET = 1.2
"""GFLOPs within which `make_trial` calls a trial feasible."""
PLAIN_TOP1 = 87.0
"""Top-1 of the plain network on the reported images, in percent."""


def make_record(
    *,
    keep_ratios: Mapping[str, float],
    forms: Mapping[str, Form] | None = None,
    operator: str = "ltm",
    img_size: int | None = None,
    **fields: Any,
) -> TrialRecord:
    """A record whose schedule is given by its parts."""
    schedule = MergeSchedule(keep_ratios=keep_ratios, operator=operator, forms=forms or {}, img_size=img_size)
    return TrialRecord(schedule=schedule, **fields)


def make_trial(
    number: int, gflops: float, top1: float | None, report: float | None = None, **fields: Any
) -> TrialRecord:
    """A searched trial of three layers; without a top-1 it was rejected over the budget.

    Args:
        top1: Top-1 on the search images when it ran, in percent. KL divergence and loss are lower, the higher it is.
        report: Top-1 on the reported images; the values on validation images follow from it in the same way. None: not
            a finalist.
    """
    defaults: dict[str, Any] = {
        "kind": "searched",
        "state": "over budget" if top1 is None else "scored",
        "feasible": gflops <= BUDGET,
        "keep_ratios": dict(zip(LAYERS, (1.0, 0.5, 0.7), strict=True)),
    }
    if top1 is not None:
        defaults |= {"top1_se": 1.1, "loss": lost(top1), "kl": lost(top1) / 2}
    if report is not None:
        defaults |= {
            "rescored_loss": lost(report),
            "rescored_kl": lost(report) / 2,
            "report_top1": report,
            "report_top1_se": 0.7,
            "difference": report - PLAIN_TOP1,
            "difference_se": 0.4,
        }
    return make_record(trial=number, gflops=gflops, top1=top1, **(defaults | fields))


def lost(top1: float) -> float:
    """The loss, in nats, that `make_trial` gives a top-1 in percent; KL divergence is half of it."""
    return (100 - top1) / 20


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
    rescored_version=20,
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
    make_latency_trial(0, 40.0, 87.0, 41.0, kind="baseline", label="plain", keep_ratios=dict.fromkeys(LAYERS, 1.0)),
    make_trial(5, 0.5, None, latency_ms=20.5, feasible=False),
]
"""The front is 1, 2 and 3; 1 was measured over the budget."""


def make_answers(records: Iterable[TrialRecord], images: int = 1000, *, apart: float = 0.05, seed: int = 0) -> Answers:
    """Answers of every finalist and of the plain network, with exactly the top-1 of the records, to whole images.

    Labels are all 0; every wrong answer is another class. `apart` is the share of the images on which a network and the
    plain one exchange right and wrong answers, beyond what their top-1 differ by.
    """
    rng = np.random.default_rng(seed)
    plain = np.arange(images) >= round(PLAIN_TOP1 / 100 * images)
    swapped = round(apart * images)

    def answers(record: TrialRecord) -> np.ndarray:
        if record.difference == 0:
            return plain.astype(np.int64)
        wrong = plain.copy()
        wrong[rng.choice(np.flatnonzero(plain), swapped, replace=False)] = False
        more = round((100 - (record.report_top1 or 0.0)) / 100 * images) - int(wrong.sum())
        wrong[rng.choice(np.flatnonzero(~wrong & ~plain), more, replace=False)] = True
        return np.where(wrong, 1 + np.flatnonzero(np.ones(images)) % 3, 0)

    final = [record for record in records if record.report_top1 is not None]
    return Answers(
        labels=np.zeros(images, dtype=np.int64),
        groups=np.arange(images),
        plain=plain.astype(np.int64),
        trials={record.trial: answers(record) for record in final},
    )


def reported(records: Iterable[TrialRecord], answers: Answers) -> list[TrialRecord]:
    """The records with what follows from the answers, as after the final scores."""
    return [
        record
        if record.trial not in answers.trials
        else replace(
            record,
            report_top1=answers.top1(record.trial).value,
            report_top1_se=answers.top1(record.trial).se,
            difference=answers.difference(record.trial).value,
            difference_se=answers.difference(record.trial).se,
            agreement=answers.agreement(record.trial).value,
            agreement_se=answers.agreement(record.trial).se,
        )
        for record in records
    ]


def read_equal_columns(run: Path) -> pd.DataFrame:
    """The columns of `trials.csv` that are the same in equal studies."""
    return pd.read_csv(run / TRIALS).drop(columns="seconds")


def make_run(
    folder: Path, settings: ResolvedSettings, records: Iterable[TrialRecord], answers: Answers | None = None
) -> Run:
    """A run directory with only a table of trials, and one of answers if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(trials_table(records), folder / TRIALS)
    if answers is not None:
        answers.save(folder / ANSWERS)
    return Run(folder, settings)
