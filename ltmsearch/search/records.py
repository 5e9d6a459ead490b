"""What is known about each trial, as plain data, and its two tables: `trials.csv` and `front.csv`.

The study writes records, reports and recipes read them; nothing here knows Optuna, torch or plotly. Units:
top-1 in percent (0-100), standard errors in percentage points, loss in nats, latency in milliseconds.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from ltmsearch.config.objective import CostName
from ltmsearch.errors import InputError
from ltmsearch.io.csv_tables import Converter, optional, read_rows, whole
from ltmsearch.io.files import parse_json, write_atomic
from ltmsearch.schedules.schedule import Form, MergeSchedule
from ltmsearch.search.pareto import is_non_dominated

TRIALS, FRONT = "trials.csv", "front.csv"
"""Names of the two tables in a run directory."""

Kind = Literal["searched", "start-up", "baseline"]
State = Literal["scored", "over budget", "below range", "failed"]

FRONT_COLUMNS = (
    "trial",
    "gflops",
    "latency_ms",
    "latency_measured_ms",
    "latency_measured_se_ms",
    "top1",
    "top1_se",
    "loss",
    "expected_top1",
    "ib_weight",
    "supernet_version",
    "keep_ratios",
    "forms",
)


class BestScore(NamedTuple):
    """How well a trial does, by the best measurement there is."""

    top1: float
    top1_se: float | None
    loss: float | None
    rescored: bool
    """Whether it was measured with the final weights; else when the trial ran."""

    def __str__(self) -> str:
        return f"{self.top1:.1f}" + ("" if self.top1_se is None else f" ± {self.top1_se:.1f}")


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study. What was not measured is None.

    Raises:
        ValueError: A field is out of its range, or a score does not go with the state.
    """

    trial: int
    """Number of the trial in the study, from 0."""
    kind: Kind
    """Proposed by the sampler, drawn to cover the range at the start, or enqueued for comparison."""
    label: str = ""
    """What a baseline is called, e.g. "plain" or "uniform 0.5", or where a start-up trial comes from; else empty."""
    state: State
    """"over budget" and "below range" (of budgets) were rejected by their cost alone, "failed" diverged or broke: none
    has a score."""
    feasible: bool
    """Within every budget. A plain net over budget is scored as a reference and stays infeasible."""
    gflops: float
    """Cost of one image, by the counting rule of `ltmsearch.costs`."""
    latency_ms: float | None = None
    """Predicted, of one batch; None in a study without a latency budget."""
    latency_measured_ms: float | None = None
    """Timed end to end at the study's close, where that was done."""
    latency_measured_se_ms: float | None = None
    """Its standard error."""
    top1: float | None = None
    """Score when the trial ran, with the shared weights of that moment."""
    top1_se: float | None = None
    loss: float | None = None
    rescored_top1: float | None = None
    """Score with the final shared weights, comparable between trials."""
    rescored_top1_se: float | None = None
    rescored_loss: float | None = None
    rescored_version: int | None = None
    """Version of the shared weights behind `rescored_top1`."""
    expected_top1: float | None = None
    """What the front goes by: the re-scored top-1, steadied by the loss. See `rescoring.with_expected_top1`."""
    ib_weight: float | None = None
    """Weight of the IB loss in the trial's training; 0 is none."""
    mi_x: float | None = None
    """I(X̃;X) of features and inputs of the validation images, after the trial's training, in nats."""
    mi_y: float | None = None
    """I(X̃;Y) of features and labels of the same."""
    ibb: float | None = None
    """Bound of their difference, what the IB loss is."""
    supernet_version: int | None = None
    """Version of the shared weights behind `top1`."""
    seconds: float | None = None
    """Wall time of the trial."""
    schedule: MergeSchedule
    """Keep ratio and form of every layer that may merge, in the order of the network."""

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, get_args(Kind))
        _check_choice("state", self.state, get_args(State))
        _check_range("trial", self.trial, low=0)
        for name in (
            "gflops",
            "latency_ms",
            "latency_measured_ms",
            "latency_measured_se_ms",
            "top1_se",
            "rescored_top1_se",
            "seconds",
            "supernet_version",
            "rescored_version",
            "ib_weight",
        ):
            _check_range(name, getattr(self, name), low=0)
        for name in ("top1", "rescored_top1", "expected_top1"):
            _check_range(name, getattr(self, name), low=0, high=100)
        for name in ("loss", "rescored_loss", "mi_x", "mi_y", "ibb"):
            _check_range(name, getattr(self, name))
        if (self.top1 is not None) != (self.state == "scored"):
            raise ValueError(
                f"`top1` must be given when `state` is 'scored' and only then, "
                f"but got state={self.state!r}, top1={self.top1!r}."
            )
        for name in ("rescored_top1", "expected_top1"):
            if getattr(self, name) is not None and self.state != "scored":
                raise ValueError(f"`{name}` needs `state` 'scored', but got state={self.state!r}.")

    def cost(self, name: CostName) -> float:
        """Its cost of one kind.

        Raises:
            ValueError: If that is not known.
        """
        cost: float | None = getattr(self, name)
        if cost is None:
            raise ValueError(f"`{name}` of trial {self.trial} is not known.")
        return cost

    @property
    def name(self) -> str:
        """The label, or the number for trials without one."""
        return self.label or f"trial {self.trial}"

    @property
    def score(self) -> BestScore | None:
        """The re-scored values where there are any, else those of the trial's time, None without a score."""
        if self.rescored_top1 is not None:
            return BestScore(self.rescored_top1, self.rescored_top1_se, self.rescored_loss, True)
        return None if self.top1 is None else BestScore(self.top1, self.top1_se, self.loss, False)

    @property
    def standing(self) -> float | None:
        """The top-1 that the trial is ranked and drawn by: the expected one, else as measured, None without a score."""
        if self.expected_top1 is not None:
            return self.expected_top1
        return None if self.score is None else self.score.top1

    def by_stage(self) -> list[tuple[str, str]]:
        """The keep ratios in short, as `("stages.2.1.transformer", "1 .5 .5h")`.

        1 is a plain layer; h marks the hard form, m the matched one. A stage is what stands before the last number in
        the names of its layers.
        """
        stages = groupby(self.schedule.keep_ratios.items(), key=lambda item: item[0].rpartition(".")[0])
        return [(stage, " ".join(self.in_short(layer) for layer, _ in layers)) for stage, layers in stages]

    def in_short(self, layer: str) -> str:
        """The keep ratio and form of one layer, as `by_stage` writes them."""
        letter = {"hard": "h", "matched": "m"}.get(self.schedule.form(layer) or "", "")
        return f"{self.schedule.keep_ratio(layer):.3g}".removeprefix("0") + letter


