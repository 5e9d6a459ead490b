"""The Optuna study on disk, the samplers that propose to it, and the dashboard that shows it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from sqlalchemy import event

from ltmsearch.axis import UNITS, CostName
from ltmsearch.errors import InputError

DATABASE = "study.db"
LIMITS = "limits"
"""The study's attribute for the limits that its trials were told under."""


def open_study(folder: Path, name: str, *, cost: CostName = "gflops") -> optuna.Study:
    """The Optuna study in `study.db`, created where there is none: top-1 up, the cost down.

    Args:
        folder: The run directory.
        name: Of the study; those that took its place under other limits have a number behind it.
        cost: The second objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).resolve()}")
    _write_ahead(storage)
    successors = {int(n): f"{name} #{n}" for n in _numbers_behind(name, optuna.get_all_study_names(storage))}
    for successor in list(successors.values()):
        if LIMITS not in optuna.load_study(study_name=successor, storage=storage).user_attrs:  # cut off half way
            optuna.delete_study(study_name=successor, storage=storage)
            successors = {n: other for n, other in successors.items() if other != successor}
    study = _create(storage, successors[max(successors)] if successors else name)
    study.set_metric_names(["top-1 (%)", UNITS[cost]])
    return study


def under_limits(
    study: optuna.Study,
    limits: dict[str, list[float]],
    told_again: Callable[[FrozenTrial], FrozenTrial],
    *,
    keep: tuple[str, ...] = (),
) -> optuna.Study:
    """The study, if its trials were told under these limits; else one that holds them told again, in its place.

    Optuna keeps what a trial was told for ever, constraints too. The new study counts once it is whole, and the old one
    is removed then: whatever happens in between, one of them is there.

    Args:
        study: What `open_study` gave.
        limits: What its constraints rest on.
        told_again: Makes of a finished trial what is to stand in its place.
        keep: Attributes of the study that hold under any limits.
    """
    if study.user_attrs.get(LIMITS, limits) == limits:
        study.set_user_attr(LIMITS, limits)
        return study
    name, _, number = study.study_name.partition(" #")
    new = _create(study._storage, f"{name} #{int(number or 1) + 1}")
    new.set_metric_names(study.metric_names or [])
    for trial in study.get_trials():
        if trial.state.is_finished():
            new.add_trial(told_again(trial))
    for attribute in keep:
        if attribute in study.user_attrs:
            new.set_user_attr(attribute, study.user_attrs[attribute])
    new.set_user_attr(LIMITS, limits)
    optuna.delete_study(study_name=study.study_name, storage=study._storage)
    return new


def _numbers_behind(name: str, studies: list[str]) -> list[str]:
    found = (re.fullmatch(re.escape(name) + r" #(\d+)", study) for study in studies)
    return [match[1] for match in found if match]


def _create(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )


def serve_dashboard(folder: Path, *, host: str, port: int) -> None:
    """Run optuna-dashboard on the study of a run directory until it is interrupted.

    Raises:
        InputError: If there is no study, or the address cannot be listened on.
    """
    path = folder / DATABASE
    if not path.is_file():
        raise InputError(f"{folder} must be the run directory of a study, but it holds no {DATABASE}")
    from optuna_dashboard import run_server

    try:
        run_server(f"sqlite:///{path.resolve()}", host=host, port=port)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _write_ahead(storage: optuna.storages.RDBStorage) -> None:
    """SQLite's write-ahead log: several times fewer waits for the disk, and readers never block the writer."""

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections made before the listener


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The Optuna sampler of that name; `auto` is multivariate TPE.

    Raises:
        InputError: If the name is unknown.
    """
    if name not in _SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: known are auto, {', '.join(_SAMPLERS)}")
    return _SAMPLERS[name](seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=8, seed=seed)


# GP takes seconds a proposal and does not learn from rejected ones, so TPE is what `auto` means.
_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "auto": _tpe,
    "tpe": _tpe,
    "gp": lambda seed: GPSampler(n_startup_trials=8, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
