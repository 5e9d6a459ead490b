"""The record of the driver of a run directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from ltmsearch.io.files import write_atomic
from ltmsearch.search.lease.holder import Record

DRIVER_FILE = "driver.json"
"""Name of the file in a run directory while a driver is running there."""
_descriptors: set[int] = set()
"""Open files of this process's leases."""


class DriverFile:
    """`driver.json` in a run directory: its driver keeps it locked, and a heartbeat sets its time.

    The system releases the lock however a process ends, so a killed driver is recognised at once on its own machine.
    The run directory is created with the file, and removed with it if it is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.subject = folder, folder / DRIVER_FILE, f"the run directory {folder}"
        self._created: list[Path] = []
        self._descriptor = -1

    def read(self) -> Record | None:
        try:
            return Record(self.path.read_bytes().decode(errors="replace"), self.path.stat().st_mtime)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, text: str) -> None:
        write_atomic(self.path, lambda draft: self._create(draft, text))

    def _create(self, draft: Path, text: str) -> None:
        """Write a file that is locked from the moment it exists."""
        self._descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _descriptors.add(self._descriptor)
        with suppress(OSError):  # a file system without locks: other drivers then rely on heartbeats
            lock_descriptor(self._descriptor, blocking=False)
        os.write(self._descriptor, text.encode())

    def beat(self, text: str) -> None:
        os.utime(self._descriptor)  # the file that this process created, even if another has replaced it

    def clear(self, text: str) -> None:
        try:
            with self.exclusive():
                if (found := self.read()) is not None and found.text == text:
                    self.path.unlink()
        finally:
            if self._descriptor in _descriptors:
                _descriptors.discard(self._descriptor)
                os.close(self._descriptor)
        for path in self._created:
            path.rmdir()  # ends with an error at the first one that is not empty

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self._created += [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: the last writer wins, `confirm` fails for others
                lock_descriptor(descriptor)
            yield
        finally:
            os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


# A lock lasts until all copies of its descriptor are closed, and data loaders outlive a killed driver for seconds.
os.register_at_fork(after_in_child=_close_in_child)
