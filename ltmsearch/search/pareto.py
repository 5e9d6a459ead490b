"""Pareto fronts and hypervolume for two objectives.

`points` is (n, 2): one row per point, one column per objective. `maximize` says for each column whether more is better.
A row with NaN means "not measured".
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def is_non_dominated(points: ArrayLike, maximize: tuple[bool, bool]) -> NDArray[np.bool_]:
    """(n,) booleans, true for the points of the Pareto front, in n log n.

    A point is dominated when another is at least as good in both objectives and better in one. All copies of a front
    point are kept. A row with NaN is never on the front and dominates nothing; infinities are ordinary values.
    """
    values = _oriented(points, maximize)
    front = np.zeros(len(values), dtype=bool)
    known = np.flatnonzero(~np.isnan(values).any(axis=1))
    if known.size == 0:
        return front
    # Ranks instead of values: -1 is then below every rank, even where a value is minus infinity.
    first = np.unique(values[known, 0], return_inverse=True)[1]
    second = np.unique(values[known, 1], return_inverse=True)[1]
    order = np.lexsort((-second, -first))  # best first objective first, ties by the second
    first, second = first[order], second[order]
    starts = np.flatnonzero(np.diff(first, prepend=-1))  # where a group with one first objective begins
    group = np.repeat(np.arange(starts.size), np.diff(starts, append=first.size))
    group_best = second[starts]
    best_before = np.concatenate(([-1], np.maximum.accumulate(group_best)[:-1]))
    front[known[order]] = (second == group_best[group]) & (second > best_before[group])
    return front


def hypervolume(points: ArrayLike, reference: tuple[float, float], maximize: tuple[bool, bool]) -> float:
    """The exact area that the points dominate, bounded by a reference point.

    A point that is not strictly better than the reference in both objectives adds nothing, nor does a row with NaN.

    Raises:
        ValueError: `points` is not (n, 2) or `reference` is not two finite numbers.
    """
    if len(reference) != 2 or not np.isfinite(reference).all():
        raise ValueError(f"`reference` must be two finite numbers, but got {reference=}.")
    corner = _oriented([reference], maximize)[0]
    gains = _oriented(points, maximize) - corner
    gains = gains[(gains > 0).all(axis=1)]  # false for NaN
    gains = np.unique(gains[is_non_dominated(gains, (True, True))], axis=0)
    # Rows ascend in the first objective, so they descend in the second: slices side by side.
    widths = np.diff(gains[:, 0], prepend=0.0)
    return float(widths @ gains[:, 1])


def hypervolume_curve(points: ArrayLike, reference: tuple[float, float], maximize: tuple[bool, bool]) -> Floats:
    """(n,) hypervolumes after each point, in the order given; a row with NaN repeats the value before it."""
    rows = _as_points(points)
    curve = np.zeros(len(rows))
    front = rows[:0]
    for index, row in enumerate(rows):
        front = np.concatenate([front, row[None]])
        front = front[is_non_dominated(front, maximize)]  # stays short, and loses nothing that counts
        curve[index] = hypervolume(front, reference, maximize)
    return curve


def front_ranks(points: list[tuple[float, float]], maximize: tuple[bool, bool]) -> list[int]:
    """Front number of each point: 0 for the Pareto front, 1 for the front of the remaining points, and so on."""
    rows, ranks = _as_points(points), np.zeros(len(points), dtype=int)
    left, rank = np.arange(len(points)), 0
    while left.size:
        ranks[left] = rank
        on_front = is_non_dominated(rows[left], maximize)
        left, rank = left[~on_front] if on_front.any() else left[:0], rank + 1  # points with NaN never are
    return [int(each) for each in ranks]


def _as_points(points: ArrayLike) -> Floats:
    rows = np.asarray(points, dtype=np.float64)
    if rows.size == 0 and rows.ndim == 1:
        rows = rows.reshape(0, 2)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"`points` must be of shape (n, 2), but got shape {rows.shape}.")
    return rows


def _oriented(points: ArrayLike, maximize: tuple[bool, bool]) -> Floats:
    """The points with signs turned so that more is better in both columns."""
    rows: Floats = _as_points(points) * np.where(maximize, 1.0, -1.0)
    return rows
