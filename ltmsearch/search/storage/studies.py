"""Studies in a storage: find them, create them, and copy them when their budgets change."""

import re
from collections.abc import Callable

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from ltmsearch.config.objective import MEASURES, UNITS, CostAxis
from ltmsearch.search.storage.optuna_private import set_system_attr, study_storage, system_attrs, trial_id

LIMITS = "limits"
"""The user attribute of a study with the limits that the constraints of its trials were computed from."""
DRIVER = "ltmsearch:driver"
"""The system attribute of a study for the holder of its lease."""
DASHBOARD = ("dashboard", "artifacts")
"""First parts of the names of the system attributes that optuna-dashboard shows: notes, plots, files."""


def open_study(storage: BaseStorage, name: str, axis: CostAxis) -> optuna.Study:
    """Load the Optuna study of a name, or create it: minimize the measure and each cost."""
    copies = _copies(storage, name)
    for number, copy in list(copies.items()):
        if LIMITS not in optuna.load_study(study_name=copy, storage=storage).user_attrs:  # interrupted midway
            optuna.delete_study(study_name=copy, storage=storage)
            del copies[number]
    study = _create(storage, copies[max(copies)] if copies else name, objectives=1 + len(axis.costs))
    study.set_metric_names([f"{MEASURES[axis.measure]} (nats)", *(UNITS[cost] for cost in axis.costs)])
    return study


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """Load the Optuna study of a name, None if there is none. Writes nothing."""
    existing, copies = optuna.get_all_study_names(storage), _copies(storage, name)
    for each in [*(copies[number] for number in sorted(copies, reverse=True)), name]:
        study = optuna.load_study(study_name=each, storage=storage) if each in existing else None
        if study is not None and (each == name or LIMITS in study.user_attrs):
            return study
    return None


def under_limits(
    study: optuna.Study,
    limits: dict[str, list[float]],
    convert: Callable[[FrozenTrial], FrozenTrial],
    *,
    keep: tuple[str, ...] = (),
) -> optuna.Study:
    """The study if its constraints were computed from these limits, else a copy with new constraints that replaces it.

    Optuna cannot change the constraints of a finished trial. The copy counts once it is complete, and the original is
    deleted after that, so one of them exists at any time. Notes, artifacts, the lease and the user attributes in `keep`
    are copied.
    """
    if study.user_attrs.get(LIMITS, limits) == limits:
        study.set_user_attr(LIMITS, limits)
        return study
    name, _, number = study.study_name.partition(" #")
    new = _create(study_storage(study), f"{name} #{int(number or 1) + 1}", objectives=len(study.directions))
    new.set_metric_names(study.metric_names or [])
    set_system_attr(new, DRIVER, system_attrs(study).get(DRIVER, ""))
    for trial in study.get_trials():
        if trial.state.is_finished():
            new.add_trial(convert(trial))
    _copy_notes(study, new)
    for attribute in keep:
        if attribute in study.user_attrs:
            new.set_user_attr(attribute, study.user_attrs[attribute])
    new.set_user_attr(LIMITS, limits)
    optuna.delete_study(study_name=study.study_name, storage=study_storage(study))
    return new


def _copy_notes(study: optuna.Study, new: optuna.Study) -> None:
    """Copy the attributes of optuna-dashboard, whose names contain the ids of trials."""
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    ids = {
        str(trial_id(old)): str(trial_id(copy))
        for old, copy in zip(finished, new.get_trials(deepcopy=False), strict=True)
    }
    for name, value in system_attrs(study).items():
        kind, _, rest = name.partition(":")
        trial, colon, part = rest.partition(":")
        if trial.isdigit():  # notes of unfinished trials are left out, as the trials are
            name = f"{kind}:{ids[trial]}{colon}{part}" if trial in ids else ""
        if name and kind in DASHBOARD:
            set_system_attr(new, name, value)


def _copies(storage: BaseStorage, name: str) -> dict[int, str]:
    found = (re.fullmatch(re.escape(name) + r" #(\d+)", study) for study in optuna.get_all_study_names(storage))
    return {int(match[1]): match[0] for match in found if match}


def _create(storage: BaseStorage, name: str, *, objectives: int) -> optuna.Study:
    directions = [StudyDirection.MINIMIZE] * objectives
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
