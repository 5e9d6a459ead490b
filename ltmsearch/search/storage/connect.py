"""The storage of a study, opened: an SQLite file, a PostgreSQL server, or a journal."""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event

from ltmsearch.config.settings import StudySettings
from ltmsearch.config.storage_url import database_file, file_address, journal_file
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.search.storage.errors import FAILURES, reason
from ltmsearch.search.storage.journal import open_journal
from ltmsearch.search.storage.retry import PatientStorage, patient
from ltmsearch.search.storage.studies import find_study

DATABASE, ARTIFACTS = "study.db", "artifacts"
"""Names in a run directory: of the database, and of the folder with the files of trials that the dashboard shows."""
_SERVER = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
"""How long a server may take to answer, and be silent where a network was cut: seconds, the last one milliseconds."""
NO_PASSWORD = " (no password was given: it may stand in --storage of `run`, in PGPASSWORD or in ~/.pgpass)"


def _unheard(_: str) -> None:
    pass


def open_storage(
    settings: StudySettings, folder: Path, *, existing: bool = False, tell: Callable[[str], None] = _unheard
) -> BaseStorage:
    """The storage of a study, ready for use.

    Args:
        settings: Of the study.
        folder: The run directory, which holds the database unless the settings name another.
        existing: Whether it must be there already: nothing is created then.
        tell: Hears in one line of what was mended.

    Raises:
        InputError: If it cannot be reached or used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings are of failures, told here in one line
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = settings.storage or file_address(folder / DATABASE)
    journal, file, password = journal_file(url), database_file(url), settings.storage_password
    kept = journal or file
    if existing and kept is not None and not kept.is_file():
        raise InputError(f"{folder} must be the run directory of a study that began, but there is no {kept}")
    storage: BaseStorage
    try:
        if journal is not None:
            storage = open_journal(journal, existing=existing, tell=tell)
        else:
            storage = _open_database(url, settings, existing=existing)
        optuna.get_all_study_names(storage)
    except ImportError:
        raise InputError(f"{url} needs its driver: pip install 'ltmsearch[postgres]'") from None
    except (*FAILURES, RuntimeError) as error:
        advice = NO_PASSWORD if kept is None and password is None else ""
        raise InputError(f"the storage {url} cannot be used: {reason(error, password)}{advice}") from None
    return storage


def _open_database(url: str, settings: StudySettings, *, existing: bool) -> RDBStorage:
    file, password = database_file(url), settings.storage_password
    options: dict[str, Any] = {}
    if file is None:
        options = _SERVER | ({} if password is None else {"password": password.get_secret_value()})
    storage = RDBStorage(
        url,
        # The password goes past the URL, which Optuna keeps as text. A server may close what was idle for a trial.
        {"connect_args": options, "pool_pre_ping": file is None},
        skip_table_creation=existing,
    )
    weakref.finalize(storage, storage.engine.dispose)  # connections are closed with it, however a command ends
    if file is not None:
        _write_ahead(storage)
    return storage


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
    except FAILURES as error:
        where = settings.storage or f"{settings.run_dir / DATABASE}"
        said = reason(error, settings.storage_password)
        raise StorageLost(f"the storage {where} was lost: {said}; the same command continues") from error


def refuse_another_storage(settings: StudySettings, stored: StudySettings | None) -> None:
    """Raise if a study would go on in another storage than it began with.

    Args:
        settings: Of the search.
        stored: What the run directory holds, if anything.

    Raises:
        InputError: Naming both.
    """
    if stored is not None and stored.storage != settings.storage:
        held = f"the storage {stored.storage}" if stored.storage else f"its own {DATABASE}"
        given = f"--storage {settings.storage}" if settings.storage else "no --storage"
        raise InputError(
            f"{settings.run_dir} holds a study that is kept in {held}, but got {given}: continue it where it is"
        )


def reach_storage(
    settings: StudySettings, *, begun: bool, tell: Callable[[str], None] = _unheard
) -> PatientStorage | None:
    """The storage of a search, before anything is timed; None where it is the run directory's and not there yet.

    Args:
        settings: Of the search.
        begun: Whether it holds shared weights.
        tell: Hears in one line of what was mended, and of each wait.

    Raises:
        InputError: If it cannot be used, or holds another run directory's study of the same name.
    """
    folder = settings.run_dir
    if settings.storage is None:
        return patient(open_storage(settings, folder), settings, tell) if (folder / DATABASE).exists() else None
    storage = patient(open_storage(settings, folder, tell=tell), settings, tell)
    study = find_study(storage, settings.study_name)
    if study is not None and study.get_trials(deepcopy=False) and not begun:
        raise InputError(
            f"the storage holds a study {settings.study_name} with trials already, but {folder} has no shared weights "
            "of it: begin another with --study NAME, or continue that one in its own run directory with --out DIR"
        )
    return storage
