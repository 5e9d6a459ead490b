"""The Optuna study where it is kept: a file in the run directory, or whatever address a user gives."""

from ltmsearch.storage.board import StudyBoard
from ltmsearch.storage.connect import (
    ARTIFACTS,
    DATABASE,
    open_storage,
    reach_storage,
    refuse_another_storage,
    told_when_lost,
)
from ltmsearch.storage.patience import PatientStorage, patient
from ltmsearch.storage.studies import LIMITS, find_study, open_study, under_limits

__all__ = [
    "ARTIFACTS", "DATABASE", "LIMITS", "PatientStorage", "StudyBoard", "find_study", "open_storage", "open_study",
    "patient", "reach_storage", "refuse_another_storage", "told_when_lost", "under_limits",
]  # fmt: skip
