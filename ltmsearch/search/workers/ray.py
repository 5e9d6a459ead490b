"""Workers on Ray: actors that each keep a supernet; each version of the weights is sent once, by the object store."""

import logging
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.errors import InputError, WorkersLost
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.settled import Conditions
from ltmsearch.search.setup import StudyContext
from ltmsearch.search.workers.actor import Ready, TrialWorker, to_arrays, to_tensors
from ltmsearch.search.workers.connection import Connection, gpu_share
from ltmsearch.search.workers.tasks import Answer, ScoreAnswer, ScoreTask, Task

_log = logging.getLogger(__name__)

MAX_RETRIES = 2
"""Number of times that a trial whose worker died is given to another worker."""
START_SECONDS = 900.0
"""Time without any worker after which the search gives up."""
POLL_SECONDS = 2.0
"""Time between two checks for workers that exceed their limit."""
HANG_FACTOR, HANG_SECONDS = 1.5, 30.0
"""A worker is killed after the time limit of its trial times the factor, plus the seconds."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task, the version of its initial weights, and the number of workers that died during it."""

    task: Task | ScoreTask
    version: int
    lost: int = 0


@dataclass(kw_only=True)
class Slot:
    """The place of a worker: an actor, and its current call."""

    actor: Any
    call: Any
    """Ray's reference to the call that runs; None: the worker is free."""
    since: float
    """Start of the call, by `time.monotonic`."""
    assignment: Assignment | None = None
    """None while the worker starts or is free."""
    ready: Ready | None = None


