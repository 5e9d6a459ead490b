"""Numbers and costs as text."""

from ltmsearch.config.objective import CostAxis, Measure, tokens_text
from ltmsearch.search.records import TrialRecord

SHORT: dict[Measure, str] = {"kl": "KL", "loss": "loss"}
"""Short names of the measures, both in nats, for tables."""


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


def points(difference: float | None, error: float | None = None) -> str:
    """A difference of top-1 in points, its sign always shown, and its standard error; empty for None."""
    return text(difference, "+z.1f") + ("" if error is None else f" ± {error:.1f}")


def costs_text(record: TrialRecord, axis: CostAxis) -> str:
    """All costs of a trial on the front's axes, with their units."""
    return ", ".join(each.text(record.cost(each.name)) for each in axis.axes)


def cost_text(record: TrialRecord, axis: CostAxis) -> str:
    """Cost of a trial without its unit."""
    return axis.number(record.cost(axis.name))


def trial_facts(record: TrialRecord) -> list[tuple[str, str]]:
    """Name and value of everything known about a trial's cost and scores."""
    size = record.schedule.img_size
    facts = [*([] if size is None else [("image side", f"{size} px")]), ("GFLOPs", f"{record.gflops:.4f}")]
    if record.gflops_sd is not None:
        facts.append(("GFLOPs, standard deviation over images", f"{record.gflops_sd:.4f}"))
    if record.gflops_quantile is not None:
        facts.append(("GFLOPs, quantile of the budget", f"{record.gflops_quantile:.4f}"))
    if record.latency_ms is not None:
        facts.append(("ms per batch, predicted", f"{record.latency_ms:.2f}"))
    if record.latency_measured_ms is not None:
        measured = with_error(record.latency_measured_ms, record.latency_measured_se_ms, 2)
        facts.append(("ms per batch, measured", measured))
    if record.tokens_sent is not None:
        facts.append(("tokens sent", tokens_text(record.tokens_sent)))
    facts += _final_facts(record)
    if record.top1 is not None:
        values = [f"top-1 {with_error(record.top1, record.top1_se)} %", *_measures(record.kl, record.loss)]
        facts.append((f"search images, when it ran (weights version {record.supernet_version})", ", ".join(values)))
    if record.mi_x is not None and record.mi_y is not None and record.ibb is not None:
        facts.append(("I(X̃;X), I(X̃;Y), IB bound", f"{record.mi_x:.3g}, {record.mi_y:.3g}, {record.ibb:.3g} nats"))
    return facts if record.ib_weight is None else [*facts, ("IB weight", f"{record.ib_weight:.3g}")]


def _final_facts(record: TrialRecord) -> list[tuple[str, str]]:
    facts = []
    if record.report_top1 is not None:
        facts.append(("top-1 of reported images", f"{with_error(record.report_top1, record.report_top1_se)} %"))
    if record.difference is not None:
        facts.append(("top-1 less the plain network's", f"{points(record.difference, record.difference_se)} points"))
    if record.agreement is not None:
        facts.append(("agreement with the plain network", f"{with_error(record.agreement, record.agreement_se)} %"))
    if values := _measures(record.rescored_kl, record.rescored_loss):
        facts.append((f"validation images, final weights (version {record.rescored_version})", ", ".join(values)))
    return facts


def _measures(kl: float | None, loss: float | None) -> list[str]:
    pairs = ((SHORT["kl"], kl), (SHORT["loss"], loss))
    return [f"{name} {value:.4f} nats" for name, value in pairs if value is not None]


def breaks_budget(record: TrialRecord, axis: CostAxis) -> bool:
    """Whether a trial predicted within a latency budget was measured over it."""
    if axis.name != "latency_ms" or axis.budget is None or record.latency_measured_ms is None:
        return False
    return record.feasible and record.latency_measured_ms > axis.budget
