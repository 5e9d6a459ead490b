"""The front as a table: plain text cells and captions, which the terminal, the report and the dashboard print."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ltmsearch.config.objective import CostAxis, tokens_text
from ltmsearch.reporting.numbers import SHORT, breaks_budget, points, text, with_error
from ltmsearch.reporting.verdict import Verdict
from ltmsearch.schedules.schedule import amount_of
from ltmsearch.search.records import TrialRecord, form_key, form_letters, select_front, select_references

RECOMMENDED, NOT_BETTER, NOT_FINAL, BROKEN = "→", "≈", "*", "!"
"""Marks: the recommended trial, a top-1 not significantly above that of a cheaper point, a score that is not final, and
a measured latency over the budget."""
IB_WEIGHT = "IB weight"
"""A column that is shown where any row has such a weight."""


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


def make_front_table(records: Iterable[TrialRecord], axis: CostAxis, verdict: Verdict | None = None) -> FrontTable:
    """Compute the table of the front from all trials of a study; the verdict adds its marks."""
    records = list(records)
    front, baselines = select_front(records, axis), select_references(records, axis)
    shown = [*front, *baselines]
    letters = form_letters(shown)
    rows = [_row(record, axis, verdict, "", letters) for record in front]
    named = {r.trial: r.name + ("" if r.feasible else " (over budget)") for r in baselines}
    compared = [_row(record, axis, verdict, named[record.trial], letters) for record in baselines]
    cells = [row.cells for row in (*rows, *compared)]
    title = f"Front: {len(front)} of {len(records)} trials" if front else "No front yet: no rescored trial"
    budget = "" if axis.budget is None else f", budget {axis.budget:g} {axis.unit}"
    if axis.lowest is not None:
        budget = f", budgets {axis.lowest:g} to {axis.budget:g} {axis.unit}"
    return FrontTable(
        title=title + budget,
        columns=tuple(
            name
            for name in (cells[0] if cells else ())
            if any(row[name] for row in cells) and (name != IB_WEIGHT or any(record.ib_weight for record in shown))
        ),
        front=tuple(rows),
        baselines=tuple(compared),
        amounts=f"{amount_of(shown[0].schedule.operator) if shown else 'keep ratio'}s",
        captions=tuple(_captions(front, baselines, axis, verdict)),
    )


def _row(
    record: TrialRecord, axis: CostAxis, verdict: Verdict | None, label: str, letters: Mapping[str, str]
) -> FrontRow:
    score = record.score
    assert score is not None, record
    measured = with_error(record.latency_measured_ms, record.latency_measured_se_ms, 2)
    mark = "" if score.final else NOT_FINAL
    if verdict is not None and record.trial in verdict.not_better:
        mark = f" {NOT_BETTER}"
    recommended = None if verdict is None else verdict.recommended
    cells = {
        "trial": str(record.trial) if record.trial != recommended else f"{RECOMMENDED} {record.trial}",
        "px": text(record.schedule.img_size, "d"),
        "GFLOPs": f"{record.gflops:.4f}",
        "sd": with_error(record.gflops_sd, None, 4),
        "quantile": with_error(record.gflops_quantile, None, 4),
        "predicted ms": with_error(record.latency_ms, None, 2),
        "measured ms": measured + (BROKEN if breaks_budget(record, axis) else ""),
        "tokens sent": "" if record.tokens_sent is None else tokens_text(record.tokens_sent),
        "top-1 %": f"{score}{mark}",
        "− plain": "0"
        if record.is_plain and not record.difference
        else points(record.difference, record.difference_se),
        "agreement %": with_error(record.agreement, record.agreement_se),
        SHORT[axis.measure]: with_error(record.rescored(axis.measure), None, 4),
        IB_WEIGHT: text(record.ib_weight, ".3g"),
    }
    return FrontRow(trial=record.trial, label=label, cells=cells, keep_ratios=dict(record.by_stage(letters)))


def _captions(
    front: Sequence[TrialRecord], baselines: Sequence[TrialRecord], axis: CostAxis, verdict: Verdict | None
) -> list[str]:
    shown = [*front, *baselines]
    lines = []
    if shown:
        amounts = f"{amount_of(shown[0].schedule.operator)}s".capitalize()
        lines.append(f"{amounts}, layer by layer in each stage: 1 = no merging{form_key(shown)}")
    if any(record.schedule.img_size for record in shown):
        lines.append("px: image side, where it is not the network's own")
    if any(record.gflops_sd is not None for record in shown):
        quantile = "; quantile: what the share budget_quantile of the images stays within"
        has_quantile = any(record.gflops_quantile is not None for record in shown)
        lines.append(f"GFLOPs, sd: mean and standard deviation over training images{quantile * has_quantile}")
    if axis.second is not None and shown:
        lines.append(axis.second.title)
    if any(record.report_top1 is not None for record in shown):
        images = "images" if verdict is None else f"{verdict.images} images"
        lines.append(f"top-1: on {images} that neither search nor choice saw, before training by recipe")
    if any(record.difference is not None for record in shown):
        lines.append("− plain: top-1 less the plain network's, points; agreement: same class as the plain network's")
    if front:
        lines.append(f"{_measure_words(axis)}, nats, final weights, validation images: chooses the front")
    if any(record.top1_se is not None or record.report_top1_se is not None for record in shown):
        lines.append("±: one standard error")
    return lines + _mark_lines(shown, axis, verdict)


def _measure_words(axis: CostAxis) -> str:
    return "KL: divergence from the plain network" if axis.measure == "kl" else "loss: cross-entropy"


def _mark_lines(shown: Sequence[TrialRecord], axis: CostAxis, verdict: Verdict | None) -> list[str]:
    """Explanations of the marks present."""
    scores = [record.score for record in shown]
    present = {
        f"{RECOMMENDED} recommended": verdict and verdict.recommendation,
        f"{NOT_BETTER} not significantly better than a cheaper point (95 %)": verdict and verdict.not_better,
        f"{NOT_FINAL} top-1 on search images when the trial ran": any(score and not score.final for score in scores),
        f"{BROKEN} predicted within the budget, but measured over it": any(breaks_budget(r, axis) for r in shown),
    }
    marks = [words for words, is_present in present.items() if is_present]
    return ["; ".join(marks)] if marks else []


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