class RayWorkers:
    """Several workers on this machine or on a cluster."""

    remote = True

    def __init__(
        self,
        connection: Connection,
        *,
        number: int,
        gpus: float,
        arguments: tuple[Any, ...],
        state: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        callbacks: Callbacks,
        worker: type = TrialWorker,
    ) -> None:
        self.ray, self.connection, self.callbacks = connection.ray, connection, callbacks
        self._arguments = arguments
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 1}
        self._actor_class = self.ray.remote(**options)(worker)
        self._state, self._teacher = self.ray.put(to_arrays(state)), self.ray.put(to_arrays(teacher))
        self._weights: dict[int, Any] = {}
        self._retries: deque[Assignment] = deque()
        self._early: list[Answer] = []
        """Answers to trials that came while schedules were scored."""
        self._failed_starts = 0
        self._last_ready = time.monotonic()
        self._reported_ready = False
        self._slots = [self._new_slot() for _ in range(number)]
        with_gpus = f", {gpus:g} GPUs each" * (gpus > 0)
        callbacks.note(f"starting {_count(number)} on {connection.where}{with_gpus}")

    @classmethod
    def for_study(cls, connection: Connection, context: StudyContext, callbacks: Callbacks) -> "RayWorkers":
        """Start the workers that a study asks for."""
        settings, evaluator = context.settings, context.evaluator
        gpus = gpu_share(settings, device=evaluator.training.device.type, gpus=connection.gpus)
        sent = worker_settings(settings, precision=evaluator.training.precision, on_gpus=gpus > 0)
        per_machine = -(-settings.workers // max(1, connection.machines))
        threads = worker_threads(context.conditions, per_machine)
        return cls(
            connection, number=settings.workers, gpus=gpus,
            arguments=(sent, threads, evaluator.scoring.precision, evaluator.sides),
            state=evaluator.supernet.state_dict(), teacher=evaluator.teacher.predictions,
            callbacks=callbacks,
        )  # fmt: skip

    def _new_slot(self) -> Slot:
        actor = self._actor_class.remote(*self._arguments)
        return Slot(actor=actor, call=actor.prepare.remote(self._state, self._teacher), since=time.monotonic())

    def free(self) -> int:
        return max(0, sum(slot.call is None for slot in self._slots) - len(self._retries))

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        self._send(version, weights)
        self._assign(Assignment(task=task, version=version))

    def answers(self) -> list[Answer]:
        answers, self._early = self._early, []
        while not answers and any(slot.call is not None for slot in self._slots):
            ended, found = self._wait()
            answers = [each for each in found if isinstance(each, Answer)]
            if ended and self.free():
                break
        self._drop_unused_weights()
        return answers

    def scores(
        self,
        schedules: Sequence[MergeSchedule],
        images: int | None,
        version: int,
        weights: Mapping[str, Tensor],
        *,
        limit: float,
    ) -> list[float]:
        self._send(version, weights)
        waiting = deque(
            ScoreTask(place=place, schedule=schedule, images=images, limit=limit)
            for place, schedule in enumerate(schedules)
        )
        values: dict[int, float] = {}
        while len(values) < len(schedules):
            while waiting and self.free():
                self._assign(Assignment(task=waiting.popleft(), version=version))
            for answer in self._wait()[1]:
                if isinstance(answer, ScoreAnswer):
                    values[answer.place] = answer.value
                else:
                    self._early.append(answer)
        return [values[place] for place in range(len(schedules))]

    def _send(self, version: int, weights: Mapping[str, Tensor]) -> None:
        if version not in self._weights:
            self._weights[version] = self.ray.put(to_arrays(weights))

    def _wait(self) -> tuple[bool, list[Answer | ScoreAnswer]]:
        """Wait a while for a call to end: whether one did, and its answers."""
        while self._retries and any(slot.call is None for slot in self._slots):
            self._assign(self._retries.popleft())
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        done, _ = self.ray.wait(list(calls), num_returns=1, timeout=POLL_SECONDS)
        answers = [answer for call in done for answer in self._collect(calls[call])]
        self._kill_hanging()
        self._check_ready()
        return bool(done), answers

    def close(self) -> None:
        for slot in self._slots:
            self.ray.kill(slot.actor)
        self._slots = []
        self._weights.clear()

    def _assign(self, assignment: Assignment) -> None:
        slot = next(slot for slot in self._slots if slot.call is None)
        call = slot.actor.score if isinstance(assignment.task, ScoreTask) else slot.actor.evaluate
        slot.call = call.remote(assignment.task, self._weights[assignment.version])
        slot.assignment, slot.since = assignment, time.monotonic()

    def _collect(self, slot: Slot) -> list[Answer | ScoreAnswer]:
        """The answer of a call that ended, if it was a task; a worker that died is replaced."""
        try:
            returned = self.ray.get(slot.call)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            raise  # an error in the program, with the worker's traceback
        except self.ray.exceptions.RayError as error:
            return self._replace(slot, _describe(error))
        slot.call = slot.assignment = None
        if isinstance(returned, Ready):
            slot.ready, self._failed_starts = returned, 0
            return []
        if isinstance(returned, ScoreAnswer):
            return [returned]
        result = returned.result
        if result is not None:
            result = replace(result, weights=to_tensors(result.weights))
        return [replace(returned, result=result)]

    def _replace(self, slot: Slot, reason: str) -> list[Answer | ScoreAnswer]:
        """Start a new worker for one that died; its trial is tried again, and fails after the last retry."""
        assignment, where = slot.assignment, f"on {slot.ready.host}" if slot.ready else "during its start"
        self._slots[self._slots.index(slot)] = self._new_slot()
        if assignment is None:
            self._failed_starts += slot.ready is None
            if self._failed_starts >= max(3, len(self._slots)):
                raise WorkersLost(f"workers end during their start ({reason}); the same command continues")
            self.callbacks.note(f"a worker ended {where} ({reason}); starting another")
            return []
        task, lost = assignment.task, assignment.lost + 1
        if isinstance(task, ScoreTask):
            if lost > MAX_RETRIES:
                raise WorkersLost(
                    f"{lost} workers ended while they scored the same schedule, the last {where}: {reason}; the same "
                    "command continues"
                )
            self.callbacks.note(f"a worker that scored a schedule ended {where} ({reason}); another worker repeats it")
        elif lost > MAX_RETRIES:
            return [Answer(trial=task.trial, failure=f"{lost} workers ended during it, the last {where}: {reason}")]
        else:
            self.callbacks.note(
                f"the worker of trial {task.trial} ended {where} ({reason}); another worker repeats the trial"
            )
        self._retries.append(replace(assignment, lost=lost))
        return []

    def _kill_hanging(self) -> None:
        for slot in self._slots:
            if slot.assignment is None or slot.call is None:
                continue
            limit = HANG_FACTOR * slot.assignment.task.limit + HANG_SECONDS
            if time.monotonic() - slot.since > limit:
                task = slot.assignment.task
                what = f"trial {task.trial}" if isinstance(task, Task) else "the score of a schedule"
                _log.warning("%s takes more than %.0f s: killing its worker", what, limit)
                self.ray.kill(slot.actor)  # the call then ends with an error, as for any worker that died
                slot.since = time.monotonic()

    def _check_ready(self) -> None:
        ready, now = [slot.ready for slot in self._slots if slot.ready is not None], time.monotonic()
        if ready:
            self._last_ready = now
        elif now - self._last_ready > START_SECONDS:
            raise WorkersLost(
                f"no worker started within {START_SECONDS / 60:g} minutes on {self.connection.where}; the same command "
                "continues"
            )
        if len(ready) == len(self._slots) and not self._reported_ready:
            self._reported_ready = True
            hosts = ", ".join(sorted({each.host for each in ready}))
            threads = f", {ready[0].threads} CPU threads each" * (ready[0].device == "cpu")
            self.callbacks.note(f"{_count(len(ready))} ready on {hosts}: {ready[0].device}{threads}")

    def _drop_unused_weights(self) -> None:
        running = [slot.assignment for slot in self._slots if slot.assignment]
        used = {each.version for each in [*running, *self._retries]} | {max(self._weights, default=0)}
        self._weights = {version: ref for version, ref in self._weights.items() if version in used}


def worker_threads(conditions: Conditions, per_machine: int) -> int:
    """CPU threads of each of several workers on a machine: an equal part of all, but no more than were settled."""
    part = max(1, conditions.available_threads // per_machine)
    return part if conditions.threads is None else min(part, conditions.threads)


def worker_settings(settings: ResolvedSettings, *, precision: str, on_gpus: bool) -> dict[str, Any]:
    """The settings of a study for its workers, without those that concern the weights, which the driver sends."""
    changes: dict[str, Any] = {"precision": precision, "device": "cuda" if on_gpus else "cpu"}
    changes |= {"pretrained": False, "checkpoint": None, "resume_from": None}  # they receive the shared weights
    return settings.absolute().public() | changes  # workers start in other folders


def _count(number: int) -> str:
    return f"{number} worker{'s' * (number > 1)}"


def _describe(error: Exception) -> str:
    """The cause of a worker's death in a few words, from Ray's many lines."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    if "creation task" in lines[0]:  # the last line is that of the traceback
        return lines[-1].strip()
    text = " ".join(" ".join(lines).split())
    return next((words for pattern, words in _CAUSES if re.search(pattern, text)), text[:160])


_CAUSES = (
    ("memory pressure", "Ray ended it because memory was full"),
    ("node (has )?died", "its machine is gone"),
    ("ray.kill", "it exceeded its time limit"),
    ("unexpectedly exits|process has died", "its process died"),
    ("temporarily unavailable", "it cannot be reached"),
)
"""Patterns of Ray's messages and their meaning; the first match counts."""
