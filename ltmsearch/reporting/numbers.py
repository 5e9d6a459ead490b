"""Numbers and costs as text."""

from ltmsearch.config.objective import CostAxis
from ltmsearch.search.records import TrialRecord


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s or 1 h 2 min."""
    whole = round(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def text(value: float | None, form: str = ".4g") -> str:
    """A number in a format; empty for None."""
    words = "" if value is None else format(value, form)
    return f"−{words[1:]}" if words.startswith("-") else words


def with_error(value: float | None, error: float | None, digits: int = 1) -> str:
    """A number and its standard error if there is one; empty for None."""
    return text(value, f".{digits}f") + ("" if error is None else f" ± {error:.{digits}f}")


def cost_text(record: TrialRecord, axis: CostAxis) -> str:
    """Cost of a trial without its unit."""
    return axis.text(record.cost(axis.name)).partition(" ")[0]


def breaks_budget(record: TrialRecord, axis: CostAxis) -> bool:
    """Whether a trial predicted within a latency budget was measured over it."""
    if axis.name != "latency_ms" or axis.budget is None or record.latency_measured_ms is None:
        return False
    return record.feasible and record.latency_measured_ms > axis.budget
