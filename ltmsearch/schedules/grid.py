"""Token grids, which quantise keep ratios.

Merging takes the tokens of an h×w grid to a smaller p×q grid. Possible are the grids of a chain from (h, w) down to
(1, 1): each has one row or column less than the one before, from the relatively longer side, so that all have nearly
the same shape.
"""

from functools import lru_cache
from typing import TypeAlias

Grid: TypeAlias = tuple[int, int]
"""(rows, columns) of tokens."""


@lru_cache(maxsize=4096)
def grid_chain(grid: Grid) -> tuple[Grid, ...]:
    """The possible grids from `grid` down to (1, 1).

    >>> grid_chain((3, 3))
    ((3, 3), (3, 2), (2, 2), (2, 1), (1, 1))
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"`grid` must have at least one row and one column, but got {grid=}.")
    p, q = rows, columns
    chain = [(p, q)]
    while (p, q) != (1, 1):
        # Compare p/rows with q/columns in integers; on a tie reduce the longer side, on a square grid the columns.
        if q == 1 or (p > 1 and (p * columns, p) > (q * rows, q)):
            p -= 1
        else:
            q -= 1
        chain.append((p, q))
    return tuple(chain)


@lru_cache(maxsize=65536)
def target_grid(grid: Grid, keep_ratio: float) -> Grid:
    """The grid of the chain with nearly `keep_ratio` times the tokens of `grid`; on a tie the larger one.

    If it is equal to `grid`, the layer does not merge. Raises a ValueError unless `keep_ratio` is in (0, 1].
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"`keep_ratio` must be in (0, 1], but got {keep_ratio=}.")
    wanted = keep_ratio * grid[0] * grid[1]
    return min(grid_chain(grid), key=lambda g: (abs(g[0] * g[1] - wanted), -g[0] * g[1]))


def tokens(grid: Grid) -> int:
    """Number of tokens on a grid."""
    return grid[0] * grid[1]
