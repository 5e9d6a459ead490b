"""What a storage says when it fails: in one line, without the password, and whether waiting can help."""

import errno
import sqlite3

from optuna.exceptions import StorageInternalError
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

FAILURES = (SQLAlchemyError, StorageInternalError)
"""What Optuna's storages raise when the database fails; a journal's own errors are made such, too."""

_SQLITE_PASSES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
"""SQLite's result codes for a file that another process has locked."""
_POSTGRES_PASSES = ("08", "40", "53300", "55P03", "57P")
"""Beginnings of PostgreSQL's codes: connection lost, deadlock, too many connections, locked, shutting down."""
_POSTGRES_STAYS = ("authentication", "no password", "does not exist", "permission denied", "pg_hba.conf", "ssl")
"""In messages of connections that a server refuses, which have no code: what it will refuse again."""
_FILE_STAYS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
"""Errors of a file that stay until somebody does something about them."""


class JournalFailed(StorageInternalError):
    """A journal could not be read or written.

    Args:
        message: In one line.
        passes: Whether waiting can help.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes

    @classmethod
    def of(cls, error: OSError) -> "JournalFailed":
        """Of what the file system says."""
        return cls(f"{error.strerror or error}: {error.filename}", passes=error.errno not in _FILE_STAYS)


def reason(error: Exception, password: SecretStr | None) -> str:
    """What a storage said, in one line.

    Args:
        error: One of `FAILURES`, or what Optuna raises of its own.
        password: Left out of the line, wherever it stands in it.
    """
    cause = _cause(error)
    said = (str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(error).__name__])[0].strip()
    return said.replace(password.get_secret_value(), "***") if password is not None else said


def may_pass(error: Exception) -> bool:
    """Whether the same call may succeed in a while: the server restarts, another process has locked the file, …"""
    cause = _cause(error)
    if isinstance(cause, JournalFailed):
        return cause.passes
    if isinstance(cause, PoolTimeout):
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if (code := getattr(cause.orig, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in _SQLITE_PASSES  # above the first byte stands a detail
    code = getattr(cause.orig, "sqlstate", None) or getattr(cause.orig, "pgcode", None)  # psycopg, psycopg2
    if code:
        return code.startswith(_POSTGRES_PASSES)
    if cause.connection_invalidated:
        return True
    refused = any(words in str(cause.orig).lower() for words in _POSTGRES_STAYS)
    return isinstance(cause, OperationalError | InterfaceError) and not refused


def _cause(error: BaseException) -> BaseException:
    """What the database itself said."""
    if isinstance(error, StorageInternalError) and not isinstance(error, JournalFailed) and error.__cause__:
        return _cause(error.__cause__)
    # Optuna reads trials once more after an error, on a connection that the error has made useless.
    if isinstance(error, PendingRollbackError) and isinstance(error.__context__, DBAPIError):
        return error.__context__
    return error
