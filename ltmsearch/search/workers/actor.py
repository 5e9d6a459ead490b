"""What a worker on Ray does: it holds a supernet and the images on its device, and evaluates what it is handed."""

import os
import socket
import sys
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
from ltmsearch.search.setup import prepare_evaluator
from ltmsearch.search.trial import Evaluator
from ltmsearch.search.workers.local import evaluated
from ltmsearch.search.workers.tasks import Answer, Task

Arrays = Mapping[str, np.ndarray]
"""Tensors by name as Ray's object store holds them, which workers read in place."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker that may be handed trials."""

    host: str
    """Name of its machine."""
    pid: int
    """Of its process."""
    device: str
    """Device and number format."""
    threads: int
    """Of its matrix products on a CPU."""
    memory_gib: float
    """What its process holds."""


@dataclass(frozen=True)
class Refused:
    """What a worker cannot do for a reason that the user can mend, such as data that its machine lacks."""

    reason: str


class TrialWorker:
    """Lives in a process of its own, on whatever machine of the cluster.

    Args:
        settings: Of the study, as `ResolvedSettings.public` gives them.
        threads: Of matrix products on a CPU.
    """

    def __init__(self, settings: dict[str, Any], threads: int) -> None:
        self.settings = ResolvedSettings(**settings)
        self.threads = threads
        self.evaluator: Evaluator | None = None

    def prepare(self, state: Arrays) -> Ready | Refused:
        """Build the supernet and read the data.

        Args:
            state: State dict of the driver's supernet: buffers count, parameters come anew with every trial.
        """
        torch.set_num_threads(self.threads)
        try:
            self.evaluator = prepare_evaluator(self.settings, Callbacks())
        except InputError as error:
            return Refused(f"the worker on {socket.gethostname()}: {error}")
        self.evaluator.supernet.load_state_dict(to_tensors(state))
        return Ready(
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self.evaluator.runtime.device),
            threads=self.threads,
            memory_gib=_resident_bytes() / 2**30,
        )

    def evaluate(self, task: Task, weights: Arrays) -> Answer | Refused:
        """Evaluate a trial from these parameters; what it trained comes back as arrays."""
        if self.evaluator is None:
            raise RuntimeError("`prepare` must come before `evaluate`")
        try:
            answer = evaluated(
                self.evaluator, task, to_tensors(weights), worker=f"{socket.gethostname()}:{os.getpid()}"
            )
        except InputError as error:
            return Refused(f"the worker on {socket.gethostname()}: {error}")
        if answer.result is None:
            return answer
        return replace(answer, result=replace(answer.result, weights=to_arrays(answer.result.weights)))


def to_arrays(tensors: Mapping[str, Tensor]) -> Any:
    """Tensors as arrays in main memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """Arrays as tensors over the same memory, which must only be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def _resident_bytes() -> int:
    """What this process holds in memory; on systems without /proc what it held at most."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
