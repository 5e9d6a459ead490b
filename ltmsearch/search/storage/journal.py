"""Studies in a journal: a file of JSON lines on a shared disk, to which many machines append."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from ltmsearch.callbacks import Callbacks
from ltmsearch.search.storage.errors import JournalError

_log = logging.getLogger(__name__)

_LINE_START = b'{"op_code":'
"""First bytes of every line."""


class Journal(BaseJournalBackend):
    """Optuna's journal file, safe against writers that were killed in the middle of a line.

    Optuna appends to the half line of such a writer, and both are lost; here the next writer removes it first. The
    lock works on NFS from version 3 on; one that a killed process left is broken after 30 s.
    """

    def __init__(self, path: Path, callbacks: Callbacks | None = None) -> None:
        path.touch()
        self._path, self._callbacks = path, callbacks or Callbacks()
        self._lock = JournalFileOpenLock(str(path))
        self._ends = [0]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._ends[log_number_from])
                for number, line in enumerate(file, log_number_from + 1):
                    if not line.endswith(b"\n") and _is_start_of_record(line):
                        break  # its writer is not done
                    if number == len(self._ends):
                        self._ends.append(self._ends[-1] + len(line))
                    yield _parse(line, f"{self._path} is not a journal, or is damaged: line {number} is not a record")
        except OSError as error:
            raise JournalError.from_os_error(error) from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write all of the records or none."""
        rest = memoryview("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
        with self.repaired() as file:
            end = os.fstat(file).st_size
            try:
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            except BaseException:
                os.ftruncate(file, end)
                raise

    @contextmanager
    def repaired(self) -> Iterator[int]:
        """The descriptor of the locked file, without half a line at its end.

        Raises:
            JournalError: If the file cannot be written, or is not a journal.
        """
        try:
            self._lock.acquire()
            try:
                # Without Python's buffer, which would write its rest again when it is closed.
                with os.fdopen(os.open(self._path, os.O_RDWR | os.O_APPEND), "r+b", buffering=0) as file:
                    self._remove_half_line(file)
                    yield file.fileno()
            finally:
                try:
                    self._lock.release()
                except RuntimeError:
                    _log.warning("another process broke the lock of %s, which was held for 30 s", self._path)
        except OSError as error:
            raise JournalError.from_os_error(error) from error

    def _remove_half_line(self, file: RawIOBase) -> None:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(0)
        tail = file.readall().rpartition(b"\n")[2]
        if not _is_start_of_record(tail):
            raise JournalError(f"{self._path} is not a journal: its last line is not a journal's")
        file.truncate(size - len(tail))  # one step: a reader sees the half line or does not
        os.fsync(file.fileno())
        self._callbacks.note(
            f"removed half a line of {len(tail)} bytes at the end of {self._path}: its writer was killed"
        )


def open_journal(path: Path, *, existing: bool, callbacks: Callbacks) -> JournalStorage:
    """Open the studies in a journal; with `existing`, nothing is created or repaired.

    Raises:
        JournalError: If the file cannot be used.
    """
    if not path.parent.is_dir():
        raise JournalError(f"there is no folder {path.parent}")
    if not existing and not os.access(path.parent, os.W_OK | os.X_OK):
        raise JournalError(f"its lock cannot be created in {path.parent}: Permission denied")
    try:
        journal = Journal(path, callbacks)
        storage = JournalStorage(journal)
        if not existing:
            _note_stale_lock(Path(f"{path}.lock"), callbacks)
            with journal.repaired():
                pass
        return storage
    except OSError as error:
        raise JournalError.from_os_error(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise JournalError(f"{path} is damaged: its records contradict each other") from error


def _note_stale_lock(lock: Path, callbacks: Callbacks) -> None:
    """Explain the wait for the lock of a killed process. Live processes hold it for milliseconds."""
    for _ in range(10):
        if not lock.exists():
            return
        time.sleep(0.1)
    callbacks.note(f"waiting for {lock}, which expires after 30 s if a killed process left it")


def _parse(line: bytes, message: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        raise JournalError(message) from None
    if not (isinstance(record, dict) and isinstance(record.get("op_code"), int) and "worker_id" in record):
        raise JournalError(message)
    return record


def _is_start_of_record(tail: bytes) -> bool:
    text = tail.rstrip(b"\0")  # some file systems append zeros when the power fails
    return text.startswith(_LINE_START) or _LINE_START.startswith(text)
