"""The worker in this process: the default, and the reference for all others."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ltmsearch.errors import TrialFailed
from ltmsearch.schedules.schedule import MergeSchedule
from ltmsearch.search.trial import Evaluator, load_parameters
from ltmsearch.search.workers.tasks import Answer, Task


class LocalWorker:
    """Evaluates one trial at a time, when its answer is requested."""

    remote = False

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self._next: tuple[Task, Mapping[str, Tensor]] | None = None

    def free(self) -> int:
        return int(self._next is None)

    def start(self, task: Task, version: int, weights: Mapping[str, Tensor]) -> None:
        self._next = task, weights

    def answers(self) -> list[Answer]:
        if self._next is None:
            return []
        (task, weights), self._next = self._next, None
        return [evaluate_task(self.evaluator, task, weights)]

    def scores(
        self,
        schedules: Sequence[MergeSchedule],
        images: int | None,
        version: int,
        weights: Mapping[str, Tensor],
        *,
        limit: float,
    ) -> list[float]:
        load_parameters(self.evaluator.supernet, weights)
        return [self.evaluator.screening_score(schedule, images) for schedule in schedules]

    def close(self) -> None:
        pass


def evaluate_task(evaluator: Evaluator, task: Task, weights: Mapping[str, Tensor], worker: str = "") -> Answer:
    """Evaluate one trial; the failure of a single trial becomes an answer."""
    try:
        result = evaluator.evaluate(
            weights, task.schedule, ib_weight=task.ib_weight, seed=task.seed, steps=task.steps, limit=task.limit
        )
    except TrialFailed as error:
        return Answer(trial=task.trial, failure=str(error), worker=worker)
    return Answer(trial=task.trial, result=result, worker=worker)
