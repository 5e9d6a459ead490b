"""A worker on Ray: keeps a supernet and the images on its device, and evaluates tasks."""

import os
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltmsearch.callbacks import Callbacks
from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.errors import InputError
from ltmsearch.search.evaluators import make_evaluator, open_supernet_and_data
from ltmsearch.search.settled import requested_runtime
from ltmsearch.search.trial import Evaluator, load_parameters
from ltmsearch.search.workers.local import evaluate_task
from ltmsearch.search.workers.tasks import Answer, ScoreAnswer, ScoreTask, Task

Arrays = Mapping[str, np.ndarray]
"""Tensors by name, as workers read them in place from Ray's object store."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker that can evaluate tasks."""

    host: str
    device: str
    """Device and number format."""
    threads: int
    """Threads of its matrix products on a CPU."""


class TrialWorker:
    """A worker in its own process, on any machine of the cluster."""

    def __init__(
        self, settings: dict[str, Any], threads: int, scoring_precision: str, sides: Mapping[int, int]
    ) -> None:
        self.settings = ResolvedSettings(**settings)
        self.threads, self.scoring_precision, self.sides = threads, scoring_precision, sides
        self.host = socket.gethostname()
        self.evaluator: Evaluator

    def prepare(self, state: Arrays, teacher: Arrays) -> Ready:
        """Build the supernet with the buffers of the driver's state dict, and read the data.

        `teacher` are the predictions of the study's teacher; empty without one.

        Raises:
            InputError: For errors that the user can fix, such as data that is missing on this machine.
        """
        torch.set_num_threads(self.threads)
        try:
            supernet, data = open_supernet_and_data(self.settings, Callbacks())
            training, scoring = (
                requested_runtime(self.settings.device, precision)
                for precision in (self.settings.precision, self.scoring_precision)
            )
        except InputError as error:
            raise InputError(f"the worker on {self.host}: {error}") from None
        self.evaluator = make_evaluator(
            supernet, data, self.settings, training=training, scoring=scoring, sides=self.sides
        )
        self.evaluator.supernet.load_state_dict(to_tensors(state))
        self.evaluator.teacher.predictions.update(to_tensors(teacher))
        return Ready(host=self.host, device=str(training.device), threads=self.threads)

    def evaluate(self, task: Task, weights: Arrays) -> Answer:
        """Evaluate a task from these parameters; the trained parameters are returned as arrays."""
        answer = evaluate_task(self.evaluator, task, to_tensors(weights), worker=f"{self.host}:{os.getpid()}")
        if answer.result is None:
            return answer
        return replace(answer, result=replace(answer.result, weights=to_arrays(answer.result.weights)))

    def score(self, task: ScoreTask, weights: Arrays) -> ScoreAnswer:
        """Score a schedule with these parameters."""
        load_parameters(self.evaluator.supernet, to_tensors(weights))
        return ScoreAnswer(place=task.place, value=self.evaluator.screening_score(task.schedule, task.images))


def to_arrays(tensors: Mapping[str, Tensor]) -> Any:
    """Copy tensors to arrays in main memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """View arrays as tensors over the same memory, which must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
