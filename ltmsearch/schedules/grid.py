"""Token grids: what a keep ratio means on a grid of tokens.

Tokens of an image stand on an h×w grid; merging brings them to a smaller p×q grid. Grids quantise a keep ratio: only
the grids of a chain from (h, w) down to (1, 1) are used, one row or column less at each step, always taken from the
side that is relatively longer, so that every grid of the chain keeps the shape of the first as nearly as it can.
"""

from functools import lru_cache
from typing import TypeAlias

Grid: TypeAlias = tuple[int, int]
"""(rows, columns) of tokens."""


@lru_cache(maxsize=4096)
def grid_chain(grid: Grid) -> tuple[Grid, ...]:
    """The feasible grids below and including `grid`, largest first.

    >>> grid_chain((3, 3))
    ((3, 3), (3, 2), (2, 2), (2, 1), (1, 1))
    """
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(f"`grid` must have at least one row and one column, but got {grid=}.")
    p, q = rows, columns
    chain = [(p, q)]
    while (p, q) != (1, 1):
        # p/rows against q/columns, in integers; on a tie the longer side gives way, on a square grid a column.
        if q == 1 or (p > 1 and (p * columns, p) > (q * rows, q)):
            p -= 1
        else:
            q -= 1
        chain.append((p, q))
    return tuple(chain)


@lru_cache(maxsize=65536)
def target_grid(grid: Grid, keep_ratio: float) -> Grid:
    """The grid of the chain whose number of tokens is nearest to `keep_ratio` times that of `grid`.

    On a tie the larger grid is taken. A result equal to `grid` means that the layer stays plain.

    Args:
        grid: Rows and columns before the merge.
        keep_ratio: Tokens after / tokens before, in (0, 1].

    Raises:
        ValueError: If `keep_ratio` is out of range.
    """
    check_keep_ratio(keep_ratio)
    wanted = keep_ratio * grid[0] * grid[1]
    return min(grid_chain(grid), key=lambda g: (abs(g[0] * g[1] - wanted), -g[0] * g[1]))


def tokens(grid: Grid) -> int:
    """Number of tokens on a grid."""
    return grid[0] * grid[1]


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise ValueError unless `keep_ratio` is in (0, 1]."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"`keep_ratio` must be in (0, 1], but got {keep_ratio=}.")
