"""What a command puts where: its result on standard output; progress, notes, logs and errors on standard error."""

import errno
import json
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from ltmsearch.cli.app import say, speaks
from ltmsearch.cli.log import logged
from ltmsearch.errors import InputError, LtmsearchError

if TYPE_CHECKING:
    from ltmsearch.callbacks import Callbacks

_log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where no more can be written."""
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, by the shells' convention."""


def results() -> Console:
    """Where a command's result is printed: coloured on a terminal, plain in a file or a pipe."""
    return Console()


def print_json(document: Any) -> None:
    """Print a result as one JSON document. What is not finite is null: JSON has no other word for it."""
    typer.echo(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as machines send it that are about to be taken away: the command ends as after Ctrl-C."""


@contextmanager
def _termination_raised() -> Iterator[None]:
    """Have the first SIGTERM raise `Terminated` inside the `with` block, and those that follow do nothing."""

    def terminate(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there can signals be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def watched(*, quiet: bool, verbose: bool, stopped: Callable[[], str]) -> Iterator["Callbacks"]:
    """The long part of a command: whoever tells of its progress, until it is over or interrupted.

    Args:
        quiet: Tell nothing.
        verbose: Log to standard error as well.
        stopped: After Ctrl-C or SIGTERM: how to go on, what is there already.

    Raises:
        InputError: If both are asked for.
    """
    if quiet and verbose:
        raise InputError("--quiet and --verbose cannot both be given")
    from ltmsearch.callbacks import Callbacks
    from ltmsearch.cli.progress import ProgressBars

    console = Console(stderr=True, quiet=not speaks())
    callbacks = Callbacks() if quiet else ProgressBars(console)
    with logged(console, verbose=verbose):
        try:
            with _termination_raised():
                yield callbacks
        except KeyboardInterrupt as interrupt:
            callbacks.close()
            terminated = isinstance(interrupt, Terminated)
            say(console, f"{'terminated' if terminated else 'stopped'}; {stopped()}")
            raise typer.Exit(TERMINATED if terminated else 1) from None
        except OSError as error:
            _log.debug("raised here:", exc_info=True)  # the error's line alone would not say
            if error.errno in FULL:
                raise LtmsearchError(f"{error.strerror}: {error.filename}; {stopped()}") from error
            raise
        finally:
            callbacks.close()
