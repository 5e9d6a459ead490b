"""Acquire, keep and lose the right to drive a study."""

import logging
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease.driver_file import DRIVER_FILE, DriverFile
from ltmsearch.search.lease.holder import Holder, Record

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
WATCHED_HEARTBEATS = 2.5
"""A driver on another host has ended if it misses this many heartbeats."""
ATTEMPTS = 10
"""To write a record into a folder that other drivers remove."""


class RecordStore(Protocol):
    """A place that records the holder of a lease: a run directory or a storage."""

    subject: str
    """For messages."""

    def read(self) -> Record | None: ...
    def write(self, text: str) -> None: ...

    def beat(self, text: str) -> None:
        """Record a heartbeat if this text is still recorded."""

    def clear(self, text: str) -> None:
        """Remove this text if it is still recorded, and release the lock."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other drivers from writing, as far as possible."""


class Lease:
    """The right to drive one study, for the duration of the `with` block.

    A thread sends heartbeats meanwhile; errors in it never end the run.
    """

    def __init__(self, folder: Path, *, takeover: bool = False, callbacks: Callbacks | None = None) -> None:
        self.holder = Holder.this_process(folder / DRIVER_FILE)
        self._text = self.holder.model_dump_json(indent=1) + "\n"
        self._takeover, self._callbacks = takeover, callbacks or Callbacks()

        self._stores: list[RecordStore] = []
        self._taken_from: list[Holder | None] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=HEARTBEAT_SECONDS)
        for store in self._stores:
            with suppress(Exception):  # a record that remains names a lease that has ended
                store.clear(self._text)

    def acquire(self, store: RecordStore) -> None:
        """Record this process as the driver, unless it is already; raises `InputError` if another driver is running."""
        if store not in self._stores:
            self._stores.append(store)
        attempts = 0
        while not self._holds(store):
            attempts += 1
            found = store.read()
            if found is not None:
                self._refuse_running(store, found)
            try:
                with store.exclusive():
                    now = store.read()
                    if (now and now.text) == (found and found.text):
                        store.write(self._text)
            except OSError as error:
                # Another driver may just have removed the empty folder; some file systems give no other answer.
                if isinstance(error, FileNotFoundError) and attempts < ATTEMPTS:
                    continue
                raise InputError(f"{store.subject} cannot be written: {error.strerror or error}") from error

    def confirm(self) -> None:
        """Check that this process still holds the lease. Call it before each write that must not happen twice.

        Raises:
            LeaseLost: If it does not.
        """
        for store in self._stores:
            found = store.read()
            if found is None:
                raise LeaseLost(
                    f"{store.subject} no longer names this process as its driver, so another one may have taken over: "
                    "this one ends and writes nothing more; the same command continues"
                )
            if found.text != self._text:
                raise LeaseLost(f"{store.subject} was taken over by {found}: this driver ends and writes nothing more")

    def _holds(self, store: RecordStore) -> bool:
        found = store.read()
        return found is not None and found.text == self._text

    def _refuse_running(self, store: RecordStore, found: Record) -> None:
        holder = found.holder
        ended = None if holder is None else holder.has_ended()
        if ended:
            _log.info("%s was driven by %s, which has ended", store.subject, found)
        elif self._takeover:
            if holder is None or holder not in self._taken_from:  # it may be in two stores
                self._callbacks.note(f"taking {store.subject} over from {found}, which ends before its next write")
            self._taken_from.append(holder)
        elif ended is None:
            self._watch(store, found)
        else:
            raise _refusal(store, found)

    def _watch(self, store: RecordStore, found: Record) -> None:
        """Return if a driver on another host sends no heartbeat; raises `InputError` if it sends one."""
        seconds = WATCHED_HEARTBEATS * HEARTBEAT_SECONDS
        self._callbacks.note(
            f"{store.subject} was driven by {found}, which cannot be checked from here: waiting {seconds:.0f} s for a "
            "heartbeat"
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.5, seconds / 10))
            now = store.read()
            if now is None:
                return
            if now != found:
                raise _refusal(store, now)

    def _send_heartbeats(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            for store in list(self._stores):
                try:
                    store.beat(self._text)
                except Exception as error:
                    _log.debug("no heartbeat in %s: %s", store.subject, type(error).__name__)


def current_driver(folder: Path) -> str | None:
    """The driver of a run directory that is running, or may be running on another host."""
    found = DriverFile(folder).read()
    if found is None or (found.holder is not None and found.holder.has_ended()):
        return None
    return str(found)


def _refusal(store: RecordStore, found: Record) -> InputError:
    seconds = max(0.0, time.time() - found.heartbeat)
    ago = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    return InputError(
        f"{store.subject} is driven by {found} (last heartbeat {ago} ago): wait until it ends, or end it by adding "
        "--takeover to this command"
    )
