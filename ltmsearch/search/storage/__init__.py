"""The Optuna study where it is kept: a file in the run directory, or whatever address a user gives."""

from ltmsearch.search.storage.connect import (
    ARTIFACTS,
    DATABASE,
    open_storage,
    reach_storage,
    refuse_another_storage,
    told_when_lost,
)
from ltmsearch.search.storage.retry import PatientStorage, patient
from ltmsearch.search.storage.studies import LIMITS, find_study, open_study, under_limits
from ltmsearch.search.storage.study_lease import StudyBoard

__all__ = [
    "ARTIFACTS", "DATABASE", "LIMITS", "PatientStorage", "StudyBoard", "find_study", "open_storage", "open_study",
    "patient", "reach_storage", "refuse_another_storage", "told_when_lost", "under_limits",
]  # fmt: skip
