"""How many tokens a merge keeps, and on which grid, if on any.

A merge by place takes the tokens of an h×w grid to a smaller p×q grid. Possible are the grids of a chain from (h, w)
down to (1, 1): each has one row or column less than the one before, from the relatively longer side, so that all have
nearly the same shape. A merge by similarity needs no grid and leaves any number of tokens on none.

A layer's keep ratio is a share of its tokens in (0, 1], or a negative integer: the number of tokens that it removes.
"""

from functools import lru_cache
from math import prod
from typing import TypeAlias

Grid: TypeAlias = tuple[int, ...]
"""(rows, columns) of tokens; (number,) of tokens that stand on no grid."""


@lru_cache(maxsize=4096)
def grid_chain(grid: Grid) -> tuple[Grid, ...]:
    """The possible grids from `grid` down to (1, 1).

    >>> grid_chain((3, 3))
    ((3, 3), (3, 2), (2, 2), (2, 1), (1, 1))
    """
    rows, columns = grid[0], grid[1]
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
    """The grid of the chain whose number of tokens is nearest to the wanted one; on a tie the larger grid.

    If it is equal to `grid`, the layer does not merge.

    Raises:
        ValueError: For an invalid `keep_ratio`, or tokens on no grid.
    """
    if not on_grid(grid):
        raise ValueError(f"`grid` must have rows and columns, but got {grid=}.")
    n = tokens(grid)
    check_keep_ratio(keep_ratio)
    wanted = keep_ratio * n if keep_ratio > 0 else kept_tokens(n, keep_ratio)
    return min(grid_chain(grid), key=lambda g: (abs(tokens(g) - wanted), -tokens(g)))


def kept_tokens(n: int, keep_ratio: float) -> int:
    """Number of tokens that a merge on no grid leaves of `n`: the nearest to the share, or `n` less those removed.

    At least one is left by a share, and at least half by a number of tokens to remove.

    >>> kept_tokens(64, 0.9), kept_tokens(64, -8), kept_tokens(10, -8)
    (58, 56, 5)
    """
    check_keep_ratio(keep_ratio)
    if keep_ratio < 0:
        return n - min(-int(keep_ratio), n // 2)
    return max(1, int(keep_ratio * n + 0.5))


def kept_share(n: int, keep_ratio: float) -> float:
    """Share of `n` tokens that a keep ratio stands for: itself, or what a number of tokens to remove leaves.

    >>> kept_share(64, 0.9), kept_share(64, -16)
    (0.9, 0.75)
    """
    return keep_ratio if keep_ratio > 0 else kept_tokens(n, keep_ratio) / n


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise a ValueError unless it is in (0, 1] or a negative integer."""
    if not (0 < keep_ratio <= 1 or (keep_ratio < 0 and float(keep_ratio).is_integer())):
        raise ValueError(f"`keep_ratio` must be in (0, 1], or a negative integer, but got {keep_ratio=}.")


def on_grid(grid: Grid) -> bool:
    """Whether tokens stand on rows and columns."""
    return len(grid) == 2


def tokens(grid: Grid) -> int:
    """Number of tokens."""
    return prod(grid)
