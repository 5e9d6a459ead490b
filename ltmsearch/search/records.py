"""Trial records as plain data, and the tables `trials.csv` and `front.csv`.

Independent of Optuna, torch and plotly. Units: top-1 and agreement in percent (0-100), differences of top-1 and
standard errors in percentage points, KL divergence and loss in nats, latency in milliseconds.

Three sets of images: trials are scored on search images, training images that nothing trains on; validation images
choose the front; what is reported comes from images that neither search nor choice saw.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ltmsearch.config.objective import CostAxis, CostName, Measure, check_costs
from ltmsearch.errors import InputError, check_choice, shortened
from ltmsearch.io.csv_tables import Count, Finite, NonNegative, Percent, read_rows
from ltmsearch.io.files import parse_json, write_atomic
from ltmsearch.io.yaml_models import first_line
from ltmsearch.schedules.schedule import THRESHOLDS, MergeSchedule
from ltmsearch.search.pareto import is_non_dominated

TRIALS, FRONT = "trials.csv", "front.csv"
"""Tables in a run directory."""

Kind = Literal["searched", "start-up", "baseline"]
State = Literal["scored", "over budget", "below range", "failed"]


FRONT_COLUMNS = (
    "trial",
    "gflops",
    "gflops_sd",
    "gflops_quantile",
    "latency_ms",
    "latency_measured_ms",
    "latency_measured_se_ms",
    "tokens_sent",
    "rescored_kl",
    "rescored_loss",
    "report_top1",
    "report_top1_se",
    "difference",
    "difference_se",
    "agreement",
    "agreement_se",
    "ib_weight",
    "rescored_version",
    "img_size",
    "keep_ratios",
    "forms",
)


class BestScore(NamedTuple):
    """The best available score of a trial."""

    top1: float
    top1_se: float | None
    final: bool
    """Whether it is of the final weights and the reported images; else of the trial's weights and search images."""

    def __str__(self) -> str:
        return f"{self.top1:.1f}" + ("" if self.top1_se is None else f" ± {self.top1_se:.1f}")


FORM_LETTERS = {"hard": "h", "matched": "m", "gradient": "g"}
"""Letters of forms; the soft form has none."""


