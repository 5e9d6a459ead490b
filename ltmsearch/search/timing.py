"""Time spent on each part of a study, summed over all calls that continued it.

`times.json` in the run directory has one entry per call of `ltmsearch run`: start, device, versions, and the seconds of
each part. It is written every few seconds between trials and at the end of the call, also after Ctrl-C; a killed call
loses the seconds since.
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

LOADING, SET_UP, PROFILING = "loading libraries", "setting up", "profiling latency"
PROBE, WARM_UP, SCREENING, TRAINING = "linear probe", "warm-up", "screening", "training trials"
SCORING, OVERHEAD, RESCORING, TIMING = "scoring trials", "sampler, storage, checkpoints", "scoring again", "timing nets"
WRITING, ELSEWHERE = "writing results", "waiting for workers"
SAVE_SECONDS = 5.0
"""Least seconds between two saves during a search."""
PARTS = (
    *(LOADING, SET_UP, PROFILING, PROBE, WARM_UP),
    *(SCREENING, TRAINING, SCORING, ELSEWHERE, OVERHEAD, RESCORING, TIMING, WRITING),
)
"""All parts, in the order in which they start."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Stint(BaseModel):
    """One call of `ltmsearch run` on a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: AwareDatetime
    """Local time with its UTC offset."""
    device: str
    """Hardware, number format, threads."""
    versions: dict[str, str]
    """Versions of Python and libraries."""
    seconds: dict[str, Seconds]
    """Part → wall time in seconds."""
    expected: dict[str, Seconds] = {}
    """Part → expected wall time in seconds, as announced after the set-up; empty if nothing was left to train."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Times(BaseModel):
    """All calls of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    """Version of this format."""
    stints: tuple[Stint, ...] = ()

    @property
    def seconds(self) -> dict[str, float]:
        """Part → wall time of all calls in seconds, in the order of `PARTS`; parts that did not run are missing."""
        ran = {part for stint in self.stints for part in stint.seconds}
        in_order = [*(part for part in PARTS if part in ran), *sorted(ran - set(PARTS))]
        return {part: sum(stint.seconds.get(part, 0.0) for stint in self.stints) for part in in_order}

    @property
    def total(self) -> float:
        return sum(stint.total for stint in self.stints)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `times.json` of a run directory; without the file there are no calls.

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
                f"{path} is damaged or of another version; delete it to continue the study and count times from now on"
            ) from None


class Clock:
    """Measures wall time: each second counts for the innermost running part only, and not at all outside of parts."""

    def __init__(self) -> None:
        self.started = datetime.now().astimezone().replace(microsecond=0)
        self.seconds: dict[str, float] = {}
        self._expected: dict[str, float] = {}
        self._running: list[str] = []
        self._since = self._saved = time.perf_counter()
        self._kept: tuple[Path, Times, str, Mapping[str, str]] | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the `with` block as a part, also if it raises."""
        self._count()
        self._running.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def move(self, seconds: float, name: str) -> None:
        """Move seconds from the running part to another, at most those that it has."""
        self._count()
        seconds = min(seconds, self.seconds[self._running[-1]])
        self.seconds[self._running[-1]] -= seconds
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @property
    def seconds_so_far(self) -> float:
        """Wall time of all parts."""
        self._count()
        return sum(self.seconds.values())

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Record the expected wall time of each part that is still to come, beside the time that it takes."""
        self._count()
        parts = {**self.seconds, **seconds}
        self._expected = {part: self.seconds.get(part, 0.0) + seconds.get(part, 0.0) for part in parts}

    def keep(self, folder: Path, *, device: str, versions: Mapping[str, str]) -> None:
        """Set the run directory that `save` writes to; earlier calls there are kept.

        Raises:
            InputError: If its `times.json` is damaged.
        """
        self._kept = folder / TIMES, Times.load(folder), device, versions

    def tick(self) -> None:
        """Save, unless the last save was less than `SAVE_SECONDS` ago."""
        if time.perf_counter() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the times so far, if `keep` has set a run directory."""
        self._count()
        self._saved = self._since
        if self._kept is None:
            return
        path, earlier, device, versions = self._kept
        seconds, expected = (
            {name: round(value, 3) for name, value in values.items()} for values in (self.seconds, self._expected)
        )
        stint = Stint(started=self.started, device=device, versions=dict(versions), seconds=seconds, expected=expected)
        times = Times(stints=(*earlier.stints, stint))
        write_atomic(path, times.model_dump_json(indent=1) + "\n")

    def leave(self) -> None:
        """Stop saving, as another driver writes the run directory now."""
        self._kept = None

    def _count(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
