"""Clocks, taking turns, peak memory, and measurements in processes of their own."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Seconds:
    """Wall time, and processor time of all threads of this process."""

    wall: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> Self:
        """Reading of both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.processor - other.processor)


def least_seconds(repeats: int, run: Callable[[], Any]) -> Seconds:
    """Least wall and least processor seconds of some repeats."""
    taken = []
    for _ in range(repeats):
        start = Seconds.now()
        run()
        taken.append(Seconds.now() - start)
    return Seconds(min(each.wall for each in taken), min(each.processor for each in taken))


def alternating(names: Iterable[str], number: int) -> list[str]:
    """Names in their order in even turns, reversed in odd ones: nothing always runs first."""
    return list(names)[:: 1 if number % 2 == 0 else -1]


def round_medians(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Median milliseconds of a call in each round; the runs take turns call by call after one call to warm up."""
    for run in runs.values():
        run()
    medians: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(calls):
            for name in alternating(runs, number + turn):
                start = clock()
                runs[name]()
                spent[name].append(1e3 * (clock() - start))
        for name, values in spent.items():
            medians[name].append(float(np.median(values)))
    return medians


def relative_spread(values: list[float]) -> float:
    """Middle half of some values over their minimum."""
    return float(np.subtract(*np.percentile(values, [75, 25]))) / min(values)


def peak_mib() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(script: str, **options: Any) -> dict[str, Any]:
    """Run `script --point OPTIONS` in a process of its own; its last line is JSON."""
    command = [sys.executable, script, "--point", json.dumps(options)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads would take processor time
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{options}: {done.stderr.strip().splitlines()[-1]}")
    return options | json.loads(done.stdout.splitlines()[-1])
