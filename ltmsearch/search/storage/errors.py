"""Errors of storages: which ones are temporary, and their message in one line without the password."""

import errno
import sqlite3

from optuna.exceptions import StorageInternalError
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

STORAGE_ERRORS = (SQLAlchemyError, StorageInternalError)
"""Exceptions that Optuna's storages raise when the database fails; `JournalError` is one of them."""

_TEMPORARY_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
"""SQLite's result codes for a file that another process has locked."""
_TEMPORARY_POSTGRES = ("08", "40", "53300", "55P03", "57P")
"""Prefixes of PostgreSQL's codes: connection lost, deadlock, too many connections, locked, shutting down."""
_PERMANENT_POSTGRES = ("authentication", "no password", "does not exist", "permission denied", "pg_hba.conf", "ssl")
"""Parts of the messages of refused connections, which have no code, that a retry cannot change."""
_PERMANENT_FILE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
"""File errors that a retry cannot change."""


class JournalError(StorageInternalError):
    """A journal could not be read or written."""

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary

    @classmethod
    def from_os_error(cls, error: OSError) -> "JournalError":
        return cls(f"{error.strerror or error}: {error.filename}", temporary=error.errno not in _PERMANENT_FILE)


def describe(error: Exception, password: SecretStr | None) -> str:
    """The message of a storage error in one line, with every occurrence of the password masked."""
    cause = _root_cause(error)
    text = (str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(error).__name__])[0].strip()
    return text.replace(password.get_secret_value(), "***") if password is not None else text


def is_temporary(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server restarts, another process has locked the file, …"""
    cause = _root_cause(error)
    if isinstance(cause, JournalError):
        return cause.temporary
    if isinstance(cause, PoolTimeout):
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if (code := getattr(cause.orig, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in _TEMPORARY_SQLITE  # the higher bytes are details
    code = getattr(cause.orig, "sqlstate", None) or getattr(cause.orig, "pgcode", None)  # psycopg, psycopg2
    if code:
        return code.startswith(_TEMPORARY_POSTGRES)
    refused = any(words in str(cause.orig).lower() for words in _PERMANENT_POSTGRES)
    return cause.connection_invalidated or (isinstance(cause, OperationalError | InterfaceError) and not refused)


def _root_cause(error: BaseException) -> BaseException:
    if isinstance(error, StorageInternalError) and not isinstance(error, JournalError) and error.__cause__:
        return _root_cause(error.__cause__)
    # After an error Optuna reads the trials again, on a connection that the error has made useless.
    if isinstance(error, PendingRollbackError) and isinstance(error.__context__, DBAPIError):
        return error.__context__
    return error
