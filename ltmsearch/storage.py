"""The Optuna study in its database: a file in the run directory, or whatever address a user gives."""

import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from pydantic import SecretStr
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from ltmsearch.address import database_file, file_address
from ltmsearch.axis import UNITS, CostName
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.settings import StudySettings

DATABASE, ARTIFACTS = "study.db", "artifacts"
"""Names in a run directory: of the database, and of the folder with the files of trials that the dashboard shows."""
LIMITS = "limits"
"""The study's attribute for the limits that its trials were told under."""
DASHBOARD = ("dashboard", "artifacts")
"""First parts of the names of the study's system attributes that optuna-dashboard shows: notes, plots, files."""
CONNECT_SECONDS = 10
"""How long a server may take to answer."""
NO_PASSWORD = " (no password was given: it may stand in --storage of `run`, in PGPASSWORD or in ~/.pgpass)"


def open_storage(settings: StudySettings, folder: Path, *, existing: bool = False) -> RDBStorage:
    """The database of a study, with Optuna's tables in it.

    Args:
        settings: Of the study.
        folder: The run directory, which holds the database unless the settings name another.
        existing: Whether it must be there already: nothing is created then.

    Raises:
        InputError: If it cannot be reached or used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = settings.storage or file_address(folder / DATABASE)
    file, password = database_file(url), settings.storage_password
    options: dict[str, Any] = {}
    if file is None:
        options = {"connect_timeout": CONNECT_SECONDS}
        options |= {} if password is None else {"password": password.get_secret_value()}
    elif existing and not file.is_file():
        raise InputError(f"{folder} must be the run directory of a study that began, but there is no {file}")
    try:
        storage = RDBStorage(
            url,
            # The password goes past the URL, which Optuna keeps as text. A server may close what was idle for a trial.
            {"connect_args": options, "pool_pre_ping": file is None},
            skip_table_creation=existing,
        )
        weakref.finalize(storage, storage.engine.dispose)  # connections are closed with it, however a command ends
        if file is not None:
            _write_ahead(storage)
        optuna.get_all_study_names(storage)
    except ImportError:
        raise InputError(f"{url} needs its driver: pip install 'ltmsearch[postgres]'") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        advice = "" if file is not None or password is not None else NO_PASSWORD
        raise InputError(f"the storage {url} cannot be used: {_reason(error, password)}{advice}") from None
    return storage


def _reason(error: Exception, password: SecretStr | None) -> str:
    """What a database said, in one line."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    said = (str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(error).__name__])[0].strip()
    return said.replace(password.get_secret_value(), "***") if password is not None else said


def _write_ahead(storage: RDBStorage) -> None:
    """SQLite's write-ahead log: several times fewer waits for the disk, and readers never block the writer."""

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections made before the listener


@contextmanager
def told_when_lost(settings: StudySettings) -> Iterator[None]:
    """Tell in one line that the database of a study failed while the study used it.

    Raises:
        StorageLost: With what the database said.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        where = settings.storage or f"{settings.run_dir / DATABASE}"
        said = _reason(error, settings.storage_password)
        raise StorageLost(f"the storage {where} was lost: {said}; the same command continues") from error


def open_study(storage: RDBStorage, name: str, *, cost: CostName = "gflops") -> optuna.Study:
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


def find_study(storage: RDBStorage, name: str) -> optuna.Study | None:
    """The Optuna study of that name as it stands, None where there is none. Nothing is written."""
    known, successors = optuna.get_all_study_names(storage), _successors(storage, name)
    for each in [*(successors[number] for number in sorted(successors, reverse=True)), name]:
        study = optuna.load_study(study_name=each, storage=storage) if each in known else None
        if study is not None and (each == name or LIMITS in study.user_attrs):
            return study
    return None


def reach_storage(settings: StudySettings, stored: StudySettings | None, *, begun: bool) -> RDBStorage | None:
    """The database that the settings of a search name, before anything is timed; None where it is the run directory's.

    Args:
        settings: Of the search.
        stored: What the run directory holds, if anything.
        begun: Whether it holds shared weights.

    Raises:
        InputError: If it cannot be used, is another than the study began with, or holds another run directory's study
            of the same name.
    """
    folder = settings.run_dir
    if stored is not None and stored.storage != settings.storage:
        held = f"the storage {stored.storage}" if stored.storage else f"its own {DATABASE}"
        given = f"--storage {settings.storage}" if settings.storage else "no --storage"
        raise InputError(f"{folder} holds a study that is kept in {held}, but got {given}: continue it where it is")
    if settings.storage is None:
        return None
    storage = open_storage(settings, folder)
    study = find_study(storage, settings.study_name)
    if study is not None and study.get_trials(deepcopy=False) and not begun:
        raise InputError(
            f"the storage holds a study {settings.study_name} with trials already, but {folder} has no shared weights "
            "of it: begin another with --study NAME, or continue that one in its own run directory with --out DIR"
        )
    return storage


def under_limits(
    study: optuna.Study,
    limits: dict[str, list[float]],
    told_again: Callable[[FrozenTrial], FrozenTrial],
    *,
    keep: tuple[str, ...] = (),
) -> optuna.Study:
    """The study, if its trials were told under these limits; else one that holds them told again, in its place.

    Optuna keeps what a trial was told for ever, constraints too. The new study counts once it is whole, and the old one
    is removed then: whatever happens in between, one of them is there. Notes and artifacts come along.

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


def _successors(storage: RDBStorage, name: str) -> dict[int, str]:
    """Studies that took the place of one, by their numbers."""
    found = (re.fullmatch(re.escape(name) + r" #(\d+)", study) for study in optuna.get_all_study_names(storage))
    return {int(match[1]): match[0] for match in found if match}


def _create(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