def form_key(records: Iterable[TrialRecord]) -> str:
    """What the letters behind keep ratios mean, where there are any."""
    used = {form for record in records for form in record.schedule.forms.values()}
    letters = [f"{form[0]} {form}" for form in ("hard", "matched") if form in used]
    return f" ({', '.join(letters)} form)" if letters else ""


TRIALS_COLUMNS = (*(field.name for field in fields(TrialRecord) if field.name != "schedule"), "keep_ratios", "forms")


def select_front(records: Iterable[TrialRecord], cost: CostName = "gflops") -> list[TrialRecord]:
    """The feasible re-scored trials whose expected top-1 and cost no other one beats, best first, so dearest first.

    Of trials equal in both, the one of lower re-scored loss stands for all; after that the earlier one.
    """
    candidates = [r for r in records if r.feasible and r.rescored_top1 is not None]
    points = np.array([(r.standing, r.cost(cost)) for r in candidates])
    kept = is_non_dominated(points, (True, False))
    front: dict[float, TrialRecord] = {}  # on a front, equal cost means equal top-1 as well
    for record in (r for r, keep in zip(candidates, kept, strict=True) if keep):
        rival = front.setdefault(record.cost(cost), record)
        if _tie_order(record) < _tie_order(rival):
            front[record.cost(cost)] = record
    return [front[dearest] for dearest in sorted(front, reverse=True)]  # dearest first is best first


