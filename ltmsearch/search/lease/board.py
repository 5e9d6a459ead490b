"""Where a driver's name is put up: the file in a run directory. A study in a shared storage has a board of its own."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from ltmsearch.errors import InputError
from ltmsearch.io.files import write_atomic
from ltmsearch.search.lease.owner import Owner

DRIVER = "driver.json"
"""Name of the file in a run directory while a driver is at work there."""


class Posted(NamedTuple):
    """What hangs on a board."""

    text: str
    """As it is written; it stays as it is while one driver holds the lease."""
    sign: str
    """Another one after every sign of life."""
    age: float
    """Seconds since the last sign of life, by two clocks that may differ: to be told, not to be trusted."""

    @property
    def owner(self) -> Owner | None:
        """Who put it up, None where the text is damaged."""
        try:
            return Owner.model_validate_json(self.text)
        except ValidationError:
            return None

    @property
    def last_seen(self) -> str:
        """How long ago the last sign of life was, for people."""
        seconds = max(0.0, self.age)
        for unit, size in (("h", 3600), ("min", 60)):
            if seconds >= 2 * size:
                return f"{seconds / size:.0f} {unit} ago"
        return f"{seconds:.0f} s ago"


class Board(Protocol):
    """Where drivers of one study put up who they are."""

    @property
    def what(self) -> str:
        """What is driven, as a message begins with it."""

    def read(self) -> Posted | None:
        """What hangs there."""

    def post(self, owner: Owner, *, instead_of: Posted | None) -> bool:
        """Put up an owner in the place of another or of none. False if something else hangs there by then."""

    def beat(self, owner: Owner) -> None:
        """Give a sign of life, if the owner hangs there still."""

    def remove(self, owner: Owner) -> None:
        """Take the owner down, if it hangs there still."""


class FileBoard:
    """`driver.json` in a run directory. Its text is written once; a sign of life is a new time of the file.

    So a sign of life that comes late never overwrites another driver's name.

    Args:
        folder: The run directory. It is made with the file, and goes with it if nothing else came into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / DRIVER
        self._made: list[Path] = []

    @property
    def what(self) -> str:
        """See `Board`."""
        return str(self.folder)

    def read(self) -> Posted | None:
        """See `Board`."""
        try:
            text = self._path.read_bytes().decode(errors="replace")
            changed = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Posted(text, f"{text} {changed.st_mtime_ns}", time.time() - changed.st_mtime)

    def post(self, owner: Owner, *, instead_of: Posted | None) -> bool:
        """See `Board`.

        Raises:
            InputError: If the run directory cannot be written.
        """
        text = owner.model_dump_json(indent=1) + "\n"
        try:
            self._made += [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone_in(self.folder):
                there = self.read()
                if there is not None:
                    if instead_of is None or there.text != instead_of.text:
                        return False
                    write_atomic(self._path, text)
                    return True
                return instead_of is None and self._create(text)
        except FileNotFoundError:  # another driver made the folder, left it empty, and took it away just now
            return False
        except OSError as error:
            raise InputError(f"the run directory {self.folder} cannot be written: {error.strerror or error}") from error

    def _create(self, text: str) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        return True

    def beat(self, owner: Owner) -> None:
        """See `Board`."""
        if self._shows(owner):
            os.utime(self._path)

    def remove(self, owner: Owner) -> None:
        """See `Board`."""
        with _alone_in(self.folder):
            if self._shows(owner):
                self._path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for path in self._made:
                path.rmdir()

    def _shows(self, owner: Owner) -> bool:
        there = self.read()
        return there is not None and there.owner == owner


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other drivers from the board meanwhile; the lock goes with the process, however that ends.

    Where a file system has no such locks, of two that take a lease at the same moment the last one holds it, and the
    other sees so when it confirms its own.
    """
    descriptor = None
    with suppress(OSError, ImportError):
        import fcntl  # not on Windows

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
