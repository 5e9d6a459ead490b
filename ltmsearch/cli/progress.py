"""Progress of a command on the terminal: one bar per phase with the time left, and notes between the bars."""

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import printable
from ltmsearch.io.console_tables import print_line

_log = logging.getLogger(__name__)

SECONDS_PER_LINE = 30.0
"""Interval of progress lines where no bar can be drawn."""


class Notes(Callbacks):
    """Prints notes, but no progress."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def note(self, line: str) -> None:
        """See `Callbacks`."""
        print_line(self.console, line)


class ProgressBars(Notes):
    """Draws bars on a terminal; elsewhere, such as in a log file, prints a line now and then."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
        )
        # Asked for colours, rich takes a file for a terminal.
        self._draws = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
        self._task: TaskID | None = None
        self._name = ""
        self._total = 0
        self._last_line = 0.0

    def phase(self, name: str, total: int) -> None:
        """See `Callbacks`."""
        self._name, self._total, self._last_line = name, total, 0.0
        _log.info("%s%s", name, f": {total} parts" if total else "")
        if not self._draws:
            return
        if self._task is None:
            self._progress.start()
        elif not self._progress.tasks[-1].finished:
            self._progress.stop_task(self._task)
        self._task = self._progress.add_task(name, total=total or None, status="")

    def advance(self, done: int, status: str = "") -> None:
        """See `Callbacks`."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, status=printable(status))
        elif time.monotonic() - self._last_line > SECONDS_PER_LINE or done == self._total:
            self._last_line = time.monotonic()
            self.note(f"{self._name}: {done} of {self._total} {status}".rstrip())

    def close(self) -> None:
        """See `Callbacks`."""
        if self._task is not None:
            self._progress.stop()
