import itertools

import numpy as np
import pytest

from ltmsearch.search.pareto import hypervolume, hypervolume_curve, is_non_dominated

DIRECTIONS = list(itertools.product([True, False], repeat=2))


def dominates(a: np.ndarray, b: np.ndarray, maximize: tuple[bool, bool]) -> bool:
    better = [x > y if more else x < y for x, y, more in zip(a, b, maximize, strict=True)]
    worse = [x < y if more else x > y for x, y, more in zip(a, b, maximize, strict=True)]
    return any(better) and not any(worse)


def front_by_definition(points: np.ndarray, maximize: tuple[bool, bool]) -> list[bool]:
    known = ~np.isnan(points).any(axis=1)
    rivals = points[known]
    return [
        bool(ok) and not any(dominates(rival, point, maximize) for rival in rivals)
        for point, ok in zip(points, known, strict=True)
    ]


def area_by_cells(points: np.ndarray, reference: tuple[float, float], maximize: tuple[bool, bool]) -> float:
    """Sums the cells of the grid spanned by all coordinates whose centre lies in some point's rectangle."""
    points = points[~np.isnan(points).any(axis=1)]
    cuts = [np.unique(np.append(points[:, j], reference[j])) for j in (0, 1)]
    area = 0.0
    for left, right in itertools.pairwise(cuts[0]):
        for low, high in itertools.pairwise(cuts[1]):
            centre = ((left + right) / 2, (low + high) / 2)
            inside = [
                all(
                    (r < c < v) if more else (v < c < r)
                    for r, c, v, more in zip(reference, centre, p, maximize, strict=True)
                )
                for p in points
            ]
            area += (right - left) * (high - low) * any(inside)
    return area


def random_points(rng: np.random.Generator, n: int) -> np.ndarray:
    """Integers from a small range, so that ties and duplicates are common, and a few rows with NaN."""
    points = rng.integers(-3, 4, size=(n, 2)).astype(float)
    points[rng.random(n) < 0.1, rng.integers(2)] = np.nan
    return points


@pytest.mark.parametrize("maximize", DIRECTIONS)
def test_front_agrees_with_the_definition(maximize: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 8, 20) * 10:
        ties, distinct = random_points(rng, n), rng.normal(size=(n, 2))
        for points in (ties, distinct):
            assert is_non_dominated(points, maximize).tolist() == front_by_definition(points, maximize)


def test_front_of_none_of_one_and_of_infinities() -> None:
    assert is_non_dominated([], (True, False)).tolist() == []
    assert is_non_dominated(np.empty((0, 2)), (True, False)).tolist() == []
    assert is_non_dominated([[3.0, 4.0]], (True, False)).tolist() == [True]
    assert is_non_dominated([[np.nan, 4.0]], (True, False)).tolist() == [False]
    assert is_non_dominated([[-np.inf, -np.inf]], (True, True)).tolist() == [True]
    assert is_non_dominated([[np.inf, -np.inf], [-np.inf, np.inf], [0, 0]], (True, True)).all()


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        is_non_dominated(np.zeros(shape), (True, True))
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[1, 1]], (0.0, np.inf), (True, False))


@pytest.mark.parametrize("maximize", DIRECTIONS)
def test_hypervolume_agrees_with_the_union_of_rectangles(maximize: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(1)
    for n in (0, 1, 2, 3, 6, 12) * 5:
        for points in (random_points(rng, n), rng.normal(size=(n, 2))):
            for reference in ((-4.0, 4.0), (0.0, 0.0), (1.0, -1.0)):
                expected = area_by_cells(points, reference, maximize)
                assert hypervolume(points, reference, maximize) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_by_hand() -> None:
    # top-1 up from 70, GFLOPs down from 1.2: a 10 x 0.1 slab, then 4 more points of top-1 for the last 0.05.
    points = [[84.0, 1.15], [80.0, 1.1], [75.0, 1.18], [84.0, 1.15]]
    assert hypervolume(points, (70.0, 1.2), (True, False)) == pytest.approx(10 * 0.1 + 4 * 0.05)
    assert hypervolume([], (70.0, 1.2), (True, False)) == 0.0
    assert hypervolume([[70.0, 1.0], [90.0, 1.2]], (70.0, 1.2), (True, False)) == 0.0


def test_curve_is_the_hypervolume_of_each_beginning() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(40, 2))
    points[[0, 7], 0] = np.nan
    curve = hypervolume_curve(points, (-1.0, 1.0), (True, False))
    expected = [hypervolume(points[: i + 1], (-1.0, 1.0), (True, False)) for i in range(40)]
    assert curve == pytest.approx(expected)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == 0.0
    assert hypervolume_curve([], (0.0, 0.0), (True, True)).shape == (0,)
