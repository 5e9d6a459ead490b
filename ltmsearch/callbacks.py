"""Progress and notes: the one channel by which long work reports to whoever runs it."""


class Callbacks:
    """Receives the progress and notes of a run. This one ignores them; the command line draws bars and prints lines."""

    def note(self, line: str) -> None:
        """Receive one line for a person."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` equal parts starts; the one before has ended."""

    def advance(self, done: int, status: str = "") -> None:
        """`done` parts of the phase are done; `status` describes the state in a few words."""

    def close(self) -> None:
        """The run has ended, finished or not."""
