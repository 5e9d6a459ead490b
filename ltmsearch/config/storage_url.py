"""URLs of storages, without their passwords, which are used but never written."""

import os
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ltmsearch.errors import InputError

FORMS = "postgresql://USER@HOST/DATABASE, sqlite:///FILE or journal:///PATH/FILE"
_JOURNAL = "journal://"


class StorageURL(NamedTuple):
    """A URL for SQLAlchemy without a password, and the password that it contained."""

    url: str
    password: str | None


def parse_storage_url(given: str) -> StorageURL:
    """Parse the URL that a user gives. Paths become absolute, since commands run in different folders.

    Raises:
        InputError: If it is not a supported URL. The message never quotes it, as it may contain a password anywhere.
    """
    if given.startswith(_JOURNAL):
        return StorageURL(_journal(given.removeprefix(_JOURNAL)), None)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise InputError(f"--storage must be a URL such as {FORMS}") from None
    kind, _, driver = url.drivername.partition("+")
    if kind == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise InputError("--storage must name a file after sqlite:, as in sqlite:///FILE")
        return StorageURL(file_url(Path(url.database)), None)
    if kind not in ("postgres", "postgresql"):
        raise InputError(f"--storage must be {FORMS}, but got a URL that starts with {kind}:")
    misplaced = any(part and "@" in part for part in (url.host, url.database))
    if misplaced or any("password" in name for name in url.query):
        raise InputError(
            "--storage must contain its password between the user name and the @, with characters such as @ written as "
            "%40, or no password"
        )
    if not url.database:
        raise InputError(f"--storage must name the database, as in {FORMS}, but ends after the host")
    name = f"postgresql+{driver or 'psycopg'}"
    bare = URL.create(name, url.username, host=url.host, port=url.port, database=url.database, query=url.query)
    return StorageURL(bare.render_as_string(hide_password=False), url.password)


def file_url(path: Path) -> str:
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()


def journal_file(url: str) -> Path | None:
    """The file of a journal, None for a database."""
    return Path(url.removeprefix(_JOURNAL)) if url.startswith(_JOURNAL) else None


def database_file(url: str) -> Path | None:
    """The file of an SQLite database, None for other storages."""
    if url.startswith(_JOURNAL):
        return None
    parsed = make_url(url)
    return Path(parsed.database) if parsed.drivername.startswith("sqlite") and parsed.database else None


def _journal(path: str) -> str:
    """Links are not resolved: machines that share a disk may reach it through different ones."""
    if not path.startswith("/") or not path.strip("/"):
        raise InputError("--storage must name an absolute path after journal:, as in journal:///shared/studies.log")
    return f"{_JOURNAL}/{os.path.normpath(path).lstrip('/')}"
