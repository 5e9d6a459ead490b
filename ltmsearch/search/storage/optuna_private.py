"""The private attributes of Optuna that the search needs; `pyproject.toml` bounds the version, a test checks them.

Optuna has no public access to the ids under which its storages keep studies and trials.
"""

from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial


def study_id(study: optuna.Study) -> int:
    return study._study_id


def study_storage(study: optuna.Study) -> BaseStorage:
    return study._storage


def trial_id(trial: FrozenTrial | Trial) -> int:
    return trial._trial_id


def system_attrs(study: optuna.Study) -> dict[str, Any]:
    """The system attributes of a study, such as the notes of optuna-dashboard."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_system_attr(study: optuna.Study, name: str, value: Any) -> None:
    study._storage.set_study_system_attr(study._study_id, name, value)
