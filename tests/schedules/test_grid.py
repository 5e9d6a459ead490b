"""Token grids against their definition."""

from itertools import pairwise

import pytest

from ltmsearch.schedules.grid import check_keep_ratio, grid_chain, kept_tokens, on_grid, target_grid, tokens


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


@pytest.mark.parametrize("ratio", [0.0, -0.5, -1.5, 1.4, 2, float("nan"), float("inf"), -float("inf")])
def test_ratio_out_of_range_is_refused(ratio: float) -> None:
    for check in (check_keep_ratio, lambda r: target_grid((4, 4), r), lambda r: kept_tokens(16, r)):
        with pytest.raises(ValueError, match=r"`keep_ratio` must be in \(0, 1\], or a negative integer, but got"):
            check(ratio)


@pytest.mark.parametrize(
    ("n", "ratio", "kept"),
    [
        (64, 0.9, 58),  # 57.6
        (196, 0.7, 137),  # 137.2
        (5, 0.5, 3),  # 2.5: on a tie the more
        (10, 0.04, 1),  # 0.4: at least one
        (1, 0.5, 1),
        (196, 1, 196),
        (196, -8, 188),
        (10, -8, 5),  # at most half
        (11, -8, 6),
        (1, -8, 1),
        (2916, -84, 2832),
    ],
)
def test_tokens_kept_on_no_grid_by_hand(n: int, ratio: float, kept: int) -> None:
    assert kept_tokens(n, ratio) == kept


def test_tokens_to_remove_mean_the_nearest_grid() -> None:
    assert target_grid((14, 14), -8) == (14, 13), "of 196 and 182 tokens the second is nearer to 188"
    assert target_grid((14, 14), -100) == (10, 10), "half at most: 98"
    assert target_grid((14, 14), -1) == (14, 14)


def test_tokens_may_stand_on_no_grid() -> None:
    assert tokens((49,)) == tokens((7, 7)) == 49
    assert on_grid((7, 7))
    assert not on_grid((49,))
    with pytest.raises(ValueError, match=r"`grid` must have rows and columns, but got grid=\(49,\)"):
        target_grid((49,), 0.5)


def test_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        grid_chain((0, 3))
