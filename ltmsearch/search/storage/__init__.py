"""The storage of an Optuna study: an SQLite file in the run directory, or the URL that a user gives."""

from ltmsearch.search.storage.connect import (
    ARTIFACTS,
    DATABASE,
    connect_storage,
    open_storage,
    refuse_other_storage,
    reraise_storage_errors,
)
from ltmsearch.search.storage.damage import refuse_damaged_study
from ltmsearch.search.storage.driver_attribute import DriverAttribute
from ltmsearch.search.storage.retry import RetryingStorage
from ltmsearch.search.storage.studies import LIMITS, find_study, open_study, under_limits

__all__ = [
    "ARTIFACTS", "DATABASE", "LIMITS", "DriverAttribute", "RetryingStorage", "connect_storage", "find_study",
    "open_storage", "open_study", "refuse_damaged_study", "refuse_other_storage", "reraise_storage_errors",
    "under_limits",
]  # fmt: skip
