"""Workers on Ray: each an actor that holds a supernet; weights travel once per version through the object store."""

import logging
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.errors import InputError, WorkersLost
from ltmsearch.search.setup import Workbench
from ltmsearch.search.workers.actor import Ready, Refused, TrialWorker, to_arrays, to_tensors
from ltmsearch.search.workers.ray_connection import Connection, gpu_share
from ltmsearch.search.workers.tasks import Answer, Task

_log = logging.getLogger(__name__)

SECOND_CHANCES = 2
"""How often a trial whose worker died is given to another."""
START_SECONDS = 900.0
"""How long no worker at all may be there before the search gives up."""
LOOK_SECONDS = 2.0
"""How often workers that take too long are looked for."""
HANG_FACTOR, HANG_SECONDS = 1.5, 30.0
"""A worker that does not notice its trial's time limit itself is ended after so many times that and so many seconds."""


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A trial with what it starts from."""

    task: Task
    version: int
    lost: int = 0
    """How many workers died over it."""


@dataclass(kw_only=True)
class Seat:
    """A worker's place: an actor, and what it is doing."""

    actor: Any
    doing: Any
    """Ray's reference to the call that runs; None: nothing."""
    handed: Handed | None = None
    """None while it starts or has nothing."""
    since: float = 0.0
    """When that call began, by `time.monotonic`."""
    ready: Ready | None = None


