"""How a long run tells what it is doing, without knowing who watches."""


class Observer:
    """Hears of a run's progress. This one is silent; the command line draws bars."""

    def note(self, line: str) -> None:
        """One line for a person."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` equal parts begins; the one before has ended."""

    def advance(self, done: int, status: str = "") -> None:
        """`done` parts of the phase are done; `status` says how it stands."""

    def close(self) -> None:
        """The run is over, finished or not."""
