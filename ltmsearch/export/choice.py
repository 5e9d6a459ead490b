"""Which trials of a study a user means."""

from collections.abc import Sequence

from ltmsearch.config.objective import CostName
from ltmsearch.errors import InputError
from ltmsearch.search.records import TrialRecord, select_front


def choose_trials(
    records: Sequence[TrialRecord],
    *,
    trial: int | None = None,
    top: int | None = None,
    under_gflops: float | None = None,
    under_ms: float | None = None,
    cost: CostName = "gflops",
) -> list[TrialRecord]:
    """The trials that a user means: one by number, the best of the front, or the best of it up to a cost.

    Raises:
        InputError: If more than one way is given, or nothing fits.
    """
    if sum(choice is not None for choice in (trial, top, under_gflops, under_ms)) > 1:
        raise InputError("--trial, --top, --under-gflops and --under-ms exclude each other")
    if under_ms is not None and cost != "latency_ms":
        raise InputError("--under-ms needs a study with a latency budget (--budget-ms)")
    front = select_front(records, cost)
    if trial is not None:
        chosen = [record for record in records if record.trial == trial and record.state == "scored"]
        rule = f"trial {trial} has no score; the front's are {', '.join(str(r.trial) for r in front)}"
    elif under_gflops is not None:
        chosen = [record for record in front if record.gflops <= under_gflops][:1]
        rule = f"no trial of the front costs up to {under_gflops:g} GFLOPs"
        if front:
            rule += f"; the cheapest costs {min(r.gflops for r in front):.4f}"
    elif under_ms is not None:
        chosen = [record for record in front if _ms(record) <= under_ms][:1]
        rule = f"no trial of the front takes up to {under_ms:g} ms"
        if front:
            rule += f"; the fastest takes {min(map(_ms, front)):.2f}"
    else:
        chosen, rule = front[: top or 1], "the study has no front yet: no scored trial is within the budget"
    if not chosen:
        raise InputError(rule)
    return chosen


def _ms(record: TrialRecord) -> float:
    """Measured where it was, else predicted."""
    return record.cost("latency_ms") if record.latency_measured_ms is None else record.latency_measured_ms
