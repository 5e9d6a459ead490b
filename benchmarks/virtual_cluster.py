"""Workers that exist only in a virtual time: the real driver hands them trials and hears when they are back.

`cluster_simulation.py` and `staleness.py` run the driver on them.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from ltmsearch.search.workers import Answer, Task
from ltmsearch.search.workers.ray import SECOND_CHANCES

Evaluate = Callable[[Task, Mapping[str, Tensor]], Answer]
"""What a trial comes to, from its task and the weights that it started with."""


@dataclass(frozen=True, kw_only=True)
class Durations:
    """How long trials take, in seconds, and how often they go wrong. The same trial takes the same on any cluster."""

    mean: float = 60.0
    """Of trials that are no stragglers."""
    spread: float = 0.25
    """Standard deviation of the logarithm."""
    straggler_share: float = 0.02
    """Trials on a machine that is slow just then."""
    straggler_factor: float = 4.0
    """How many times longer these take."""
    failure_share: float = 0.005
    """Trials that fail alone, half way."""
    death_share: float = 0.005
    """Trials whose worker dies, at any time."""
    restart: float = 90.0
    """Until another worker stands in the place of one that died."""

    def draw(self, rng: np.random.Generator) -> tuple[float, str]:
        """Seconds until something happens to a trial, and what: `ends`, `fails` or `dies`."""
        whole = self.mean * float(np.exp(rng.normal(-(self.spread**2) / 2, self.spread)))
        whole *= self.straggler_factor if rng.random() < self.straggler_share else 1.0
        fate, where = rng.random(), rng.random()
        if fate < self.death_share:
            return whole * where, "dies"
        return (whole / 2, "fails") if fate < self.death_share + self.failure_share else (whole, "ends")


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A trial with what it starts from."""

    task: Task
    weights: Mapping[str, Tensor]
    lost: int = 0
    """Workers that died over it."""


@dataclass(order=True)
class Event:
    """Something that happens to a worker."""

    at: float
    """Virtual seconds."""
    order: int
    """Of events at the same time."""
    what: str = field(compare=False)
    """`ends`, `fails`, `dies`, or `is back`."""
    handed: Handed | None = field(compare=False, default=None)


class VirtualWorkers:
    """A cluster in virtual time; satisfies `ltmsearch.search.workers.Workers`, with the rules of its workers on Ray.

    What the driver does between two calls takes processor time, measured for real, and virtual time passes by as much:
    a worker that is done idles until the driver has time for it. Evaluating takes the virtual time that was drawn,
    whatever it takes for real.

    Args:
        number: Of workers.
        durations: Of trials.
        evaluate: Answers a trial when it is done.
        seed: Of the durations.
        counts_driver: Whether the driver's time counts. If not, the order of events does not depend on this machine.
    """

    elsewhere = True

    def __init__(
        self, number: int, durations: Durations, evaluate: Evaluate, *, seed: int, counts_driver: bool = True
    ) -> None:
        self.number, self.durations, self.evaluate, self.seed = number, durations, evaluate, seed
        self.counts_driver = counts_driver
        self.now = 0.0
        """Virtual seconds since the search began."""
        self.driver_seconds = 0.0
        """In which the driver was busy."""
        self.worker_seconds = 0.0
        """That all workers together spent on trials that came to an answer."""
        self.deaths = 0
        """Of workers."""
        self._idle = number
        self._events: list[Event] = []
        self._counted = 0
        self._again: deque[Handed] = deque()
        self._left = time.process_time()

    def spend(self, seconds: float) -> None:
        """The driver does something that is not done here but known to take so long."""
        if self.counts_driver:
            self.now += seconds
            self.driver_seconds += seconds

    def pause(self) -> None:
        """What follows is not the driver's work, until `resume`."""
        self.spend(time.process_time() - self._left)

    def resume(self) -> None:
        """The driver is back at work."""
        self._left = time.process_time()

    def free(self) -> int:
        """See `Workers`."""
        return max(0, self._idle - len(self._again))

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        """See `Workers`."""
        self.pause()
        self._hand_out(Handed(task=task, weights=weights))
        self.resume()

    def answers(self) -> list[Answer]:
        """See `Workers`."""
        self.pause()
        try:
            while True:
                while self._again and self._idle:
                    self._hand_out(self._again.popleft())
                if not self._events:
                    return []
                event = heapq.heappop(self._events)
                self.now = max(self.now, event.at)
                told = self._happened(event)
                if told or self.free():
                    return told
        finally:
            self.resume()

    def close(self) -> None:
        """See `Workers`."""
        self._events.clear()

    def _hand_out(self, handed: Handed) -> None:
        self._idle -= 1
        rng = np.random.default_rng((self.seed, handed.task.trial, handed.lost))
        seconds, what = self.durations.draw(rng)
        self.worker_seconds += 0 if what == "dies" else seconds
        self._expect(seconds, what, handed)

    def _expect(self, seconds: float, what: str, handed: Handed | None = None) -> None:
        self._counted += 1
        heapq.heappush(self._events, Event(self.now + seconds, self._counted, what, handed))

    def _happened(self, event: Event) -> list[Answer]:
        if event.what == "dies":
            self.deaths += 1
            self._expect(self.durations.restart, "is back")
        else:
            self._idle += 1
        handed = event.handed
        if handed is None:
            return []
        if event.what == "ends":
            return [self.evaluate(handed.task, handed.weights)]
        if event.what == "fails":
            return [Answer(trial=handed.task.trial, failure="made up")]
        if handed.lost + 1 > SECOND_CHANCES:
            return [Answer(trial=handed.task.trial, failure=f"{handed.lost + 1} workers died over it")]
        self._again.append(replace(handed, lost=handed.lost + 1))
        return []
