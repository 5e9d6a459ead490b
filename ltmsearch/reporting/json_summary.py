"""A finished study as JSON data, printed by `ltmsearch run --json` and `front --json`."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ltmsearch.config.objective import CostAxis
from ltmsearch.reporting.findings import findings_of, sentences
from ltmsearch.search.records import TrialRecord, front_table
from ltmsearch.search.run import Run

BASELINE_FIELDS = (
    *("trial", "label", "feasible", "gflops", "gflops_sd", "gflops_quantile"),
    *("latency_ms", "latency_measured_ms", "latency_measured_se_ms", "tokens_sent"),
    *("kl", "loss", "rescored_kl", "rescored_loss", "difference", "difference_se", "agreement", "agreement_se"),
)
"""Fields of a baseline's record in the summary, beside its score and schedule."""


def study_document(run: Run) -> dict[str, Any]:
    """Folder, settings, front, baselines, findings and verdict of a study; `trials` counts its trials by state.

    `probe` is the record of the linear probe that a new classifier started from, or None. The verdict is None before
    the final scores.
    """
    records, found = run.trials, findings_of(run)
    return {
        "folder": str(run.folder),
        "settings": run.settings.public(),
        "probe": None if run.probe is None else run.probe.model_dump(exclude={"schema_version"}),
        "trials": dict(Counter(record.state for record in records)),
        "front": front_rows(records, run.settings.axis),
        "baselines": [_baseline(record) for record in records if record.kind == "baseline" and record.score],
        "findings": sentences(found),
        "verdict": None if found.verdict is None else found.verdict.as_json(),
    }


def front_rows(records: Iterable[TrialRecord], axis: CostAxis) -> list[dict[str, Any]]:
    """The rows of `front.csv`: keep ratios and forms by layer, None for an empty field."""
    table = front_table(records, axis).astype(object)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.where(table.notna(), None).to_numpy()]
    return [row | {name: json.loads(row[name]) for name in ("keep_ratios", "forms")} for row in rows]


def _baseline(record: TrialRecord) -> dict[str, Any]:
    score = record.score
    assert score is not None, record
    return {
        **{name: getattr(record, name) for name in BASELINE_FIELDS},
        **score._asdict(),
        "img_size": record.schedule.img_size,
        "keep_ratios": dict(record.schedule.keep_ratios),
        "forms": dict(record.schedule.forms),
    }
