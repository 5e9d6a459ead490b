"""Trial records made by hand."""

from collections.abc import Mapping
from typing import Any

from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.search.records import TrialRecord


def make_record(
    *, keep_ratios: Mapping[str, float], forms: Mapping[str, Form] | None = None, operator: str = "ltm", **fields: Any
) -> TrialRecord:
    """A record whose schedule is given by its parts."""
    schedule = MergeSchedule(keep_ratios=keep_ratios, operator=operator, forms=forms or {})
    return TrialRecord(schedule=schedule, **fields)
