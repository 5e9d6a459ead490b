"""Who evaluates the trials of a search: this process, or workers on Ray."""

from ltmsearch.search.workers.local import ThisProcess
from ltmsearch.search.workers.tasks import Answer, Task, Workers

__all__ = ["Answer", "Task", "ThisProcess", "Workers"]
