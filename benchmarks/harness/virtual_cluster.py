"""Workers in virtual time, which the real driver sends trials to."""

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from ltmsearch.search.workers import Answer, LocalWorker, Task
from ltmsearch.search.workers.ray import MAX_RETRIES

Evaluate = Callable[[Task, Mapping[str, Tensor]], Answer]
"""Answer of a trial from its task and the weights that it started with."""


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Durations of trials in seconds, and shares of failures; a trial takes the same time on any cluster."""

    mean: float = 60.0
    """Mean of trials that are no stragglers."""
    spread: float = 0.25
    """Standard deviation of the logarithm."""
    straggler_share: float = 0.02
    """Share of trials on a machine that is slow at that time."""
    straggler_factor: float = 4.0
    """Factor of their duration."""
    failure_share: float = 0.005
    """Share of trials that fail half way."""
    death_share: float = 0.005
    """Share of trials whose worker dies, at any time."""
    restart: float = 90.0
    """Seconds until another worker replaces one that died."""

    def draw(self, rng: np.random.Generator) -> tuple[float, str]:
        """Seconds until the event of a trial, and its kind: `ends`, `fails` or `dies`."""
        whole = self.mean * float(np.exp(rng.normal(-(self.spread**2) / 2, self.spread)))
        whole *= self.straggler_factor if rng.random() < self.straggler_share else 1.0
        fate, where = rng.random(), rng.random()
        if fate < self.death_share:
            return whole * where, "dies"
        return (whole / 2, "fails") if fate < self.death_share + self.failure_share else (whole, "ends")


@dataclass(frozen=True, kw_only=True)
class SentTrial:
    """A trial and the weights that it starts from."""

    task: Task
    weights: Mapping[str, Tensor]
    lost: int = 0
    """Workers that died with it."""


@dataclass(order=True)
class Event:
    """Event of a worker."""

    at: float
    """Virtual seconds."""
    order: int
    """Order of events at the same time."""
    kind: str = field(compare=False)
    """`ends`, `fails`, `dies`, or `returns`."""
    sent: SentTrial | None = field(compare=False, default=None)


class VirtualWorkers:
    """A cluster in virtual time; satisfies `ltmsearch.search.workers.Workers`, with the rules of its workers on Ray.

    Virtual time advances by the processor time that the driver takes between two calls: a worker that is done idles
    until the driver has time for it. Evaluating takes the virtual time that was drawn.

    Args:
        number: Number of workers.
        durations: Durations of trials.
        evaluate: Answers a trial when it is done.
        seed: Seed of the durations.
        counts_driver: Whether the driver's time counts. If not, the order of events does not depend on the machine.
        screens: Scores schedules that are screened, in no virtual time; None: none are.
    """

    remote = True

    def __init__(
        self,
        number: int,
        durations: Durations,
        evaluate: Evaluate,
        *,
        seed: int,
        counts_driver: bool = True,
        screens: LocalWorker | None = None,
    ) -> None:
        self.number, self.durations, self.evaluate, self.seed = number, durations, evaluate, seed
        self.counts_driver, self.screens = counts_driver, screens
        self.now = 0.0
        """Virtual seconds since the search began."""
        self.driver_seconds = 0.0
        """Seconds in which the driver was busy."""
        self.worker_seconds = 0.0
        """Seconds that all workers together spent on answered trials."""
        self.deaths = 0
        """Number of workers that died."""
        self._idle = number
        self._events: list[Event] = []
        self._counted = 0
        self._again: deque[SentTrial] = deque()
        self._left = time.process_time()

    def spend(self, seconds: float) -> None:
        """Charge the driver for work that is not done here."""
        if self.counts_driver:
            self.now += seconds
            self.driver_seconds += seconds

    def pause(self) -> None:
        """Stop counting the driver's time until `resume`."""
        self.spend(time.process_time() - self._left)

    def resume(self) -> None:
        """Count the driver's time again."""
        self._left = time.process_time()

    def free(self) -> int:
        """See `Workers`."""
        return max(0, self._idle - len(self._again))

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        """See `Workers`."""
        self.pause()
        self._send(SentTrial(task=task, weights=weights))
        self.resume()

    def answers(self) -> list[Answer]:
        """See `Workers`."""
        self.pause()
        try:
            while True:
                while self._again and self._idle:
                    self._send(self._again.popleft())
                if not self._events:
                    return []
                event = heapq.heappop(self._events)
                self.now = max(self.now, event.at)
                answers = self._handle(event)
                if answers or self.free():
                    return answers
        finally:
            self.resume()

    def scores(self, *what: Any, **limit: Any) -> list[float]:
        """See `Workers`."""
        if self.screens is None:
            raise ValueError("`screens` must be given to workers of a study that screens schedules")
        self.pause()
        try:
            return self.screens.scores(*what, **limit)
        finally:
            self.resume()

    def close(self) -> None:
        """See `Workers`."""
        self._events.clear()

    def _send(self, sent: SentTrial) -> None:
        self._idle -= 1
        rng = np.random.default_rng((self.seed, sent.task.trial, sent.lost))
        seconds, kind = self.durations.draw(rng)
        self.worker_seconds += 0 if kind == "dies" else seconds
        self._schedule_event(seconds, kind, sent)

    def _schedule_event(self, seconds: float, kind: str, sent: SentTrial | None = None) -> None:
        self._counted += 1
        heapq.heappush(self._events, Event(self.now + seconds, self._counted, kind, sent))

    def _handle(self, event: Event) -> list[Answer]:
        if event.kind == "dies":
            self.deaths += 1
            self._schedule_event(self.durations.restart, "returns")
        else:
            self._idle += 1
        sent = event.sent
        if sent is None:
            return []
        if event.kind == "ends":
            return [self.evaluate(sent.task, sent.weights)]
        if event.kind == "fails":
            return [Answer(trial=sent.task.trial, failure="made up")]
        if sent.lost + 1 > MAX_RETRIES:
            return [Answer(trial=sent.task.trial, failure=f"{sent.lost + 1} workers died with it")]
        self._again.append(replace(sent, lost=sent.lost + 1))
        return []
