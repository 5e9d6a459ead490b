"""Who evaluates the trials of a search: this process, or workers on Ray."""

from ltmsearch.workers.here import ThisProcess
from ltmsearch.workers.tasks import Answer, Task, Workers

__all__ = ["Answer", "Task", "ThisProcess", "Workers"]