class RayWorkers:
    """Several workers, of this machine or of a cluster.

    Args:
        connection: Ray, connected.
        number: How many.
        gpus: Of each, fractions too.
        arguments: Of `worker`.
        state: State dict of the driver's supernet.
        callbacks: Receives a note on workers that come and go.
        worker: Class of the actors.
    """

    elsewhere = True

    def __init__(
        self,
        connection: Connection,
        *,
        number: int,
        gpus: float,
        arguments: tuple[Any, ...],
        state: Mapping[str, Tensor],
        callbacks: Callbacks,
        worker: type = TrialWorker,
    ) -> None:
        self.ray = connection.ray
        self.connection = connection
        self.callbacks = callbacks
        self._arguments = arguments
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 1}
        self._actor_class = self.ray.remote(**options)(worker)
        self._state = self.ray.put(to_arrays(state))
        self._weights: dict[int, Any] = {}
        self._again: deque[Handed] = deque()
        self._failed_starts = 0
        self._someone_since = time.monotonic()
        self._told_ready = False
        self._seats = [self._seat() for _ in range(number)]
        start, with_gpus = "workers start" if number > 1 else "worker starts", f", {gpus:g} GPUs each" * (gpus > 0)
        callbacks.note(f"{number} {start} on {connection.where}{with_gpus}")

    @classmethod
    def of_study(cls, connection: Connection, bench: Workbench, callbacks: Callbacks) -> "RayWorkers":
        """The workers that a study asks for.

        Args:
            connection: Ray, connected.
            bench: What the study works with.
            callbacks: Receives a note on workers that come and go.
        """
        settings, runtime = bench.settings, bench.evaluator.runtime
        gpus = gpu_share(settings, device=runtime.device.type, gpus=connection.gpus)
        told = settings_of_workers(settings, precision=runtime.precision, on_gpus=gpus > 0)
        per_machine = -(-settings.workers // max(1, connection.machines))
        threads = max(1, torch.get_num_threads() // per_machine)
        return cls(
            connection, number=settings.workers, gpus=gpus, arguments=(told, threads),
            state=bench.evaluator.supernet.state_dict(), callbacks=callbacks,
        )  # fmt: skip

    def _seat(self) -> Seat:
        actor = self._actor_class.remote(*self._arguments)
        return Seat(actor=actor, doing=actor.prepare.remote(self._state), since=time.monotonic())

    # -- what the driver calls -----------------------------------------------------------------------------------

    def free(self) -> int:
        """See `Workers`."""
        return max(0, sum(seat.doing is None for seat in self._seats) - len(self._again))

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        """See `Workers`."""
        if version not in self._weights:
            self._weights[version] = self.ray.put(to_arrays(weights))
        self._hand_out(Handed(task=task, version=version))

    def answers(self) -> list[Answer]:
        """See `Workers`."""
        while True:
            while self._again and any(seat.doing is None for seat in self._seats):
                self._hand_out(self._again.popleft())
            calls = {seat.doing: seat for seat in self._seats if seat.doing is not None}
            if not calls:
                return []
            done, _ = self.ray.wait(list(calls), num_returns=1, timeout=LOOK_SECONDS)
            ended = [answer for call in done for answer in self._ended(calls[call])]
            self._end_what_hangs()
            self._give_up_without_workers()
            if ended or (done and self.free()):
                self._drop_unused_weights()
                return ended

    def close(self) -> None:
        """See `Workers`."""
        for seat in self._seats:
            self.ray.kill(seat.actor)
        self._seats = []
        self._weights.clear()

    # -- how it is done ------------------------------------------------------------------------------------------

    def _hand_out(self, handed: Handed) -> None:
        seat = next(seat for seat in self._seats if seat.doing is None)
        seat.doing = seat.actor.evaluate.remote(handed.task, self._weights[handed.version])
        seat.handed, seat.since = handed, time.monotonic()

    def _ended(self, seat: Seat) -> list[Answer]:
        """What a call that ended came to; a worker that died is replaced."""
        try:
            told = self.ray.get(seat.doing)
        except self.ray.exceptions.RayTaskError:
            raise  # an error in the program, with the worker's traceback
        except self.ray.exceptions.RayError as error:
            return self._replace(seat, _reason(error))
        handed, seat.doing, seat.handed = seat.handed, None, None
        if isinstance(told, Refused):
            raise InputError(told.reason)
        if isinstance(told, Ready):
            seat.ready, self._failed_starts = told, 0
            self._tell_when_all_are_ready()
            return []
        if handed is None:
            raise RuntimeError("a worker answered without having been asked")
        result = told.result
        return [told if result is None else replace(told, result=replace(result, weights=to_tensors(result.weights)))]

    def _replace(self, seat: Seat, reason: str) -> list[Answer]:
        """Put another worker in the place of one that died; its trial is tried again, or fails at last."""
        handed, where = seat.handed, f"on {seat.ready.host}" if seat.ready else "while it started"
        self._seats[self._seats.index(seat)] = self._seat()
        if handed is None:
            self._failed_starts += seat.ready is None
            if self._failed_starts >= max(3, len(self._seats)):
                raise WorkersLost(f"workers end while they start ({reason}); the same command continues")
            self.callbacks.note(f"a worker ended {where} ({reason}); another takes its place")
            return []
        lost = handed.lost + 1
        if lost > SECOND_CHANCES:
            return [
                Answer(trial=handed.task.trial, failure=f"{lost} workers ended over it, the last {where}: {reason}")
            ]
        self.callbacks.note(
            f"the worker of trial {handed.task.trial} ended {where} ({reason}); the trial is given to another"
        )
        self._again.append(replace(handed, lost=lost))
        return []

    def _end_what_hangs(self) -> None:
        for seat in self._seats:
            if seat.handed is None or seat.doing is None:
                continue
            limit = HANG_FACTOR * seat.handed.task.limit + HANG_SECONDS
            if time.monotonic() - seat.since > limit:
                _log.warning("trial %d is not back after %.0f s: its worker is ended", seat.handed.task.trial, limit)
                self.ray.kill(seat.actor)  # its call ends with an error, and is dealt with as any other's
                seat.since = time.monotonic()

    def _give_up_without_workers(self) -> None:
        now = time.monotonic()
        if any(seat.ready is not None for seat in self._seats):
            self._someone_since = now
        elif now - self._someone_since > START_SECONDS:
            raise WorkersLost(
                f"no worker came up within {START_SECONDS / 60:g} minutes on {self.connection.where}; the same command "
                "continues"
            )

    def _drop_unused_weights(self) -> None:
        used = {seat.handed.version for seat in self._seats if seat.handed} | {handed.version for handed in self._again}
        newest = max(self._weights, default=0)
        self._weights = {version: ref for version, ref in self._weights.items() if version in used or version == newest}

    def _tell_when_all_are_ready(self) -> None:
        ready = [seat.ready for seat in self._seats if seat.ready is not None]
        if self._told_ready or len(ready) < len(self._seats):
            return
        self._told_ready = True
        hosts, device = {each.host for each in ready}, ready[0].device
        threads = f", {ready[0].threads} thread{'s' * (ready[0].threads > 1)} each" if device == "cpu" else ""
        are = "workers are" if len(ready) > 1 else "worker is"
        self.callbacks.note(
            f"{len(ready)} {are} ready on {', '.join(sorted(hosts))}: {device}{threads}, "
            f"{max(each.memory_gib for each in ready):.1f} GiB of memory each"
        )


def settings_of_workers(settings: ResolvedSettings, *, precision: str, on_gpus: bool) -> dict[str, Any]:
    """What workers are told of a study: its settings, less what they get from the driver.

    Args:
        settings: Of the study.
        precision: The driver's number format, whatever a worker would measure.
        on_gpus: Whether workers have GPUs.
    """
    given: dict[str, Any] = {"precision": precision, "device": "cuda" if on_gpus else "cpu"}
    given |= {"pretrained": False, "checkpoint": None, "resume_from": None}  # their weights are the shared ones
    if settings.data_dir is not None:
        given["data_dir"] = str(Path(settings.data_dir).absolute())  # they were started in other folders
    return settings.public() | given


def _reason(error: Exception) -> str:
    """What Ray says of a worker that died, in a few words."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    if "creation task" in lines[0]:  # then the last line is that of the traceback
        return lines[-1].strip()
    said = " ".join(" ".join(lines).split())
    for sign, words in _SIGNS.items():
        if sign in said:
            return words
    return said[:160]


_SIGNS = {
    "memory pressure": "Ray ended it because memory was full",
    "node has died": "its machine is gone",
    "node died": "its machine is gone",
    "ray.kill": "it had not answered in time",
    "unexpectedly exits": "its process died",
    "process has died": "its process died",
    "temporarily unavailable": "it cannot be reached",
}
"""Parts of Ray's many lines, and what they come to; the first that is found counts."""
