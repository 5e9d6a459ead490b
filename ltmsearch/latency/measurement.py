"""Latency measurement of networks on a machine with other load.

A network is timed in samples: one sample is one `torch.utils.benchmark` measurement, the mean of a few runs after two
warm-up runs. Samples of different networks alternate with samples of the plain network. Whatever slows the machine for
a while slows neighbouring samples equally, and hardly affects the ratio of a network to the plain one. The latency of a
network is the median of its ratios times the lowest median of the plain network, taken when the machine was quietest.

On one thread of a CPU, times are that thread's processor time, which excludes the time slices of other processes.
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
"""Runs of a sample, at least."""
SAMPLE_SECONDS = 0.1
"""Duration of a sample, unless `MIN_RUNS` take longer."""
WINDOW = 3
"""Consecutive samples of each median, of which the lowest counts."""
UNSTABLE = 0.02
"""Relative standard error from which a network is sampled again."""
PER_IQR = 0.93
"""Standard error of a median of n normal numbers over their interquartile range / √n: 1.2533 / 1.349."""

Clock = Callable[[], float]


class Measurement(BaseModel):
    """Latency of one network, in milliseconds per batch. Field names are those of profile files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ms: float
    """Latency: see the top of this module."""
    least_ms: float
    """Lowest median of `WINDOW` consecutive samples of this network."""
    iqr_ms: float
    """Interquartile range of all samples."""
    error: float
    """Relative standard error of `ms`, from the spread over samples (of their ratios to the plain network)."""
    visits: int
    """Number of samples."""
    runs: int
    """Number of runs in all samples."""
    stable: bool
    """Whether `error` is below `UNSTABLE`."""


class NetworkRunner(Protocol):
    """Runs the networks of schedules on a target."""

    switches_fast: bool
    """Whether changing the network takes almost no time; if not, each network gets all its samples in a row."""

    def load(self, schedule: MergeSchedule) -> Callable[[], object]:
        """Return a forward pass of a schedule's network on a batch, valid until the next `load`."""
        ...

    def module_times(self) -> dict[str, list[float]]:
        """Return the milliseconds of single modules in each run since the last call; empty if not available."""
        return {}


def get_clock(device: str, threads: int | None) -> Clock:
    """Return processor time for one CPU thread, and wall time otherwise."""
    return time.thread_time if device == "cpu" and threads == 1 else timeit.default_timer


@dataclass
class _Samples:
    """Samples of one network; one entry per sample."""

    positions: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    module_ms: list[dict[str, float]] = field(default_factory=list)
    runs: int = 0


class InterleavedTimer:
    """Time networks of one backbone, with samples of the plain network in between.

    `plain_ms` is an earlier latency of the plain network on the same target, used for ratios if it is lower.
    """

    def __init__(
        self,
        runner: NetworkRunner,
        plain: MergeSchedule,
        *,
        device: str,
        threads: int | None,
        plain_ms: float | None = None,
        seed: int = 0,
    ) -> None:
        self._runner, self._plain, self._runs = runner, plain, MIN_RUNS
        self._threads, self._clock = threads or 1, get_clock(device, threads)
        self._earlier_ms = math.inf if plain_ms is None else plain_ms
        self._rng = np.random.default_rng(seed)
        self._samples: dict[MergeSchedule, _Samples] = {}
        self._position = 0
        self.load = os.getloadavg()[0]
        """Highest one-minute load average of the machine so far."""

    def sample(self, schedules: Sequence[MergeSchedule], rounds: int, *, extra_rounds: int = 0) -> Iterator[None]:
        """Sample each network once per round, and unstable ones in up to `extra_rounds` times as many rounds more."""
        yield from self._sample_rounds(schedules, rounds)
        for _ in range(extra_rounds):
            yield from self._sample_rounds([s for s in schedules if not self.measurement(s).stable], rounds)

    def _sample_rounds(self, schedules: Sequence[MergeSchedule], rounds: int) -> Iterator[None]:
        order = [schedule for schedule in schedules for _ in range(rounds)]
        if self._runner.switches_fast:
            order = [schedules[i] for _ in range(rounds) for i in self._rng.permutation(len(schedules))]
        for schedule in order:
            self._take_sample(self._plain)
            if schedule != self._plain:
                self._take_sample(schedule)
            yield
        if order:
            self._take_sample(self._plain)

    def _take_sample(self, schedule: MergeSchedule) -> None:
        run, runs = self._runner.load(schedule), self._runs
        self._runner.module_times()
        timer = Timer("run()", globals={"run": run}, num_threads=self._threads, timer=self._clock)
        mean = timer.timeit(runs).mean
        samples = self._samples.setdefault(schedule, _Samples())
        samples.ms.append(1e3 * mean)
        # The last ones only: warm-up runs are among the module times.
        samples.module_ms.append({n: float(np.mean(ms[-runs:])) for n, ms in self._runner.module_times().items()})
        samples.runs += runs
        samples.positions.append(self._position)
        _log.debug("sample %d: %.3f ms, mean of %d runs; %s", self._position, 1e3 * mean, runs, schedule)
        self._position += 1
        self._runs = max(MIN_RUNS, round(SAMPLE_SECONDS / mean))
        self.load = max(self.load, os.getloadavg()[0])

    def measurement(self, schedule: MergeSchedule) -> Measurement:
        """Return the latency of a sampled network."""
        samples, plain = self._samples[schedule], self._samples[self._plain]
        values = np.array(samples.ms)
        ms = base_ms = min(_least_median(plain.ms), self._earlier_ms)
        if schedule != self._plain:
            values = values / np.interp(samples.positions, plain.positions, plain.ms)
            ms = float(np.median(values)) * base_ms
        error = PER_IQR * _iqr(values) / float(np.median(values)) / len(values) ** 0.5
        return Measurement(
            ms=ms,
            least_ms=_least_median(samples.ms),
            iqr_ms=_iqr(samples.ms),
            error=error,
            visits=len(values),
            runs=samples.runs,
            stable=error < UNSTABLE,
        )

    def extra_module_ms(self, schedule: MergeSchedule) -> dict[str, float]:
        """Return the difference of each module's time to the plain network, in milliseconds."""
        samples, plain = self._samples[schedule], self._samples[self._plain]
        extra = {}
        for name in samples.module_ms[0]:
            plain_ms = np.array([times[name] for times in plain.module_ms])
            share = float(np.median(plain_ms / np.array(plain.ms)))
            ratios = [times[name] for times in samples.module_ms] / np.interp(
                samples.positions, plain.positions, plain_ms
            )
            extra[name] = (float(np.median(ratios)) - 1) * share * _least_median(plain.ms)
        return extra


def _least_median(ms: Sequence[float]) -> float:
    windows = np.lib.stride_tricks.sliding_window_view(np.array(ms), min(WINDOW, len(ms)))
    return float(np.median(windows, axis=1).min())


def _iqr(values: Sequence[float] | np.ndarray) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
