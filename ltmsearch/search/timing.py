"""Where the time of a study went: seconds of its parts, added up over every call that continued it.

`times.json` in the run directory holds one entry for each call of `ltmsearch run`: when, on what, with which versions,
and the seconds of each part. It is written again every few seconds between trials and at the end of the call, also
after Ctrl-C; a call that is killed loses what it counted since. What a call did before it had a run directory counts
too; what it took to import libraries does not.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ltmsearch.errors import InputError
from ltmsearch.io.files import read_json, write_atomic

TIMES = "times.json"
"""Name of the file in a run directory."""

SET_UP, PROFILING, WARM_UP, TRAINING = "setting up", "profiling latency", "warm-up", "training trials"
SCORING, OVERHEAD, RESCORING, TIMING = "scoring trials", "sampler, storage, checkpoints", "scoring again", "timing nets"
WRITING, ELSEWHERE = "writing results", "waiting for workers"
SAVE_SECONDS = 5.0
"""Between two times that a search saves what it counted, so that this takes no time to speak of."""
PARTS = (SET_UP, PROFILING, WARM_UP, TRAINING, SCORING, ELSEWHERE, OVERHEAD, RESCORING, TIMING, WRITING)
"""In the order in which they begin."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stint(BaseModel):
    """One call of `ltmsearch run` on a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: AwareDatetime
    """When, with the offset of the place's clock."""
    device: str
    """Hardware, number format, threads."""
    versions: dict[str, str]
    """Of Python and the libraries."""
    seconds: dict[str, Seconds]
    """Part → its wall time."""

    @property
    def total(self) -> float:
        """Seconds of all its parts."""
        return sum(self.seconds.values())


class Times(BaseModel):
    """All calls that a study was made in.

    Raises:
        InputError: Through `load`, for a file that is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Version of this format."""
    stints: tuple[Stint, ...] = ()
    """In their order."""

    @property
    def seconds(self) -> dict[str, float]:
        """Part → its wall time in all calls, in the order of `PARTS`; parts that no call had are missing."""
        known = dict.fromkeys([*PARTS, *(part for stint in self.stints for part in stint.seconds)])
        sums = {part: sum(stint.seconds.get(part, 0.0) for stint in self.stints) for part in known}
        return {part: seconds for part, seconds in sums.items() if any(part in stint.seconds for stint in self.stints)}

    @property
    def total(self) -> float:
        """Wall time of all calls, in seconds."""
        return sum(stint.total for stint in self.stints)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run directory's `times.json`; a run made before there was one has no stints.

        Raises:
            InputError: The file cannot be read, is damaged or of another version.
        """
        path = folder / TIMES
        try:
            return cls.model_validate(read_json(path))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, ValidationError):
            raise InputError(
                f"{path} must be as ltmsearch run writes it, but is damaged or of another version; without it the "
                "study goes on, and times count from then on"
            ) from None


class Clock:
    """Counts every second once, in the innermost of the parts that run; seconds outside all of them not at all."""

    def __init__(self) -> None:
        self.started = datetime.now().astimezone().replace(microsecond=0)
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = self._saved = time.perf_counter()
        self._kept: tuple[Path, Times, str, Mapping[str, str]] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside the `with` block to a part, also when it ends in an exception."""
        self._count()
        self._running.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def move(self, seconds: float, name: str) -> None:
        """Count some seconds of the part that runs to another one, at most those that it has."""
        self._count()
        running = self._running[-1]
        seconds = min(seconds, self.seconds[running])
        self.seconds[running] -= seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def keep(self, folder: Path, *, device: str, versions: Mapping[str, str]) -> None:
        """From now on `save` writes to this run directory, behind the calls that are known there.

        Args:
            folder: The run directory.
            device: Hardware, number format, threads.
            versions: Of Python and the libraries.

        Raises:
            InputError: As `Times.load`.
        """
        self._kept = folder / TIMES, Times.load(folder), device, versions

    def tick(self) -> None:
        """Save, unless that was less than `SAVE_SECONDS` ago."""
        if time.perf_counter() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is counted so far, if `keep` said where."""
        self._count()
        self._saved = self._since
        if self._kept is None:
            return
        path, earlier, device, versions = self._kept
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        stint = Stint(started=self.started, device=device, versions=dict(versions), seconds=seconds)
        times = Times(stints=(*earlier.stints, stint))
        write_atomic(path, times.model_dump_json(indent=1) + "\n")

    def leave(self) -> None:
        """Save nothing any more: another driver writes the run directory now."""
        self._kept = None

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
