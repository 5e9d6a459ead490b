"""Workers that evaluate the trials of a search: this process, or processes on Ray."""

from ltmsearch.search.workers.local import LocalWorker
from ltmsearch.search.workers.tasks import Answer, ScoreAnswer, ScoreTask, Task, Workers

__all__ = ["Answer", "LocalWorker", "ScoreAnswer", "ScoreTask", "Task", "Workers"]