@pydantic_dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a study. Values that were not measured are None.

    Raises:
        ValueError: A field is out of range, or a score contradicts the state.
    """

    trial: Count
    """Number of the trial in the study, from 0."""
    kind: Kind
    """Proposed by the sampler, drawn at the start to cover the range of costs, or added for comparison."""
    label: str = ""
    """Name of a baseline, e.g. "plain" or "uniform 0.5", or origin of a start-up trial; else empty."""
    state: State
    """"over budget" and "below range" (of budgets) were rejected by their cost alone, "failed" diverged or broke: none
    has a score."""
    feasible: bool
    """Within every budget. A plain network over budget is scored for comparison and stays infeasible."""
    gflops: NonNegative
    """1e9 multiply-adds per image; see `ltmsearch.costs` for what is counted. Where they depend on the image, the mean,
    measured with the final weights, or else with those that the trial started from."""
    gflops_sd: NonNegative | None = None
    """Standard deviation over images; None where all cost the same."""
    gflops_quantile: NonNegative | None = None
    """Cost that the share `budget_quantile` of the images stays within; None without that setting."""
    latency_ms: NonNegative | None = None
    """Predicted latency of one batch; None in a study without a latency budget."""
    latency_measured_ms: NonNegative | None = None
    """Latency timed end to end at the end of the study."""
    latency_measured_se_ms: NonNegative | None = None
    """Its standard error."""
    tokens_sent: NonNegative | None = None
    """Tokens of one image that leave the device after the split layer, a mean where images differ; None without one."""
    top1: Percent | None = None
    """Top-1 of the search images at the time of the trial, with the shared weights of that time."""
    top1_se: NonNegative | None = None
    loss: Finite | None = None
    """Cross-entropy of the same images and weights."""
    kl: NonNegative | None = None
    """KL divergence of the same predictions from the plain network's."""
    rescored_loss: Finite | None = None
    """Cross-entropy of the validation images with the final shared weights, comparable between trials."""
    rescored_kl: NonNegative | None = None
    """KL divergence from the plain network on the same images, with the same weights."""
    rescored_version: Count | None = None
    """Version of the shared weights behind the re-scored values."""
    report_top1: Percent | None = None
    """Top-1 of the reported images with the final weights."""
    report_top1_se: NonNegative | None = None
    difference: Finite | None = None
    """`report_top1` less the plain network's on the same images, in points."""
    difference_se: NonNegative | None = None
    """Its paired standard error."""
    agreement: Percent | None = None
    """Share of the reported images on which the plain network predicts the same class, right or wrong."""
    agreement_se: NonNegative | None = None
    ib_weight: NonNegative | None = None
    """Weight of the IB loss in the trial's training; 0 is off."""
    mi_x: Finite | None = None
    """I(X̃;X) of features and inputs on the search images after the trial's training, in nats."""
    mi_y: Finite | None = None
    """I(X̃;Y) of features and labels on the same images, in nats."""
    ibb: Finite | None = None
    """Upper bound of their difference: the IB loss."""
    supernet_version: Count | None = None
    """Version of the shared weights behind `top1`."""
    seconds: NonNegative | None = None
    """Wall time of the trial."""
    schedule: MergeSchedule
    """Keep ratio and form of every layer that may merge, in the order of the network."""
    kept_shares: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = field(default_factory=dict, hash=False)
    """Layer name → share of its tokens that it keeps, where its number in the schedule is not that share: of merging
    layers with a threshold, the mean over images."""

    @model_validator(mode="after")
    def _check_state(self) -> Self:
        if (self.top1 is not None) != (self.state == "scored"):
            raise ValueError(
                f"top1 must be given if and only if state is 'scored', but got {self.state!r}, {self.top1!r}"
            )
        for name in ("kl", "rescored_kl", "rescored_loss", "report_top1", "difference", "agreement"):
            if getattr(self, name) is not None and self.state != "scored":
                raise ValueError(f"{name} needs state 'scored', but got {self.state!r}")
        adaptive = self.schedule.operator in THRESHOLDS
        counted = {n for n, ratio in self.schedule.keep_ratios.items() if ratio < 0 or (adaptive and ratio < 1)}
        if other := sorted(counted ^ self.kept_shares.keys()):
            kind = "merge by threshold" if adaptive else "keep ratio is negative"
            raise ValueError(
                f"kept_shares must have exactly the layers {'that' if adaptive else 'whose'} {kind}, but {other[0]} is "
                "in only one"
            )
        return self

    def cost(self, name: CostName) -> float:
        """Cost on one axis.

        Raises:
            InputError: If there is no such axis.
            ValueError: If it is unknown.
        """
        check_choice("the cost of a trial", name, CostName)
        cost: float | None = getattr(self, name)
        if cost is None:
            raise ValueError(f"`{name}` of trial {self.trial} is unknown.")
        return cost

    def costs(self, names: Sequence[CostName]) -> tuple[float, ...]:
        """Costs on several axes; errors are those of `cost`."""
        check_costs("a trial", names)
        return tuple(self.cost(name) for name in names)

    @property
    def is_plain(self) -> bool:
        """Whether it is the network itself: no merging, at its own image size."""
        return not self.schedule.merging_layers and self.schedule.img_size is None

    @property
    def name(self) -> str:
        """The label, or else the number."""
        return self.label or f"trial {self.trial}"

    @property
    def score(self) -> BestScore | None:
        """The reported score, else the score at the time of the trial, else None."""
        if self.report_top1 is not None:
            return BestScore(self.report_top1, self.report_top1_se, True)
        return None if self.top1 is None else BestScore(self.top1, self.top1_se, False)

    def rescored(self, measure: Measure) -> float | None:
        """What the front ranks by: the measure on validation images with the final weights; None unless re-scored."""
        check_choice("the measure of a trial", measure, Measure)
        return self.rescored_kl if measure == "kl" else self.rescored_loss

    def told(self, measure: Measure) -> float | None:
        """The measure on search images when the trial ran, as Optuna was told it; None without a score."""
        check_choice("the measure of a trial", measure, Measure)
        return self.kl if measure == "kl" else self.loss

    def kept_share(self, layer: str) -> float:
        """Share of its tokens that a layer keeps: its keep ratio, or what a number to remove or a threshold leaves."""
        return self.kept_shares.get(layer, self.schedule.keep_ratio(layer))

    def by_stage(self, letters: Mapping[str, str] = FORM_LETTERS) -> list[tuple[str, str]]:
        """Short keep ratios per stage, such as `("stages.2.1.transformer", "1 .5 .5h -8m")`.

        1 is a plain layer, -8 removes eight tokens; `letters` mark forms. A stage is a layer's name without its last
        part.
        """
        stages = groupby(self.schedule.keep_ratios.items(), key=lambda item: item[0].rpartition(".")[0])
        return [(stage, " ".join(self.short_ratio(layer, letters) for layer, _ in layers)) for stage, layers in stages]

    def short_ratio(self, layer: str, letters: Mapping[str, str] = FORM_LETTERS) -> str:
        """Keep ratio and form of one layer, as in `by_stage`."""
        letter = letters.get(self.schedule.form(layer) or "", "")
        ratio = self.schedule.keep_ratio(layer)
        return (f"{ratio:.3g}".removeprefix("0") if ratio > 0 else f"{ratio:.0f}") + letter


