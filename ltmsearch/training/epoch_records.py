"""Records of a training's epochs, and their table `log.csv`.

Plain data without torch or plotly. Units: top-1 and top-5 in percent (0-100); losses, I(X̃;X), I(X̃;Y), IB and its bound
in nats.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from ltmsearch.errors import InputError
from ltmsearch.io.csv_tables import Count, Finite, NonNegative, Percent, read_rows, write_rows
from ltmsearch.io.yaml_models import first_line

Weights = Literal["trained", "EMA"]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of a training, and the network after it; None where nothing was measured.

    Raises:
        ValueError: If a field is out of its range.
    """

    epoch: Annotated[Count, Field(ge=1)]
    """Number of the epoch, from 1."""
    lr: NonNegative
    """Learning rate in the epoch's last step."""
    train_loss: Finite
    """Mean training loss of the epoch's images, with label smoothing, IB and distillation."""
    train_ib: Finite | None = None
    """Mean IB bound over the same images, without the factor `ib_weight`; None while the IB loss is off."""
    ib_weight: NonNegative
    """Weight of the IB loss in this epoch; 0 during its warm-up."""
    top1: Percent
    """Validation top-1 of the weights as trained."""
    top5: Percent | None = None
    """Validation top-5 of the same weights; None with five classes or fewer."""
    loss: float
    """Validation cross-entropy of the same weights; infinite or NaN if BatchNorm statistics are still far off."""
    ema_top1: Percent | None = None
    """Validation top-1 of the averaged weights; None without averaging."""
    ema_top5: Percent | None = None
    """Validation top-5 of the averaged weights."""
    ema_loss: float | None = None
    """Validation cross-entropy of the averaged weights; see `loss`."""
    mi_x: Finite | None = None
    """I(X̃;X) of features and inputs of the validation images, with the weights as trained."""
    mi_y: Finite | None = None
    """I(X̃;Y) of features and labels of the same images."""
    ib: Finite | None = None
    """Their difference, which LTM minimises."""
    ibb: Finite | None = None
    """Its upper bound, the IB loss."""
    images_per_second: NonNegative
    """Training images per second of wall time, without validation."""
    seconds: NonNegative
    """Wall time of the epoch, with validation."""


LOG_COLUMNS = tuple(field.name for field in fields(EpochRecord))


class Best(NamedTuple):
    """The best network of a training."""

    epoch: int
    top1: float
    weights: Weights
    """As trained, or averaged over the steps (EMA)."""


def select_best(records: Iterable[EpochRecord]) -> Best:
    """Select the highest validation top-1; among equal ones the earliest, then the averaged weights.

    Raises:
        ValueError: If there are no records.
    """
    candidates: list[Best] = []
    for record in records:
        candidates.append(Best(record.epoch, record.top1, "trained"))
        if record.ema_top1 is not None:
            candidates.append(Best(record.epoch, record.ema_top1, "EMA"))
    if not candidates:
        raise ValueError("`records` must have at least one epoch.")
    return min(candidates, key=lambda best: (-best.top1, best.epoch, best.weights != "EMA"))


def write_log(records: Sequence[EpochRecord], path: str | Path) -> Path:
    """Write `log.csv` atomically: a column per field, a row per epoch; None becomes an empty field."""
    return write_rows(path, LOG_COLUMNS, [astuple(record) for record in records])


def read_log(path: str | Path) -> list[EpochRecord]:
    """Read the records of `log.csv`.

    Raises:
        InputError: If the file is missing, damaged, or not a log; the message names the line.
    """
    records: list[EpochRecord] = []
    for place, row in read_rows(path, LOG_COLUMNS, key="epoch"):
        try:
            records.append(EpochRecord(**row))
        except ValidationError as error:
            raise InputError(f"{place}: {first_line(error)}") from None
        if len(records) > 1 and records[-2].epoch >= records[-1].epoch:
            raise InputError(f"{place}: epochs must increase, but {records[-1].epoch} follows {records[-2].epoch}")
    return records
