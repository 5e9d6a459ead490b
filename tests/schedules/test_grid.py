"""Token grids against their definition."""

from itertools import pairwise

import pytest

from ltmsearch.schedules.grid import grid_chain, target_grid, tokens


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 5), (7, 7), (8, 14), (14, 8), (1, 9), (14, 14)])
def test_grid_chain_removes_one_row_or_column_per_step(grid: tuple[int, int]) -> None:
    chain = grid_chain(grid)
    assert chain[0] == grid
    assert chain[-1] == (1, 1)
    for (p, q), (p2, q2) in pairwise(chain):
        assert (p - p2) + (q - q2) == 1
        assert min(p - p2, q - q2) == 0
    rows, columns = grid
    for p, q in chain:
        # Never more than one row or column away from the first grid's shape.
        assert abs(p / rows - q / columns) <= max(1 / rows, 1 / columns) + 1e-12


@pytest.mark.parametrize("grid", [(7, 7), (4, 4), (14, 14), (8, 5)])
@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.33, 0.5, 0.62, 0.7, 0.8, 0.95, 1.0])
def test_target_is_the_nearest_grid_of_the_chain(grid: tuple[int, int], ratio: float) -> None:
    wanted = ratio * tokens(grid)
    best = min(abs(tokens(g) - wanted) for g in grid_chain(grid))
    assert abs(tokens(target_grid(grid, ratio)) - wanted) == best


def test_target_grows_with_the_ratio() -> None:
    sizes = [tokens(target_grid((14, 14), r / 100)) for r in range(1, 101)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 196
    assert target_grid((7, 7), 0.7) == (6, 6)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.4, float("nan")])
def test_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        target_grid((4, 4), ratio)


def test_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        grid_chain((0, 3))