def form_letters(records: Iterable[TrialRecord]) -> Mapping[str, str]:
    """Letters that tell the forms of records apart: none where all merges have one form."""
    return FORM_LETTERS if len(_forms(records)) > 1 else {}


def form_key(records: Iterable[TrialRecord]) -> str:
    """Legend of the forms in use; empty if schedules name none, as those of operators with a single one."""
    used = _forms(records)
    if len(used) <= 1:
        return "".join(f" ({form} form)" for form in used if form)
    letters = [f"{letter} {form}" for form, letter in FORM_LETTERS.items() if form in used]
    return f" ({', '.join(letters)} form)" if letters else ""


def _forms(records: Iterable[TrialRecord]) -> set[str | None]:
    """Forms of the layers that merge; None for those whose schedule names none."""
    schedules = [record.schedule for record in records]
    return {each.form(layer) for each in schedules for layer, ratio in each.keep_ratios.items() if ratio != 1}


_OBJECTS = ("keep_ratios", "forms", "kept_shares")
"""Columns with a JSON object each."""
_SCHEDULE = ("img_size", *_OBJECTS)
"""Columns with the parts of a schedule; an empty `img_size` is that of the study."""
TRIALS_COLUMNS = (*(f.name for f in fields(TrialRecord) if f.name not in ("schedule", "kept_shares")), *_SCHEDULE)


def select_front(records: Iterable[TrialRecord], axis: CostAxis) -> list[TrialRecord]:
    """The Pareto front of the feasible re-scored trials by the axis' measure and its costs, best measure first.

    Of trials with equal measure and costs, the earliest is kept. With one cost, the best is the costliest. Where image
    sizes are not searched, networks of other sizes are left out.
    """
    final = [r for r in records if r.feasible and r.rescored(axis.measure) is not None]
    candidates = [r for r in final if has_own_size(r, axis)]
    points = np.array([(r.rescored(axis.measure), *r.costs(axis.costs)) for r in candidates], dtype=float)
    kept = is_non_dominated(points, [False] * (1 + len(axis.costs)))
    front: dict[tuple[float, ...], TrialRecord] = {}  # on a front, equal costs mean an equal measure as well
    for record in sorted((r for r, keep in zip(candidates, kept, strict=True) if keep), key=lambda r: r.trial):
        front.setdefault(record.costs(axis.costs), record)
    return sorted(front.values(), key=lambda r: (_worst_if_none(r.rescored(axis.measure)), r.costs(axis.costs)))


def has_own_size(record: TrialRecord, axis: CostAxis) -> bool:
    """Whether a network may be on a front: where sizes are not searched, it must have the study's own image size."""
    return not axis.one_size or record.schedule.img_size is None


