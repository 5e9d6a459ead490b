"""What is known about each epoch of a training, as plain data, and its table `log.csv`.

The training writes records, `ltmsearch.training.curves` draws them; nothing here knows torch or plotly. Units: top-1
and top-5 in percent (0-100), losses, I(X̃;X), I(X̃;Y), IB and its bound in nats.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

from ltmsearch.errors import InputError
from ltmsearch.io.csv_tables import Converter, optional, read_rows, whole, write_rows

Weights = Literal["trained", "EMA"]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch of a training, and the network after it. What was not measured is None.

    Raises:
        ValueError: A field is out of its range.
    """

    epoch: int
    """Number of epochs done, from 1."""
    lr: float
    """Learning rate in the epoch's last step."""
    train_loss: float
    """Mean of what the training minimises, over the epoch's images: smoothed labels, IB and distillation included."""
    train_ib: float | None = None
    """Mean IB bound over the same images, before `ib_weight`; None while the IB loss is off."""
    ib_weight: float
    """Weight of the IB loss in this epoch; 0 during its warm-up."""
    top1: float
    """Validation top-1 of the weights as trained."""
    top5: float | None = None
    """Validation top-5 of them; None with five classes or fewer, where it says nothing."""
    loss: float
    """Validation cross-entropy of them. It may be infinite or NaN, as the first epochs' statistics fit no image."""
    ema_top1: float | None = None
    """Validation top-1 of the averaged weights; None without averaging."""
    ema_top5: float | None = None
    """Validation top-5 of them."""
    ema_loss: float | None = None
    """Validation cross-entropy of them; see `loss`."""
    mi_x: float | None = None
    """I(X̃;X) of features and inputs of the validation images, with the weights as trained."""
    mi_y: float | None = None
    """I(X̃;Y) of features and labels of the same."""
    ib: float | None = None
    """Their difference, what LTM lowers."""
    ibb: float | None = None
    """Its upper bound, what the IB loss is."""
    images_per_second: float
    """Training images per second of wall time, validation left out."""
    seconds: float
    """Wall time of the whole epoch, validation included."""

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or self.epoch < 1:
            raise ValueError(f"`epoch` must be a whole number from 1, but got epoch={self.epoch!r}.")
        for name in ("lr", "ib_weight", "images_per_second", "seconds"):
            self._check(name, low=0)
        for name in ("top1", "top5", "ema_top1", "ema_top5"):
            self._check(name, low=0, high=100)
        for name in ("train_loss", "train_ib", "mi_x", "mi_y", "ib", "ibb"):
            self._check(name)

    def _check(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"`{name}` must be finite and in [{low:g}, {high:g}], but got {name}={value!r}.")


LOG_COLUMNS = tuple(field.name for field in fields(EpochRecord))

_CONVERTERS: dict[str, Converter] = {
    field.name: whole if field.type is int else optional(float) if "None" in str(field.type) else float
    for field in fields(EpochRecord)
}


class Best(NamedTuple):
    """The best network of a training."""

    epoch: int
    top1: float
    weights: Weights
    """As trained, or averaged over the steps."""


def select_best(records: Iterable[EpochRecord]) -> Best:
    """The highest validation top-1 there was; of equal ones the earliest, and then the average.

    Raises:
        ValueError: There are no records.
    """
    tried: list[Best] = []
    for record in records:
        tried.append(Best(record.epoch, record.top1, "trained"))
        if record.ema_top1 is not None:
            tried.append(Best(record.epoch, record.ema_top1, "EMA"))
    if not tried:
        raise ValueError("`records` must hold at least one epoch.")
    return min(tried, key=lambda best: (-best.top1, best.epoch, best.weights != "EMA"))


def write_log(records: Sequence[EpochRecord], path: str | Path) -> Path:
    """Writes `log.csv`, atomically: a column for each field, a row for each epoch; an empty field is None."""
    return write_rows(path, LOG_COLUMNS, [astuple(record) for record in records])


def read_log(path: str | Path) -> list[EpochRecord]:
    """Reads what `write_log` wrote: the same records.

    Raises:
        InputError: The file is missing, damaged, or not a log; one line says which and where.
    """
    records: list[EpochRecord] = []
    for place, row in read_rows(path, _CONVERTERS, key="epoch"):
        try:
            records.append(EpochRecord(**row))
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
        if len(records) > 1 and records[-2].epoch > records[-1].epoch:
            raise InputError(f"{place}: epochs must rise, but {records[-1].epoch} follows {records[-2].epoch}")
    return records
