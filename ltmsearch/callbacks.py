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


def about(seconds: float) -> str:
    """An estimated duration: about 20 s, about 4 minutes, about 2.5 hours."""
    if seconds < 90:
        step = 1 if seconds < 20 else 5
        return f"about {max(1, step * round(seconds / step))} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours"