def select_references(records: Iterable[TrialRecord], axis: CostAxis) -> list[TrialRecord]:
    """The scored baselines to compare a front with: the plain network, and the best other one within the budget.

    Where image sizes are not searched, the best one on smaller images follows. Re-scored baselines are preferred;
    before that, the measure when they ran counts.
    """
    measure = axis.measure
    records = list(records)
    plain = plain_network(records)
    rivals = [r for r in records if r.kind == "baseline" and r.score and r.feasible and not r.is_plain]

    def order(record: TrialRecord) -> tuple[bool, float, int]:
        final = record.rescored(measure)
        return final is None, _worst_if_none(record.told(measure) if final is None else final), record.trial

    own = sorted((r for r in rivals if has_own_size(r, axis)), key=order)
    smaller = sorted((r for r in rivals if not has_own_size(r, axis)), key=order)
    return [*([] if plain is None else [plain]), *own[:1], *smaller[:1]]


def plain_network(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The scored baseline that is the network itself; None without one."""
    return next((r for r in records if r.kind == "baseline" and r.score and r.is_plain), None)


def front_table(records: Iterable[TrialRecord], axis: CostAxis) -> pd.DataFrame:
    """The front in the columns of `front.csv`: keep ratios as a JSON object."""
    return _table(FRONT_COLUMNS, select_front(records, axis))


def trials_table(records: Iterable[TrialRecord]) -> pd.DataFrame:
    """All trials in order, one column per field of `TrialRecord`, keep ratios as a JSON object."""
    return _table(TRIALS_COLUMNS, sorted(records, key=lambda r: r.trial))


def write_csv(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table atomically; reading it gives the same floats."""
    return write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))


def read_trials(path: str | Path, operator: str) -> list[TrialRecord]:
    """Read `trials.csv`: the same records in the same order.

    Raises:
        InputError: The file is missing, damaged or not a table of trials.
    """
    records: list[TrialRecord] = []
    for place, row in read_rows(path, TRIALS_COLUMNS, key="trial"):
        record = _record(place, row, operator)
        first = records[0] if records else record
        if list(record.schedule.keep_ratios) != list(first.schedule.keep_ratios):
            raise InputError(f"{place}: `keep_ratios` must name the layers of the first row, but names others")
        records.append(record)
    return records


def _worst_if_none(value: float | None) -> float:
    return math.inf if value is None else value


def _record(place: str, row: dict[str, Any], operator: str) -> TrialRecord:
    try:
        ratios, forms = (_json_object(name, row.pop(name)) for name in ("keep_ratios", "forms"))
        shares = _json_object("kept_shares", row.pop("kept_shares") or "{}")
        if unknown := sorted(forms.keys() - ratios.keys()):
            raise ValueError(f"forms must name layers of keep_ratios, but got {unknown[0]}")
        size = row.pop("img_size")
        side = None if size is None else int(size)
        schedule = MergeSchedule(keep_ratios=ratios, operator=operator, forms=forms, img_size=side)
        return TrialRecord(**row | {"label": row["label"] or ""}, schedule=schedule, kept_shares=shares)
    except ValidationError as error:
        raise InputError(f"{place}: {first_line(error)}") from None
    except (ValueError, InputError) as error:
        raise InputError(f"{place}: {error}") from None


def _json_object(name: str, text: str | None) -> dict[str, Any]:
    value = parse_json(text or "")
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object with one entry per layer, but got {shortened(str(text))}")
    return value


def _table(columns: Sequence[str], records: Iterable[TrialRecord]) -> pd.DataFrame:
    """A frame whose column types do not depend on the rows."""
    rows = []
    for record in records:
        objects = (record.schedule.keep_ratios, record.schedule.forms, record.kept_shares)
        texts = (json.dumps(dict(each)) for each in objects)
        size = {"img_size": record.schedule.img_size}
        rows.append({**vars(record), **size, **dict(zip(_OBJECTS, texts, strict=True))})
    frame = pd.DataFrame.from_records(rows, columns=list(columns))
    return frame.astype({name: _COLUMN_TYPES.get(name, "float64") for name in columns})


_COLUMN_TYPES = {
    "trial": "int64",
    "feasible": "bool",
    **dict.fromkeys(("supernet_version", "rescored_version", "img_size"), "Int64"),  # whole numbers with gaps
    **dict.fromkeys(("kind", "label", "state", *_OBJECTS), "object"),
}
