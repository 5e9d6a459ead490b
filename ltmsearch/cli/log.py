"""The log of `--verbose`: what ltmsearch's modules say through Python's logging, on standard error with time stamps."""

import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from ltmsearch.errors import without_passwords

ROOT = "ltmsearch"
"""The logger above those of all modules."""
LIBRARIES = ("torch", "torchvision", "timm", "optuna", "numpy", "pandas", "plotly", "onnx", "onnxruntime")
NO_CUDA = "No CUDA runtime is found"
"""torch says so in every process of a machine that has CUDA's compiler but no GPU."""

_log = logging.getLogger(__name__)


class _ToConsole(logging.Handler):
    """Prints through the console that draws the progress bars, so that lines stand above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG)
        self.console = console
        self.setFormatter(
            logging.Formatter(
                "{asctime}.{msecs:03.0f} {levelname:<5} {name}: {message}", "%Y-%m-%d %H:%M:%S", style="{"
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, however long."""
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True, style="dim")


@contextmanager
def logged(console: Console, *, verbose: bool) -> Iterator[None]:
    """Show the log on a console while a command runs, if it is wanted.

    Args:
        console: On standard error.
        verbose: Whether it is wanted.
    """
    if not verbose:
        yield
        return
    logger, handler, start = logging.getLogger(ROOT), _ToConsole(console), time.monotonic()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    _log.info("%s", without_passwords(shlex.join(["ltmsearch", *sys.argv[1:]])))
    _log.info("in %s; %s, %s CPUs, process %s", os.getcwd(), platform.platform(), os.cpu_count(), os.getpid())
    _log.info("Python %s, %s", platform.python_version(), ", ".join(_versions()))
    try:
        yield
    finally:
        _log.info("over after %.1f s", time.monotonic() - start)
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def without_torchs_remark() -> Iterator[None]:
    """Leave `NO_CUDA` to the log of `--verbose`: on such a machine the CPU is meant, and the device is told anyway."""

    def wanted(record: logging.LogRecord) -> bool:
        return logging.getLogger(ROOT).isEnabledFor(logging.DEBUG) or not str(record.msg).startswith(NO_CUDA)

    speaker = logging.getLogger("torch.utils.cpp_extension")
    speaker.addFilter(wanted)
    try:
        yield
    finally:
        speaker.removeFilter(wanted)


def _versions() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    for library in (ROOT, *LIBRARIES):
        try:
            yield f"{library} {version(library)}"
        except PackageNotFoundError:
            yield f"{library} not installed"
