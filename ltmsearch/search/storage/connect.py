"""Open the storage of a study: an SQLite file, a PostgreSQL server, or a journal."""

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import StudySettings
from ltmsearch.config.storage_url import database_file, file_url, journal_file
from ltmsearch.errors import InputError, StorageLost
from ltmsearch.search.storage.errors import STORAGE_ERRORS, describe
from ltmsearch.search.storage.journal import open_journal
from ltmsearch.search.storage.retry import RetryingStorage
from ltmsearch.search.storage.studies import find_study

DATABASE, ARTIFACTS = "study.db", "artifacts"
"""Names in a run directory: the database, and the folder of the files that the dashboard shows for trials."""
_SERVER = {
    "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}  # fmt: skip
"""libpq's limits for a server that does not answer, in seconds, and the last one in milliseconds."""
_NO_PASSWORD = " (no password was given: put it into --storage of `run`, PGPASSWORD or ~/.pgpass)"


def open_storage(
    settings: StudySettings, folder: Path, *, existing: bool = False, callbacks: Callbacks | None = None
) -> BaseStorage:
    """Open the storage of a study; with `existing`, nothing is created.

    Raises:
        InputError: If the storage cannot be reached or used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings repeat errors that are reported in one line
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    url = settings.storage or file_url(folder / DATABASE)
    journal, database, password = journal_file(url), database_file(url), settings.storage_password
    file = journal or database
    if existing and file is not None and not file.is_file():
        raise InputError(f"{folder} must be the run directory of a study that has started, but {file} is missing")
    storage: BaseStorage
    try:
        if journal is not None:
            storage = open_journal(journal, existing=existing, callbacks=callbacks or Callbacks())
        else:
            storage = _open_database(url, settings, existing=existing)
        optuna.get_all_study_names(storage)
    except ImportError:
        raise InputError(f"{url} needs its driver: pip install 'ltmsearch[postgres]'") from None
    except (*STORAGE_ERRORS, RuntimeError) as error:
        advice = _NO_PASSWORD if file is None and password is None else ""
        raise InputError(f"the storage {url} cannot be used: {describe(error, password)}{advice}") from None
    return storage


def _open_database(url: str, settings: StudySettings, *, existing: bool) -> RDBStorage:
    is_file, password = database_file(url) is not None, settings.storage_password
    options: dict[str, Any] = {}
    if not is_file:
        options = _SERVER | ({} if password is None else {"password": password.get_secret_value()})
    storage = RDBStorage(
        url,
        # Optuna keeps the URL as text, so the password is passed separately. A server may close idle connections.
        {"connect_args": options, "pool_pre_ping": not is_file},
        skip_table_creation=existing,
    )
    weakref.finalize(storage, storage.engine.dispose)  # closes the connections however a command ends
    if is_file:
        _use_write_ahead_log(storage)
    return storage


def _use_write_ahead_log(storage: RDBStorage) -> None:
    """Switch SQLite to its write-ahead log: fewer waits for the disk, and readers never block the writer."""

    @event.listens_for(storage.engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections made before the listener


@contextmanager
def reraise_storage_errors(settings: StudySettings) -> Iterator[None]:
    """Turn any error of a study's storage into `StorageLost`, which has one line."""
    try:
        yield
    except STORAGE_ERRORS as error:
        where = settings.storage or f"{settings.run_dir / DATABASE}"
        message = describe(error, settings.storage_password)
        raise StorageLost(f"the storage {where} was lost: {message}; the same command continues") from error


def refuse_other_storage(settings: StudySettings, stored: StudySettings | None) -> None:
    """Raise `InputError` if a study would continue in another storage than it started in."""
    if stored is not None and stored.storage != settings.storage:
        expected = f"the storage {stored.storage}" if stored.storage else f"its own {DATABASE}"
        given = f"--storage {settings.storage}" if settings.storage else "no --storage"
        raise InputError(f"the study in {settings.run_dir} must continue in {expected}, but got {given}")


def connect_storage(settings: StudySettings, *, started: bool, callbacks: Callbacks) -> RetryingStorage | None:
    """Open the storage of a search; None for a database in the run directory that does not exist yet.

    Raises:
        InputError: If the storage cannot be used, or contains the study of another run directory under the same name.
    """
    folder = settings.run_dir
    if settings.storage is None and not (folder / DATABASE).exists():
        return None
    storage = RetryingStorage(open_storage(settings, folder, callbacks=callbacks), settings, callbacks)
    study = find_study(storage, settings.study_name) if settings.storage is not None else None
    if study is not None and study.get_trials(deepcopy=False) and not started:
        raise InputError(
            f"the storage contains a study {settings.study_name} with trials already, but {folder} has no shared "
            "weights of it: start another with --study NAME, or continue that one in its own run directory with "
            "--out DIR"
        )
    return storage
