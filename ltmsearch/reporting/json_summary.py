"""A finished study as plain data for other programs: what `ltmsearch run --json` and `front --json` print."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ltmsearch.config.objective import CostName
from ltmsearch.reporting.findings import find, sentences
from ltmsearch.search.records import TrialRecord, front_table
from ltmsearch.search.run import Run


def study_document(run: Run) -> dict[str, Any]:
    """Where a study lies, what it was told, its front, what to compare that with, and what was learned.

    Args:
        run: Run directory of the study.

    Returns:
        Names and values for JSON. `trials` counts proposals by what became of them.
    """
    records, cost = run.trials, run.settings.axis.name
    return {
        "folder": str(run.folder),
        "settings": run.settings.public(),
        "trials": dict(Counter(record.state for record in records)),
        "front": front_rows(records, cost),
        "baselines": [_baseline(record) for record in records if record.kind == "baseline" and record.score],
        "findings": sentences(find(records, cost)),
    }


def front_rows(records: Iterable[TrialRecord], cost: CostName = "gflops") -> list[dict[str, Any]]:
    """The rows of `front.csv` by the same names: keep ratios and forms by layer, None where a field is empty."""
    table = front_table(records, cost).astype(object)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.where(table.notna(), None).to_numpy()]
    return [row | {name: json.loads(row[name]) for name in ("keep_ratios", "forms")} for row in rows]


def _baseline(record: TrialRecord) -> dict[str, Any]:
    score = record.score
    assert score is not None, record
    return {
        "trial": record.trial,
        "label": record.label,
        "feasible": record.feasible,
        "gflops": record.gflops,
        "latency_ms": record.latency_ms,
        "latency_measured_ms": record.latency_measured_ms,
        "latency_measured_se_ms": record.latency_measured_se_ms,
        "top1": score.top1,
        "top1_se": score.top1_se,
        "loss": score.loss,
        "expected_top1": record.expected_top1,
        "rescored": score.rescored,
        "keep_ratios": dict(record.schedule.keep_ratios),
        "forms": dict(record.schedule.forms),
    }
