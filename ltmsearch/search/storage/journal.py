"""Studies in a journal: a file of JSON lines that many machines append to, on a disk that they share."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from ltmsearch.search.storage.errors import JournalFailed

_log = logging.getLogger(__name__)

_BEGINNING = b'{"op_code":'
"""Of every line."""
_BLOCK = 1 << 16


class Journal(JournalFileBackend):
    """Optuna's journal file, of which a process that was killed while it wrote leaves nothing that could do harm.

    Optuna appends behind the half line of such a process, and both are lost. Here whoever appends drops it first. The
    lock is the one for NFS from version 3 on; one that a killed process left is broken after 30 s.

    Args:
        path: The file; made if there is none.
        tell: Receives a note on a line that was dropped.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = _log.warning) -> None:
        super().__init__(str(path), JournalFileOpenLock(str(path)))
        self._path, self._tell = path, tell

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """See `JournalFileBackend`.

        Raises:
            JournalFailed: If the file cannot be read, or a line is no record.
        """
        try:
            yield from super().read_logs(log_number_from)
        except OSError as error:
            raise JournalFailed.of(error) from error
        except ValueError as error:
            raise JournalFailed(f"{self._path} is damaged") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """See `JournalFileBackend`. Either all of it is there afterwards, or nothing.

        Raises:
            JournalFailed: If it cannot be written, or is no journal.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            with self._locked():
                end = self._without_half_a_line()
                # Not Python's own file: it would write what is left once more when it is closed.
                descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
                try:
                    _write(descriptor, lines)
                except BaseException:
                    os.ftruncate(descriptor, end)
                    raise
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise JournalFailed.of(error) from error

    def mend(self) -> None:
        """Drop half a line at the end, if there is one.

        Raises:
            JournalFailed: If that cannot be done.
        """
        try:
            with self._locked():
                self._without_half_a_line()
        except OSError as error:
            raise JournalFailed.of(error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            try:
                self._lock.release()
            except RuntimeError:
                _log.warning("the lock of %s was broken by another process, as it was held for 30 s", self._path)

    def _without_half_a_line(self) -> int:
        """The size of the file, after half a line at its end was dropped. Only under the lock."""
        with self._path.open("r+b") as file:
            size, tail = _last_line(file)
            if not tail:
                return size
            if not _begins_a_record(tail):
                raise JournalFailed(f"{self._path} is no journal: its last line is none of a journal's")
            file.truncate(size - len(tail))  # in one step: whoever reads finds it or does not
            os.fsync(file.fileno())
        self._tell(f"dropped half a line of {len(tail)} bytes at the end of {self._path}: its writer was killed")
        return size - len(tail)


def open_journal(path: Path, *, existing: bool, tell: Callable[[str], None]) -> JournalStorage:
    """The studies in a journal.

    Args:
        path: The file.
        existing: Whether to read only: nothing is created or mended then.
        tell: Receives a note on a line that was dropped, and of a lock that is waited for.

    Raises:
        JournalFailed: If it cannot be used.
    """
    if path.exists():
        _refuse_damaged(path)
    if not path.parent.is_dir():
        raise JournalFailed(f"there is no folder {path.parent}")
    if not existing and not os.access(path.parent, os.W_OK | os.X_OK):
        raise JournalFailed(f"its lock cannot be made in {path.parent}: Permission denied")
    try:
        journal = Journal(path, tell)
        if not existing:
            _tell_of_a_lock(Path(f"{path}.lock"), tell)
            journal.mend()
        return JournalStorage(journal)
    except OSError as error:
        raise JournalFailed.of(error) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise JournalFailed(f"{path} is damaged: its records contradict each other") from error


def _tell_of_a_lock(lock: Path, tell: Callable[[str], None]) -> None:
    """Say why it takes half a minute, where a process left its lock. Others hold it for milliseconds."""
    for _ in range(10):
        if not lock.exists():
            return
        time.sleep(0.1)
    tell(f"waiting for {lock}, which goes after half a minute if a process that was killed left it")


def _refuse_damaged(path: Path) -> None:
    """Raise unless every line is a record: Optuna tells of some that are not, and passes over others."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not (_is_record(line) if line.endswith(b"\n") else _begins_a_record(line)):
                    raise JournalFailed(
                        f"{path} is no journal, or damaged: line {number} is none of a journal's; nothing was changed"
                    )
    except OSError as error:
        raise JournalFailed.of(error) from error


def _is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("op_code"), int) and "worker_id" in record


def _begins_a_record(tail: bytes) -> bool:
    """Whether this may be half a record. Behind it some file systems leave zeros when the power fails."""
    text = tail.rstrip(b"\0")
    return text.startswith(_BEGINNING) or _BEGINNING.startswith(text)


def _last_line(file: Any) -> tuple[int, bytes]:
    """The size of a file, and what stands behind its last line end."""
    size = place = file.seek(0, os.SEEK_END)
    tail = b""
    while place > 0 and b"\n" not in tail:
        step = min(_BLOCK, place)
        place = file.seek(place - step)
        tail = file.read(step) + tail
    return size, tail.rpartition(b"\n")[2]


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
