"""Addresses of databases that keep studies, with the password apart: it is used and never written."""

import os
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ltmsearch.errors import InputError

FORMS = "postgresql://USER@HOST/DATABASE, sqlite:///FILE or journal:///PATH/FILE"
_POSTGRES = ("postgres", "postgresql")
"""Names that stand for PostgreSQL without saying by which driver."""
_JOURNAL = "journal://"


class Address(NamedTuple):
    """Where a database is."""

    url: str
    """As SQLAlchemy reads it, without a password."""
    password: str | None
    """What stood in its place, if anything did."""


def read_address(given: str) -> Address:
    """The address that a user gives; a file's becomes absolute, since commands are run from many folders.

    Raises:
        InputError: If it is none. The message never holds what was given: a password may stand anywhere in it.
    """
    if given.startswith(_JOURNAL):
        return Address(_journal(given.removeprefix(_JOURNAL)), None)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise InputError(f"--storage must be a URL such as {FORMS}") from None
    kind, _, driver = url.drivername.partition("+")
    if kind == "sqlite":
        return Address(_sqlite(url), None)
    if kind not in _POSTGRES:
        raise InputError(f"--storage must be {FORMS}, but begins with {kind}: which is not supported")
    elsewhere = [part for part in (url.host, url.database) if part and "@" in part]
    if elsewhere or any("password" in name for name in url.query):
        raise InputError(
            "--storage must hold a password between the user's name and the @ or not at all, with characters such as "
            "@ written as %40"
        )
    if not url.database:
        raise InputError(f"--storage must name the database, as in {FORMS}, but ends behind the host")
    name = f"postgresql+{driver or 'psycopg'}"
    bare = URL.create(name, url.username, host=url.host, port=url.port, database=url.database, query=url.query)
    return Address(bare.render_as_string(hide_password=False), url.password)


def file_address(path: Path) -> str:
    """The address of an SQLite file."""
    return URL.create("sqlite", database=str(path.resolve())).render_as_string()


def journal_file(url: str) -> Path | None:
    """The file of a journal, None for a database."""
    return Path(url.removeprefix(_JOURNAL)) if url.startswith(_JOURNAL) else None


def database_file(url: str) -> Path | None:
    """The file of an SQLite database, None where something else keeps the study."""
    if url.startswith(_JOURNAL):
        return None
    address = make_url(url)
    return Path(address.database) if address.drivername.startswith("sqlite") and address.database else None


def _sqlite(url: URL) -> str:
    if not url.database or url.database == ":memory:" or url.query:
        raise InputError("--storage must be the address of a file where it begins with sqlite:, as in sqlite:///FILE")
    return file_address(Path(url.database))


def _journal(path: str) -> str:
    """Its links are left as they are: machines that share a disk may reach it by different ones."""
    if not path.startswith("/") or not path.strip("/"):
        raise InputError(
            "--storage must hold the whole path of a file where it begins with journal:, as in "
            "journal:///shared/studies.log"
        )
    return f"{_JOURNAL}/{os.path.normpath(path).lstrip('/')}"
