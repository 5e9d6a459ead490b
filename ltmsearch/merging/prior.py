"""The spatial prior of a merge: overlap of the cells of an h×w grid with those of a p×q grid.

Shapes: N = h·w tokens in, P = p·q tokens out.
"""

import numpy as np

from ltmsearch.schedules.grid import Grid

SPREAD = 0.02
"""δ: share of a token's mass that the prior spreads over the 3×3 target cells around it, so that content can move the
token to a cell that its own area does not touch."""


def _side_overlap(length: int, target: int) -> np.ndarray:
    """(length, target) share of each of `length` equal segments in each of `target` equal segments."""
    edges_in = np.arange(length + 1) / length
    edges_out = np.arange(target + 1) / target
    low = np.maximum(edges_in[:-1, None], edges_out[None, :-1])
    high = np.minimum(edges_in[1:, None], edges_out[None, 1:])
    share = np.clip(high - low, 0.0, None) * length
    share[share < 1e-9] = 0.0  # touching edges, up to rounding
    return share / share.sum(axis=1, keepdims=True)


def _side_neighbours(overlap: np.ndarray) -> np.ndarray:
    """(length, target) indicator of the target segment nearest to each segment, and the ones beside it."""
    home = overlap.argmax(axis=1)
    return (np.abs(np.arange(overlap.shape[1])[None, :] - home[:, None]) <= 1).astype(float)


def area_overlap(grid: Grid, target: Grid) -> np.ndarray:
    """The prior O: area overlap with a share `SPREAD` over the 3×3 cells around each token.

    (N, P) float64; rows sum to 1; zero outside the 3×3 target cells around a token.
    """
    rows, columns = (_side_overlap(length, short) for length, short in zip(grid, target, strict=True))
    area = np.kron(rows, columns)
    near = np.kron(_side_neighbours(rows), _side_neighbours(columns))
    return (1 - SPREAD) * area + SPREAD * near / near.sum(axis=1, keepdims=True)


def side_shares(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of `area_overlap` along one side of the grid.

    O = (1 − δ) · R ⊗ C + δ · R' ⊗ C', so that products with O need no (N, P) matrix. R and R', overlap and
    neighbourhood, are (length, target) float64 with rows that sum to 1.
    """
    overlap = _side_overlap(length, target)
    near = _side_neighbours(overlap)
    return overlap, near / near.sum(axis=1, keepdims=True)


def local_cells(grid: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(N, 9) int64 indices of the 3×3 target cells around each token, and (N, 9) float64 logarithm of the prior there.

    Cells outside of the target have the index of the middle one and a prior of zero (−inf).
    """
    prior = area_overlap(grid, target)
    homes = [_side_overlap(length, short).argmax(axis=1) for length, short in zip(grid, target, strict=True)]
    step = np.array([-1, 0, 1])
    rows, columns = (home[:, None] + step for home in homes)  # (h, 3), (w, 3)
    inside = np.logical_and.outer((rows >= 0) & (rows < target[0]), (columns >= 0) & (columns < target[1]))
    cells = np.add.outer(rows * target[1], columns)  # (h, 3, w, 3)
    middle = np.broadcast_to(cells[:, 1:2, :, 1:2], cells.shape)
    # from (h, 3, w, 3) to (h·w, 9)
    index, inside = (a.transpose(0, 2, 1, 3).reshape(-1, 9) for a in (np.where(inside, cells, middle), inside))
    with np.errstate(divide="ignore"):
        return index, np.log(np.where(inside, np.take_along_axis(prior, index, axis=1), 0.0))


def log_overlap(grid: Grid, target: Grid) -> np.ndarray:
    """Logarithm of `area_overlap`: (N, P) float64; −inf where it is zero."""
    with np.errstate(divide="ignore"):
        return np.log(area_overlap(grid, target))


def seed_sides(grid: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Oᵀ as two products along the sides: first over rows, then over columns.

    Returns:
        (p·2, h) both parts of each row's share, stacked and scaled by 1 − δ and δ; (q, 2·w) both parts of each column's
        share side by side, so that the second product sums the parts.
    """
    (rows, near_rows), (columns, near_columns) = (side_shares(*side) for side in zip(grid, target, strict=True))
    both_rows = np.stack(((1 - SPREAD) * rows.T, SPREAD * near_rows.T), axis=1).reshape(-1, grid[0])
    return both_rows, np.concatenate((columns.T, near_columns.T), axis=1)


def mean_sides(grid: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the area under each merged token, as (p, h) and (q, w) products over rows and columns."""
    rows, columns = (side_shares(*side)[0].T for side in zip(grid, target, strict=True))
    return rows / rows.sum(axis=1, keepdims=True), columns / columns.sum(axis=1, keepdims=True)
