"""The reported images one by one: what the plain network and each finalist answer. File `answers.csv` of a run.

Every comparison of two networks that people are shown is computed from this table: paired, image by image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ltmsearch.engine.paired import Difference, mean_with_error
from ltmsearch.errors import InputError
from ltmsearch.io.csv_tables import MOST_BYTES, read_rows, write_rows
from ltmsearch.io.files import read_whole

ANSWERS = "answers.csv"
"""File in a run directory."""
UNREADABLE = "reported images must stay readable while networks are scored, but some are not now; repeat the command"
"""Error where networks answered different numbers of images."""
_FIXED = ("image", "group", "label", "plain")
_TRIAL = "trial_"
"""Prefix of the columns of trials."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Predicted classes of the reported images, all (n,) int64 in one order."""

    labels: np.ndarray
    groups: np.ndarray
    """Equal numbers for images that are not independent of each other."""
    plain: np.ndarray
    """Classes that the plain network predicts."""
    trials: Mapping[int, np.ndarray] = field(default_factory=dict)
    """Trial → classes that its network predicts."""

    def difference(self, trial: int, other: int | None = None) -> Difference:
        """Top-1 of a trial less that of another one (None: the plain network), in points, paired.

        The variance has one changed answer more than there are, as in the adjusted interval of Agresti and Min
        (Statistics in Medicine 24, 2005, https://doi.org/10.1002/sim.1781): few images without any do not show that
        two networks are equal.

        Raises:
            KeyError: If a trial has no answers.
        """
        rival = self.plain if other is None else self.trials[other]
        right, rivals = self.trials[trial] == self.labels, rival == self.labels
        found = mean_with_error(100.0 * (right.astype(float) - rivals.astype(float)), self.groups)
        return replace(found, se=math.hypot(found.se, 100 / self.independent))

    def is_above(self, bound: float, trial: int, other: int | None = None) -> bool:
        """Whether a `difference` is significantly above a bound in points: one-sided, at 95 %.

        The variance is at least that under the bound itself, which needs some changed answers, as in a score test
        (Tango, Statistics in Medicine 17, 1998, pp. 891-908).
        """
        found, share = self.difference(trial, other), abs(bound) / 100
        least = 100 * math.sqrt(share * (1 - share) / self.independent)
        return replace(found, se=max(found.se, least)).lower() > bound

    @cached_property
    def independent(self) -> float:
        """Number of independent images that would say as much as these: by the design effect of their groups on the
        plain network's top-1, between the number of groups and that of images."""
        right, images, groups = self.plain == self.labels, len(self.labels), len(np.unique(self.groups))
        alone, grouped = mean_with_error(right).se, mean_with_error(right, self.groups).se
        found = images * (alone / grouped) ** 2 if 0 < grouped < math.inf else groups
        return float(min(max(found, groups), images))

    def top1(self, trial: int | None = None) -> Difference:
        """Top-1 of a trial (None: the plain network) in percent."""
        predicted = self.plain if trial is None else self.trials[trial]
        return mean_with_error(100.0 * (predicted == self.labels), self.groups)

    def agreement(self, trial: int) -> Difference:
        """Share of the images on which a trial answers as the plain network does, right or wrong, in percent."""
        return mean_with_error(100.0 * (self.trials[trial] == self.plain), self.groups)

    def save(self, path: Path) -> Path:
        """Write the table atomically."""
        numbers = sorted(self.trials)
        columns = (*_FIXED, *(f"{_TRIAL}{number}" for number in numbers))
        values = [self.groups, self.labels, self.plain, *(self.trials[number] for number in numbers)]
        return write_rows(path, columns, ((i, *row) for i, row in enumerate(zip(*map(list, values), strict=True))))

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """Read such a table.

        Raises:
            InputError: If it is missing, damaged or another table.
        """
        columns = _header(path)
        rows = read_rows(path, columns, key="image")
        try:
            numbers = [_count(name.removeprefix(_TRIAL)) for name in columns[len(_FIXED) :]]
            table = np.array([[_count(row[name]) for name in columns] for _, row in rows], dtype=np.int64)
            if not rows or not np.array_equal(table[:, 0], np.arange(len(rows))):
                raise ValueError(f"the images must be numbered from 0, but there are {len(rows)} rows")
        except ValueError as error:
            raise InputError(f"{path} must be the answers of a study's networks, but it is damaged: {error}") from None
        _, groups, labels, plain, *answers = table.T
        return cls(groups=groups, labels=labels, plain=plain, trials=dict(zip(numbers, answers, strict=True)))


def _header(path: Path) -> list[str]:
    """The columns that a table of answers must have: those of its trials differ between studies."""
    try:
        first = read_whole(path, most=MOST_BYTES).partition(b"\n")[0].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return list(_FIXED)  # `read_rows` has the message
    found = first.rstrip("\r").split(",")[len(_FIXED) :]
    trials = [name for name in found if name.startswith(_TRIAL)]
    return [*_FIXED, *trials] if len(set(trials)) == len(trials) else list(_FIXED)


def _count(text: str | None) -> int:
    """A whole number from 0 that fits 64 bits."""
    number = int(text or "")
    if not 0 <= number < 2**63:
        raise ValueError(f"a number must be in [0, 2^63), but got {text}")
    return number


def known_error(error: float) -> float | None:
    """A standard error; None for that of a single image, which is infinite."""
    return error if math.isfinite(error) else None