def select_references(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """What a front is compared with: the plain net and, of the other baselines within the budget, the best.

    Only those with a score; re-scored ones go before others.
    """
    baselines = [(r, r.score) for r in records if r.kind == "baseline" and r.score is not None]
    plain = [r for r, _ in baselines if not r.schedule.merging_layers]
    rivals = [(score.rescored, r.standing, -r.trial, r) for r, score in baselines if r.feasible and r not in plain]
    return plain[:1] + [best[-1] for best in sorted(rivals, key=lambda rival: rival[:3])[-1:]]


def front_table(records: Iterable[TrialRecord], cost: CostName = "gflops") -> pd.DataFrame:
    """The front of `records` as `front.csv` holds it: re-scored values, keep ratios as a JSON object."""
    final = [
        replace(
            r,
            top1=r.rescored_top1,
            top1_se=r.rescored_top1_se,
            loss=r.rescored_loss,
            supernet_version=r.rescored_version,
        )
        for r in select_front(records, cost)
    ]
    return _table(FRONT_COLUMNS, [_row(record, FRONT_COLUMNS) for record in final])


def trials_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """All trials in their order, a column for each field of `TrialRecord`, keep ratios as a JSON object."""
    in_order = sorted(records, key=lambda r: r.trial)
    return _table(TRIALS_COLUMNS, [_row(record, TRIALS_COLUMNS) for record in in_order])


def write_csv(frame: pd.DataFrame, path: str | Path) -> Path:
    """Writes a table so that reading it gives the same floats again; see `write_atomic` for how."""
    return write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def read_trials(path: str | Path, operator: str) -> list[TrialRecord]:
    """Reads what `write_csv(trials_table(...), path)` wrote: the same records, in the order of trials.

    Args:
        path: The table.
        operator: Merging operator of the study.

    Raises:
        InputError: The file is missing, damaged, or not a table of trials.
    """
    records: list[TrialRecord] = []
    for place, row in _read(path, TRIALS_COLUMNS):
        record = _record(place, row, operator)
        first = records[0] if records else record
        if list(record.schedule.keep_ratios) != list(first.schedule.keep_ratios):
            raise InputError(f"{place}: `keep_ratios` must name the layers of the first row, but names others")
        records.append(record)
    return records


def _read(path: str | Path, columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    return read_rows(path, {name: _CONVERTERS.get(name, optional(float)) for name in columns}, key="trial")


def _tie_order(record: TrialRecord) -> tuple[float, int]:
    return (math.inf if record.rescored_loss is None else record.rescored_loss, record.trial)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, but got {name}={value!r}.")


def _check_range(name: str, value: float | None, *, low: float = -math.inf, high: float = math.inf) -> None:
    # Not finite is refused everywhere: NaN would be lost in a CSV, and a diverged trial has no score.
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"`{name}` must be finite and in [{low:g}, {high:g}], but got {name}={value!r}.")


def _row(record: TrialRecord, columns: Sequence[str]) -> tuple[Any, ...]:
    schedule = record.schedule
    ratios, forms = json.dumps(dict(schedule.keep_ratios)), json.dumps(dict(schedule.forms))
    values = {**vars(record), "keep_ratios": ratios, "forms": forms}
    return tuple(values[name] for name in columns)


def _record(place: str, row: dict[str, Any], operator: str) -> TrialRecord:
    ratios, forms = row.pop("keep_ratios"), row.pop("forms")
    if unknown := sorted(forms.keys() - ratios.keys()):
        raise InputError(f"{place}: `forms` must name layers of `keep_ratios`, but got {unknown[0]}")
    try:
        return TrialRecord(**row, schedule=MergeSchedule(keep_ratios=ratios, operator=operator, forms=forms))
    except (ValueError, InputError) as error:
        raise InputError(f"{place}: {error}") from None


def _table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """A frame whose types do not depend on the rows: a column without any value is still one of numbers."""
    frame = pd.DataFrame.from_records(list(rows), columns=list(columns))
    return frame.astype({name: _COLUMN_TYPES.get(name, "float64") for name in columns})


_COLUMN_TYPES = {
    "trial": "int64",
    "kind": "object",
    "label": "object",
    "state": "object",
    "feasible": "bool",
    "supernet_version": "Int64",
    "rescored_version": "Int64",  # whole numbers with gaps
    "keep_ratios": "object",
    "forms": "object",
}


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"must be True or False, but got {text!r}")
    return text == "True"


def _ratios(text: str) -> dict[str, float]:
    ratios = parse_json(text)
    if not isinstance(ratios, dict) or not all(type(ratio) in (int, float) for ratio in ratios.values()):
        raise ValueError(f"must be a JSON object of keep ratios by layer, but got {text!r}")
    return ratios


def _forms(text: str) -> dict[str, Form]:
    forms = parse_json(text)
    if not isinstance(forms, dict) or not all(form in get_args(Form) for form in forms.values()):
        raise ValueError(f"must be a JSON object of {', '.join(get_args(Form))} by layer, but got {text!r}")
    return forms


_CONVERTERS: dict[str, Converter] = {
    "trial": whole,
    "kind": str,
    "label": str,
    "state": str,
    "feasible": _flag,
    "gflops": float,
    "supernet_version": optional(whole),
    "rescored_version": optional(whole),
    "keep_ratios": _ratios,
    "forms": _forms,
}
"""Of the columns that are not numbers with gaps."""
