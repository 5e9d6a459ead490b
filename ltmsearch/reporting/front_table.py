"""The front as a table: plain text cells and captions, which the terminal, the report and the dashboard print."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ltmsearch.config.objective import CostAxis, tokens_text
from ltmsearch.reporting.numbers import breaks_budget, text, with_error
from ltmsearch.schedules.schedule import amount_of
from ltmsearch.search.records import TrialRecord, form_key, form_letters, select_front, select_references


@dataclass(frozen=True, kw_only=True)
class FrontRow:
    """One trial."""

    trial: int
    label: str
    """Name of a baseline, such as "plain (over budget)"; empty on the front."""
    cells: Mapping[str, str]
    """Column → text."""
    keep_ratios: Mapping[str, str]
    """Stage → keep ratios of its layers."""


@dataclass(frozen=True, kw_only=True)
class FrontTable:
    """The front, best first, and the baselines to compare it with."""

    title: str
    columns: tuple[str, ...]
    """Columns that have a value in any row."""
    front: tuple[FrontRow, ...]
    baselines: tuple[FrontRow, ...]
    """The plain network, and the best uniform schedule within the budget."""
    amounts: str
    """What `keep_ratios` are: "keep ratios" or "thresholds"."""
    captions: tuple[str, ...]
    """Explanations of the marks and columns present."""

    @property
    def rows(self) -> tuple[FrontRow, ...]:
        """The front, then the baselines."""
        return (*self.front, *self.baselines)


def make_front_table(records: Iterable[TrialRecord], axis: CostAxis) -> FrontTable:
    """Compute the table of the front from all trials of a study."""
    records = list(records)
    front, baselines = select_front(records, axis.costs), select_references(records)
    shown = [*front, *baselines]
    letters = form_letters(shown)
    rows = [_row(record, axis, "", letters) for record in front]
    compared = [_row(r, axis, r.name + ("" if r.feasible else " (over budget)"), letters) for r in baselines]
    cells = [row.cells for row in (*rows, *compared)]
    title = f"Front: {len(front)} of {len(records)} trials" if front else "No front yet: no rescored trial"
    budget = "" if axis.budget is None else f", budget {axis.budget:g} {axis.unit}"
    if axis.lowest is not None:
        budget = f", budgets {axis.lowest:g} to {axis.budget:g} {axis.unit}"
    return FrontTable(
        title=title + budget,
        columns=tuple(name for name in (cells[0] if cells else ()) if any(row[name] for row in cells)),
        front=tuple(rows),
        baselines=tuple(compared),
        amounts=f"{amount_of(shown[0].schedule.operator) if shown else 'keep ratio'}s",
        captions=tuple(_captions(front, baselines, axis)),
    )


def _row(record: TrialRecord, axis: CostAxis, label: str, letters: Mapping[str, str]) -> FrontRow:
    score = record.score
    assert score is not None, record
    measured = with_error(record.latency_measured_ms, record.latency_measured_se_ms, 2)
    cells = {
        "trial": str(record.trial),
        "GFLOPs": f"{record.gflops:.4f}",
        "sd": with_error(record.gflops_sd, None, 4),
        "quantile": with_error(record.gflops_quantile, None, 4),
        "predicted ms": with_error(record.latency_ms, None, 2),
        "measured ms": measured + ("!" if breaks_budget(record, axis) else ""),
        "tokens sent": "" if record.tokens_sent is None else tokens_text(record.tokens_sent),
        "top-1 %": f"{score}{'' if score.rescored else '*'}",
        "expected": with_error(record.expected_top1, None),
        "agreement %": with_error(record.agreement, record.agreement_se),
        "loss": with_error(score.loss, None, 4),
        "IB weight": text(record.ib_weight, ".3g"),
    }
    return FrontRow(trial=record.trial, label=label, cells=cells, keep_ratios=dict(record.by_stage(letters)))


def _captions(front: Sequence[TrialRecord], baselines: Sequence[TrialRecord], axis: CostAxis) -> list[str]:
    shown = [*front, *baselines]
    lines = []
    if shown:
        amounts = f"{amount_of(shown[0].schedule.operator)}s".capitalize()
        lines.append(f"{amounts}, layer by layer in each stage: 1 = no merging{form_key(shown)}")
    if any(record.gflops_sd is not None for record in shown):
        quantile = "; quantile: what the share budget_quantile of the images stays within"
        has_quantile = any(record.gflops_quantile is not None for record in shown)
        lines.append(f"GFLOPs, sd: mean and standard deviation over training images{quantile * has_quantile}")
    if axis.second is not None and shown:
        lines.append(axis.second.title)
    if any(record.expected_top1 is not None for record in shown):
        lines.append("expected: mean of top-1 and the top-1 predicted from the loss; ranks the front")
    if any(record.agreement is not None for record in shown):
        lines.append("agreement: images answered as by the plain network with the same weights")
    if any(record.rescored_top1 is None for record in baselines):
        lines.append("* scored when the trial ran, not with the final weights")
    if any(breaks_budget(record, axis) for record in shown):
        lines.append("! predicted within the budget, but measured over it")
    return lines


def prediction_lines(front: Sequence[TrialRecord], axis: CostAxis) -> list[str]:
    """Errors of the latency predictions for the front; empty if it was not measured."""
    timed = [(r, r.cost(axis.name), r.latency_measured_ms) for r in front if r.latency_measured_ms is not None]
    if not timed:
        return []
    error = sum(abs(predicted - measured) / measured for _, predicted, measured in timed) / len(timed)
    lines = [f"front measured end to end: mean error of the latency predictions {error:.1%}"]
    broken = [str(r.trial) for r, _, _ in timed if breaks_budget(r, axis)]
    if broken:
        lines.append(f"measured over the budget of {axis.budget:g} ms: trial {', '.join(broken)}")
    return lines
