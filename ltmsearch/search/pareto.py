"""Pareto fronts and hypervolume for two or three objectives.

`points` is (n, d): one row per point, one column per objective, d = 2 or 3. `maximize` says for each column whether
more is better. A row with NaN means "not measured".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def is_non_dominated(points: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.bool_]:
    """(n,) booleans, true for the points of the Pareto front, in n times the size of the front.

    A point is dominated when another is at least as good in all objectives and better in one. All copies of a front
    point are kept. A row with NaN is never on the front and dominates nothing; infinities are ordinary values.
    """
    values = _oriented(points, maximize)
    front = np.zeros(len(values), dtype=bool)
    left = np.flatnonzero(~np.isnan(values).any(axis=1))
    left = left[np.lexsort(-values[left].T[::-1])]  # best first: whatever dominates a row comes before it
    rows = values[left]
    while left.size:
        behind = (rows <= rows[0]).all(axis=1)
        front[left[behind & (rows == rows[0]).all(axis=1)]] = True
        left, rows = left[~behind], rows[~behind]
    return front


def hypervolume(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool]) -> float:
    """The exact area or volume that the points dominate, bounded by a reference point.

    A point that is not strictly better than the reference in all objectives adds nothing, nor does a row with NaN.

    Raises:
        ValueError: `points` is not (n, d) or `reference` is not d finite numbers.
    """
    values, corner = _oriented(points, maximize), _corner(reference, maximize)
    return _dominated(values[is_non_dominated(points, maximize)] - corner)


def hypervolume_curve(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool]) -> Floats:
    """(n,) hypervolumes after each point, in the order given; a row with NaN repeats the value before it.

    Raises:
        ValueError: As for `hypervolume`.
    """
    gains = _oriented(points, maximize) - _corner(reference, maximize)
    curve, front, value = np.zeros(len(gains)), gains[:0], 0.0
    for index, gain in enumerate(gains):
        if (gain > 0).all() and not (front >= gain).all(axis=1).any():  # false for NaN
            shared = np.minimum(front, gain)  # corners of what the point's box shares with the others': few matter
            shared = shared[is_non_dominated(shared, (True,) * len(maximize))]
            value += max(0.0, float(np.prod(gain)) - _dominated(shared))
            front = np.concatenate([front[~(front <= gain).all(axis=1)], gain[None]])
        curve[index] = value
    return curve


def front_ranks(points: Sequence[Sequence[float]], maximize: Sequence[bool]) -> list[int]:
    """Front number of each point: 0 for the Pareto front, 1 for the front of the remaining points, and so on."""
    rows, ranks = _as_points(points, len(maximize)), np.zeros(len(points), dtype=int)
    left, rank = np.arange(len(points)), 0
    while left.size:
        ranks[left] = rank
        on_front = is_non_dominated(rows[left], maximize)
        left, rank = left[~on_front] if on_front.any() else left[:0], rank + 1  # points with NaN never are
    return [int(each) for each in ranks]


def _dominated(gains: Floats) -> float:
    """Area or volume of the union of the boxes from the origin to each row; rows that are not positive add nothing."""
    gains = gains[(gains > 0).all(axis=1)]
    if gains.shape[1] == 2:
        gains = gains[np.argsort(-gains[:, 0])]
        widths = gains[:, 0] - np.append(gains[1:, 0], 0.0)
        return float(widths @ np.maximum.accumulate(gains[:, 1]))
    # Layers between the heights of the points: the cross-section of each is the area of the points above it.
    heights = np.unique(gains[:, 2])
    areas = [_dominated(gains[gains[:, 2] >= height, :2]) for height in heights]
    return float(np.diff(heights, prepend=0.0) @ np.array(areas))


def _corner(reference: Sequence[float], maximize: Sequence[bool]) -> Floats:
    if len(reference) != len(maximize) or not np.isfinite(reference).all():
        raise ValueError(f"`reference` must be {len(maximize)} finite numbers, but got {reference=}.")
    corner: Floats = _oriented([reference], maximize)[0]
    return corner


def _as_points(points: ArrayLike, objectives: int) -> Floats:
    if objectives not in (2, 3):
        raise ValueError(f"`maximize` must have two or three entries, but got {objectives}.")
    rows = np.asarray(points, dtype=np.float64)
    if rows.size == 0 and rows.ndim == 1:
        rows = rows.reshape(0, objectives)
    if rows.ndim != 2 or rows.shape[1] != objectives:
        raise ValueError(f"`points` must be of shape (n, {objectives}), but got shape {rows.shape}.")
    return rows


def _oriented(points: ArrayLike, maximize: Sequence[bool]) -> Floats:
    """The points with signs turned so that more is better in all columns."""
    rows: Floats = _as_points(points, len(maximize)) * np.where(maximize, 1.0, -1.0)
    return rows
