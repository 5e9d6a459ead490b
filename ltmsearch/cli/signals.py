"""Signals that end a command: SIGTERM always, and Ctrl-C unless the shell protects a background job from it."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, by the shells' convention."""
REPEATED_SECONDS = 5.0
"""A SIGTERM this soon after another is the same request: `timeout`, for one, sends two."""


class Terminated(SystemExit):
    """SIGTERM was received, as before a machine is taken away; the command cleans up and ends."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def ending_signals() -> Iterator[None]:
    """Raise `Terminated` inside the `with` block at SIGTERM, and `KeyboardInterrupt` at Ctrl-C.

    Both also where this process was started with these signals ignored or blocked; Ctrl-C with one exception, see
    `_terminal_is_ours`.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        yield
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and _terminal_is_ours():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    last = -math.inf

    def terminate(*_: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        # A later one counts: the clean-up may hang, or the first exception was raised in a destructor and lost.
        if last - before > REPEATED_SECONDS:
            raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not what was inherited: the end of a process may hang, too


def _terminal_is_ours() -> bool:
    """Whether Ctrl-C in the terminal of standard input is meant for this process."""
    # `nohup ltmsearch run &` in a script: the shell cannot move the job to a process group of its own, so that the
    # terminal's Ctrl-C reaches it too. POSIX therefore has the shell ignore SIGINT for it, on purpose, and connect its
    # standard input to /dev/null. Only this tells it from a command that merely inherits an ignored SIGINT.
    try:
        return sys.stdin is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # no terminal, another one than that of this session, or closed
        return False
