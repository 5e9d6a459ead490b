"""Timing nets beside each other on a machine that is never quite quiet.

A net is timed in visits: a visit is one `torch.utils.benchmark` measurement, a few runs after two that warm up. Visits
to different nets alternate with visits to the plain net: what slows the machine for a while slows neighbours alike, and
a net's ratio to the plain net hardly feels it. Of a net is reported the median of its ratios times the plain net's
least median, which is that of the moment when the machine was quietest.

On one thread of a CPU the clock is that thread's processor time. Where nothing else runs it is the time on the wall;
where something does, the turns of others are not counted as the net's.
"""

import logging
import math
import os
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch.utils.benchmark import Timer

from ltmsearch.schedules.schedule import MergeSchedule

_log = logging.getLogger(__name__)

MIN_RUNS = 3
"""Runs of a visit that count, however long one takes."""
VISIT_SECONDS = 0.1
"""Length of a visit, as far as `MIN_RUNS` do not take longer."""
WINDOW = 3
"""Visits in a row whose median counts, where the least of medians is looked for."""
UNSTABLE = 0.02
"""Standard error of a reading, as a share of it, from which on its net is visited again."""
PER_IQR = 0.93
"""Standard error of a median of n normal numbers over their interquartile range / √n: 1.2533 / 1.349."""

Clock = Callable[[], float]


class Reading(BaseModel):
    """The latency of one net, in milliseconds per batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ms: float
    """Of the plain net the least median; of others the median of their ratios to the plain net, times that."""
    least_ms: float
    """Least median of `WINDOW` visits in a row, of this session."""
    iqr_ms: float
    """Interquartile range of all visits."""
    error: float
    """Standard error of `ms` as a share of it, from the spread over visits (of ratios, but for the plain net)."""
    visits: int
    runs: int
    """Of all visits."""
    stable: bool
    """Whether `error` is below `UNSTABLE`, at last after further visits."""


class Stage(Protocol):
    """Whoever makes nets ready to be timed."""

    keeps_all: bool
    """Whether changing between nets costs next to nothing; else each is timed to the end before the next."""

    def ready(self, schedule: MergeSchedule) -> Callable[[], object]:
        """One forward pass of a schedule's net on a batch, to be called before the next `ready`."""
        ...

    def segments(self) -> dict[str, list[float]]:
        """Milliseconds of parts of the net in each run since this was asked last, by module; may be empty."""
        ...


def clock_of(device: str, threads: int | None) -> Clock:
    """What tells the time: see the top of this module."""
    return time.thread_time if device == "cpu" and threads == 1 else timeit.default_timer


@dataclass
class _Visits:
    """What was seen of one net; an entry per visit."""

    places: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    segments: list[dict[str, float]] = field(default_factory=list)
    runs: int = 0


class Session:
    """Visits to nets of one backbone on one stage, the plain net between them.

    Args:
        stage: Makes nets ready.
        plain: The plain net's schedule.
        device: The stage's.
        plain_ms: Latency of the plain net by an earlier session on the same target. Ratios are multiplied by the lesser
            of that and this session's. None: there is none.
        threads: Of torch on the CPU.
        seed: Of the order of visits.
    """

    def __init__(
        self,
        stage: Stage,
        plain: MergeSchedule,
        *,
        device: str,
        threads: int | None,
        plain_ms: float | None = None,
        seed: int = 0,
    ) -> None:
        self._stage, self._plain, self._number = stage, plain, MIN_RUNS
        self._threads, self._clock = threads or 1, clock_of(device, threads)
        self._known_ms = math.inf if plain_ms is None else plain_ms
        self._rng = np.random.default_rng(seed)
        self._seen: dict[MergeSchedule, _Visits] = {}
        self._place = 0
        self.load = os.getloadavg()[0]
        """Greatest load of the machine that was seen, over one minute."""

    def visit_all(self, schedules: Sequence[MergeSchedule], rounds: int, *, again: int = 0) -> Iterator[None]:
        """Visit each of some nets in every round, and those that are unstable after it again; yields per visit.

        Args:
            schedules: The nets.
            rounds: Visits to each.
            again: How often as many visits are added to those that are unstable.
        """
        yield from self._rounds(schedules, rounds)
        for _ in range(again):
            yield from self._rounds([s for s in schedules if not self.reading(s).stable], rounds)

    def _rounds(self, schedules: Sequence[MergeSchedule], rounds: int) -> Iterator[None]:
        order = [schedule for schedule in schedules for _ in range(rounds)]
        if self._stage.keeps_all:
            order = [schedules[i] for _ in range(rounds) for i in self._rng.permutation(len(schedules))]
        for schedule in order:
            self._visit(self._plain)
            if schedule != self._plain:
                self._visit(schedule)
            yield
        if order:
            self._visit(self._plain)

    def _visit(self, schedule: MergeSchedule) -> None:
        run = self._stage.ready(schedule)
        self._stage.segments()
        timer = Timer("run()", globals={"run": run}, num_threads=self._threads, timer=self._clock)
        seen = timer.timeit(self._number)
        visits = self._seen.setdefault(schedule, _Visits())
        visits.ms.append(1e3 * seen.mean)
        # The runs before, which warmed up, have passed the segments too.
        visits.segments.append({n: float(np.mean(ms[-self._number :])) for n, ms in self._stage.segments().items()})
        visits.runs += self._number
        _log.debug("visit %d: %.3f ms, mean of %d runs; %s", self._place, visits.ms[-1], self._number, schedule)
        visits.places.append(self._place)
        self._place += 1
        self._number = max(MIN_RUNS, round(VISIT_SECONDS / seen.mean))
        self.load = max(self.load, os.getloadavg()[0])

    def reading(self, schedule: MergeSchedule) -> Reading:
        """What was seen of a net that was visited."""
        visits, plain = self._seen[schedule], self._seen[self._plain]
        values = np.array(visits.ms)
        ms = base_ms = min(_least_median(plain.ms), self._known_ms)
        if schedule != self._plain:
            values = values / np.interp(visits.places, plain.places, plain.ms)
            ms = float(np.median(values)) * base_ms
        error = PER_IQR * _iqr(values) / float(np.median(values)) / len(values) ** 0.5
        return Reading(
            ms=ms,
            least_ms=_least_median(visits.ms),
            iqr_ms=_iqr(visits.ms),
            error=error,
            visits=len(values),
            runs=visits.runs,
            stable=error < UNSTABLE,
        )

    def extra_segments(self, schedule: MergeSchedule) -> dict[str, float]:
        """What the parts of a net take beyond those of the plain net, in milliseconds, by module."""
        visits, plain = self._seen[schedule], self._seen[self._plain]
        extra = {}
        for name in visits.segments[0]:
            of_plain = np.array([segments[name] for segments in plain.segments])
            share = float(np.median(of_plain / np.array(plain.ms)))
            ratios = [segments[name] for segments in visits.segments] / np.interp(visits.places, plain.places, of_plain)
            extra[name] = (float(np.median(ratios)) - 1) * share * _least_median(plain.ms)
        return extra


def _least_median(ms: Sequence[float]) -> float:
    """The least median of `WINDOW` values in a row."""
    windows = np.lib.stride_tricks.sliding_window_view(np.array(ms), min(WINDOW, len(ms)))
    return float(np.median(windows, axis=1).min())


def _iqr(values: Sequence[float] | np.ndarray) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
