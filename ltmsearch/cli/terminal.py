"""Terminal output: results on standard output; progress, notes, logs and errors on standard error."""

import errno
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer
from pydantic_core import to_json
from rich.console import Console

from ltmsearch.callbacks import Callbacks
from ltmsearch.cli.signals import TERMINATED, Terminated
from ltmsearch.errors import InputError, LtmsearchError, printable, without_passwords
from ltmsearch.io.console_tables import print_line

_log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LIBRARIES = ("ltmsearch", "torch", "torchvision", "timm", "optuna", "numpy", "pandas", "plotly", "onnx", "onnxruntime")
"""Libraries whose versions are logged."""


def is_main_process() -> bool:
    """Whether this process prints: the first of those that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def results() -> Console:
    """Console for results: coloured on a terminal, plain in a file or a pipe."""
    return Console()


def notes() -> Console:
    """Console for everything else; silent in all but the main process."""
    return Console(stderr=True, quiet=not is_main_process())


def print_json(document: Any) -> None:
    """Print a result as one JSON document, with null for NaN and infinities."""
    typer.echo(to_json(document, indent=2, inf_nan_mode="null").decode())


class _OneLine(logging.Formatter):
    """Escapes what would break or colour the line of a message; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class _ConsoleHandler(logging.Handler):
    """Prints through the console that draws the progress bars, so that lines appear above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG)
        self.console = console
        pattern = "{asctime}.{msecs:03.0f} {levelname:<5} {name}: {message}"
        self.setFormatter(_OneLine(pattern, "%Y-%m-%d %H:%M:%S", style="{"))

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True, style="dim")


@contextmanager
def logging_to(console: Console) -> Iterator[None]:
    """Print the records of ltmsearch's loggers to a console inside the `with` block."""
    logger, handler, start = logging.getLogger("ltmsearch"), _ConsoleHandler(console), time.monotonic()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    _log.info("%s", without_passwords(shlex.join(["ltmsearch", *sys.argv[1:]])))
    _log.info("in %s; %s, %s CPUs, process %s", os.getcwd(), platform.platform(), os.cpu_count(), os.getpid())
    _log.info("Python %s, %s", platform.python_version(), ", ".join(map(_with_version, LIBRARIES)))
    try:
        yield
    finally:
        _log.info("finished after %.1f s", time.monotonic() - start)
        logger.removeHandler(handler)
        logger.setLevel(level)


def _with_version(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"


@contextmanager
def watched(*, quiet: bool, verbose: bool, next_step: Callable[[], str]) -> Iterator[Callbacks]:
    """Run the long part of a command with progress output, and report an interruption in one line.

    Raises:
        InputError: If `quiet` and `verbose` are both set.
    """
    if quiet and verbose:
        raise InputError("--quiet and --verbose cannot both be given")
    from ltmsearch.cli.progress import ProgressBars

    console = notes()
    callbacks = Callbacks() if quiet else ProgressBars(console)
    with logging_to(console) if verbose else nullcontext():
        try:
            yield callbacks
        except (KeyboardInterrupt, Terminated) as interrupt:
            callbacks.close()
            terminated = isinstance(interrupt, Terminated)
            print_line(console, f"{'terminated' if terminated else 'stopped'}; {next_step()}")
            raise typer.Exit(TERMINATED if terminated else 1) from None
        except OSError as error:
            _log.debug("raised here:", exc_info=True)
            if error.errno in DISK_FULL:
                raise LtmsearchError(f"{error.strerror}: {error.filename}; {next_step()}") from error
            raise
        finally:
            callbacks.close()
