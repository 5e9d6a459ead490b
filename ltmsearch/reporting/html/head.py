"""The head of a report: what was searched on what, what was found, the front as a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltmsearch.config.settings import ResolvedSettings
from ltmsearch.reporting.findings import Findings, sentences
from ltmsearch.reporting.html.parts import DataTable, counted, duration, plain_table, with_error
from ltmsearch.reporting.pareto_plot import breaks_budget
from ltmsearch.search.records import TrialRecord, form_key, front_table, select_references
from ltmsearch.search.timing import Times


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands above the chapters."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """Name and value."""
    learned: str
    """One paragraph."""
    front: DataTable
    """With the plain net and the best uniform schedule behind it."""
    notes: tuple[str, ...]
    """What marks in the table mean."""


def make_head(records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings, times: Times) -> Head:
    """The head of one run's report; arguments as for `make_chapters`."""
    return Head(
        title=f"{settings.backbone} with {settings.operator} merging",
        facts=tuple(_facts(records, settings, times)),
        learned=" ".join(sentences(findings)),
        front=_front(records, settings, findings),
        notes=tuple(_notes(records, settings, findings)),
    )


def _facts(records: Sequence[TrialRecord], settings: ResolvedSettings, times: Times) -> list[tuple[str, str]]:
    by_state: dict[str, int] = {}
    for record in records:
        by_state[record.state] = by_state.get(record.state, 0) + 1
    words = {"over budget": "rejected over the budget", "below range": "rejected below the range"}
    trials = ", ".join(f"{number} {words.get(state, state)}" for state, number in by_state.items()) or "none yet"
    when, took = "not known: the run was made before this was kept", "not known"
    if times.stints:
        when = f"{times.stints[0].started:%Y-%m-%d %H:%M %z}"
        if len(times.stints) > 1:
            continued = counted(len(times.stints) - 1, "time")
            when += f", continued {continued}, last {times.stints[-1].started:%Y-%m-%d %H:%M %z}"
        took = duration(times.total)
    folder = settings.data_dir
    sizes = f"{settings.img_size} px for costs, {settings.proxy_img_size} px for training and scoring"
    return [
        ("Study", str(settings.study)),
        ("Backbone", settings.backbone),
        ("Merging operator", settings.operator),
        ("Data", settings.dataset if folder is None else f"{settings.dataset}: {Path(folder).name}"),
        ("Budget", _budget(settings)),
        ("Image size", sizes),
        ("Trials", trials),
        ("When", when),
        ("Took", took),
    ]  # fmt: skip


def _budget(settings: ResolvedSettings) -> str:
    budgets = []
    if settings.budget_ms is not None:
        batch = "" if settings.latency_profile else f" of {settings.latency_batch}"
        budgets.append(f"{settings.budget_ms:g} ms per batch{batch}")
    if settings.budget_gflops is not None:
        lowest = "" if settings.lowest_gflops is None else f"{settings.lowest_gflops:g} to "
        budgets.append(f"{lowest}{settings.budget_gflops:g} GFLOPs per image (one multiply-add = one FLOP)")
    return " and ".join(budgets)


_MERGED = ("top1_se", "latency_measured_se_ms", "keep_ratios", "forms", "supernet_version")
"""Columns of `front.csv` that stand in another cell here, or say nothing: all have the final weights."""


def _front(records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings) -> DataTable:
    table = front_table(records, settings.axis.name)
    references = select_references(records)
    by_number = {record.trial: record for record in records}
    shown = table.astype(object).where(table.notna(), None).to_dict("records")
    rows = [(by_number[row["trial"]], {str(name): value for name, value in row.items()}) for row in shown]
    compared = [(record, _as_row(record, list(table.columns))) for record in references]
    names = [n for n in table.columns if n not in _MERGED and any(row.get(n) is not None for _, row in rows + compared)]
    stages = [stage for stage, _ in records[0].by_stage()] if records else []
    unit = "ms, predicted" if settings.axis.name == "latency_ms" else "ms"
    headings = [{**_HEADINGS, "latency_ms": unit}.get(name, name.replace("_", " ")) for name in names] + stages

    def cells(record: TrialRecord, row: Mapping[str, Any]) -> list[str]:
        values = [_CELLS.get(name, _number)(row, name) for name in names]
        if "latency_measured_ms" in names and breaks_budget(record, settings.axis):
            values[names.index("latency_measured_ms")] += " !"
        return values + [ratios for _, ratios in record.by_stage()]

    front = [cells(record, row) for record, row in rows]
    others = [cells(record, row) for record, row in compared]
    for record, line in zip(references, others, strict=True):
        line[0] = f"{record.trial}, {record.name}" + ("" if record.feasible else " (over budget)")
        if record.score is not None and not record.score.rescored:
            line[names.index("top1")] += " *"
    caption = f"The front, {counted(len(front), 'trial')}, best first" if front else "No front yet"
    return plain_table(caption, headings, front, others)


def _as_row(record: TrialRecord, columns: Sequence[str]) -> dict[str, Any]:
    """A trial that need not be on the front, as `front_table` has those that are."""
    row = {name: getattr(record, name, None) for name in columns}
    if record.score is not None:
        row |= {"top1": record.score.top1, "top1_se": record.score.top1_se, "loss": record.score.loss}
    return row


def _notes(records: Sequence[TrialRecord], settings: ResolvedSettings, findings: Findings) -> list[str]:
    references = select_references(records)
    notes = [
        f"Columns named by layers hold their keep ratios in the order of the net; 1 is a plain layer"
        f"{form_key([*findings.front, *references])}. Below the line stand the plain net and the best uniform "
        f"schedule. Top-1 is a proxy, after minutes of training on small images: it ranks schedules, and is not what a "
        f"net reaches when it is trained by its recipe."
    ]
    if any(record.expected_top1 is not None for record in findings.front):
        notes.append("expected: the mean of top-1 and what the loss lets expect; the front goes by it")
    if any(record.rescored_top1 is None for record in references):
        notes.append("* scored when the trial ran, not with the final weights")
    if any(breaks_budget(record, settings.axis) for record in findings.front):
        notes.append("! predicted within the budget, but measured over it")
    return notes


def _number(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _fixed(digits: int, error: str | None = None) -> Callable[[Mapping[str, Any], str], str]:
    return lambda row, name: with_error(row[name], row.get(error) if error else None, digits)


_HEADINGS = {
    "gflops": "GFLOPs", "latency_measured_ms": "ms, measured", "top1": "top-1, %",
    "expected_top1": "expected top-1, %", "ib_weight": "IB weight",
}  # fmt: skip
_CELLS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "gflops": _fixed(4),
    "latency_ms": _fixed(2),
    "latency_measured_ms": _fixed(2, "latency_measured_se_ms"),
    "top1": _fixed(1, "top1_se"),
    "loss": _fixed(4),
    "expected_top1": _fixed(1),
    "ib_weight": lambda row, name: "" if row[name] is None else f"{row[name]:.3g}",
}
