"""Taking, keeping and losing the right to drive a study."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ltmsearch.errors import InputError, LeaseLost
from ltmsearch.search.lease.board import DRIVER, Board, FileBoard, Posted
from ltmsearch.search.lease.owner import Owner

_log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""Between two signs of life."""
WATCHED_BEATS = 2.5
"""A driver whose process cannot be asked has ended if it gives no sign of life for as many times that."""
REMEDY = "wait until it ends, or end it by continuing here with --takeover"


class Lease:
    """The right to drive one study, for as long as the `with` block lasts.

    A thread gives signs of life meanwhile; whatever fails in it never ends the run.

    Args:
        takeover: Take it from a driver that is at work.
        tell: Hears in one line of what takes long or happens to another driver.
        beat_seconds: Between two signs of life.
    """

    def __init__(
        self, *, takeover: bool = False, tell: Callable[[str], None] = _log.info, beat_seconds: float | None = None
    ) -> None:
        self.owner = Owner.this_process()
        self._takeover = takeover
        self._tell = tell
        self._beat_seconds = BEAT_SECONDS if beat_seconds is None else beat_seconds
        self._boards: list[Board] = []
        self._taken_from: list[Owner | None] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._give_signs_of_life, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=self._beat_seconds)
        for board in self._boards:
            with suppress(Exception):  # what stays there names a lease that has ended
                board.remove(self.owner)
        self.owner.end()

    def hold(self, board: Board) -> None:
        """Put this process up on a board, unless it hangs there already.

        Raises:
            InputError: If another driver is at work.
        """
        there = board.read()
        while there is None or there.owner != self.owner:
            if there is not None:
                self._refuse_if_at_work(board, there)
            if board.post(self.owner, instead_of=there):
                break
            there = board.read()
        if board not in self._boards:
            self._boards.append(board)

    def confirm(self) -> None:
        """Make sure that this process still holds the lease: before anything is written that two must not write.

        Raises:
            LeaseLost: If it does not.
        """
        for board in self._boards:
            there = board.read()
            if there is None:
                raise LeaseLost(
                    f"{board.what} no longer says that this process drives it, so another one may have done so: this "
                    "one ends and writes nothing more; the same command continues"
                )
            if there.owner != self.owner:
                raise LeaseLost(
                    f"{board.what} was taken over by {_named(there)}: this driver ends and writes nothing more"
                )

    def _refuse_if_at_work(self, board: Board, there: Posted) -> None:
        ended = there.owner.has_ended() if there.owner is not None else None
        if ended:
            _log.info("%s was driven by %s, which has ended", board.what, there.owner)
        elif self._takeover:
            if there.owner is None or there.owner not in self._taken_from:  # it hangs on two boards
                self._tell(f"taking {board.what} over from {_named(there)}, which ends as soon as it notices")
            self._taken_from.append(there.owner)
        elif ended is None:
            self._watch(board, there)
        else:
            raise _refusal(board, there)

    def _watch(self, board: Board, there: Posted) -> None:
        """Wait for a sign of life of a driver that may be on another machine, whose clock may differ."""
        seconds = WATCHED_BEATS * self._beat_seconds
        self._tell(
            f"{board.what} was driven by {_named(there)}, whose process cannot be seen from here: watching for "
            f"{seconds:.0f} s whether it gives a sign of life"
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.5, seconds / 10))
            now = board.read()
            if now is None:
                return
            if now.sign != there.sign:
                # It may have been put up half the first time, and by a process that can be asked.
                if now.owner is not None and now.owner.has_ended():
                    return
                raise _refusal(board, now)

    def _give_signs_of_life(self) -> None:
        while not self._over.wait(self._beat_seconds):
            for board in list(self._boards):
                try:
                    board.beat(self.owner)
                except Exception as error:
                    _log.debug("no sign of life could be given in %s: %s", board.what, type(error).__name__)


def who_drives(folder: Path) -> str | None:
    """The driver that is, as far as can be seen at once, at work in a run directory.

    Args:
        folder: The run directory.
    """
    there = FileBoard(folder).read()
    if there is None or (there.owner is not None and there.owner.has_ended()):
        return None
    return _named(there)


def _refusal(board: Board, there: Posted) -> InputError:
    return InputError(f"{board.what} is driven by {_named(there)} (last sign of life {there.last_seen}): {REMEDY}")


def _named(there: Posted) -> str:
    return str(there.owner) if there.owner is not None else f"somebody whose {DRIVER} is damaged"
