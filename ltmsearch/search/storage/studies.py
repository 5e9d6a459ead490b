"""Studies in a storage: found, made, and told again under other limits."""

import re
from collections.abc import Callable

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from ltmsearch.config.objective import UNITS, CostName

LIMITS = "limits"
"""The study's attribute for the limits that its trials were told under."""
HELD_BY, BEAT = "ltmsearch:driver", "ltmsearch:driver:beat"
"""The study's system attributes for who drives it, and for the last sign of life: token and time."""
DASHBOARD = ("dashboard", "artifacts")
"""First parts of the names of the study's system attributes that optuna-dashboard shows: notes, plots, files."""


def open_study(storage: BaseStorage, name: str, *, cost: CostName = "gflops") -> optuna.Study:
    """The Optuna study of that name, created where there is none: top-1 up, the cost down.

    Args:
        storage: What `open_storage` gave; studies of other names in it are left alone.
        name: Of the study; those that took its place under other limits have a number behind it.
        cost: The second objective.
    """
    successors = _successors(storage, name)
    for number, successor in list(successors.items()):
        if LIMITS not in optuna.load_study(study_name=successor, storage=storage).user_attrs:  # cut off half way
            optuna.delete_study(study_name=successor, storage=storage)
            del successors[number]
    study = _create(storage, successors[max(successors)] if successors else name)
    study.set_metric_names(["top-1 (%)", UNITS[cost]])
    return study


def find_study(storage: BaseStorage, name: str) -> optuna.Study | None:
    """The Optuna study of that name as it stands, None where there is none. Nothing is written."""
    known, successors = optuna.get_all_study_names(storage), _successors(storage, name)
    for each in [*(successors[number] for number in sorted(successors, reverse=True)), name]:
        study = optuna.load_study(study_name=each, storage=storage) if each in known else None
        if study is not None and (each == name or LIMITS in study.user_attrs):
            return study
    return None


def under_limits(
    study: optuna.Study,
    limits: dict[str, list[float]],
    with_current_budgets: Callable[[FrozenTrial], FrozenTrial],
    *,
    keep: tuple[str, ...] = (),
) -> optuna.Study:
    """The study, if its trials were told under these limits; else one that holds them told again, in its place.

    Optuna keeps what a trial was told for ever, constraints too. The new study counts once it is whole, and the old one
    is removed then: whatever happens in between, one of them is there. Notes, artifacts and its driver come along.

    Args:
        study: What `open_study` gave.
        limits: What its constraints rest on.
        with_current_budgets: Makes of a finished trial what is to stand in its place.
        keep: Attributes of the study that hold under any limits.
    """
    if study.user_attrs.get(LIMITS, limits) == limits:
        study.set_user_attr(LIMITS, limits)
        return study
    name, _, number = study.study_name.partition(" #")
    new = _create(study._storage, f"{name} #{int(number or 1) + 1}")
    new.set_metric_names(study.metric_names or [])
    held = study._storage.get_study_system_attrs(study._study_id)
    for name in (BEAT, HELD_BY):
        if name in held:
            new._storage.set_study_system_attr(new._study_id, name, held[name])
    for trial in study.get_trials():
        if trial.state.is_finished():
            new.add_trial(with_current_budgets(trial))
    _copy_notes(study, new)
    for attribute in keep:
        if attribute in study.user_attrs:
            new.set_user_attr(attribute, study.user_attrs[attribute])
    new.set_user_attr(LIMITS, limits)
    optuna.delete_study(study_name=study.study_name, storage=study._storage)
    return new


def _copy_notes(study: optuna.Study, new: optuna.Study) -> None:
    """What optuna-dashboard keeps of a study and, by their ids, of its trials; artifacts of trials lie with these."""
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    ids = {
        str(old._trial_id): str(copy._trial_id)
        for old, copy in zip(finished, new.get_trials(deepcopy=False), strict=True)
    }
    for name, value in study._storage.get_study_system_attrs(study._study_id).items():
        kind, _, rest = name.partition(":")
        trial, colon, what = rest.partition(":")
        if trial.isdigit():  # of a trial that had not ended it is left out, as the trial is
            name = f"{kind}:{ids[trial]}{colon}{what}" if trial in ids else ""
        if name and kind in DASHBOARD:
            new._storage.set_study_system_attr(new._study_id, name, value)


def _successors(storage: BaseStorage, name: str) -> dict[int, str]:
    """Studies that took the place of one, by their numbers."""
    found = (re.fullmatch(re.escape(name) + r" #(\d+)", study) for study in optuna.get_all_study_names(storage))
    return {int(match[1]): match[0] for match in found if match}


def _create(storage: BaseStorage, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
