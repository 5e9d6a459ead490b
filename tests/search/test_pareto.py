import itertools

import numpy as np
import pytest

from ltmsearch.search.pareto import front_ranks, hypervolume, hypervolume_curve, is_non_dominated

Directions = tuple[bool, ...]
DIRECTIONS = [way for objectives in (2, 3) for way in itertools.product([True, False], repeat=objectives)]


def dominates(a: np.ndarray, b: np.ndarray, maximize: Directions) -> bool:
    better = [x > y if more else x < y for x, y, more in zip(a, b, maximize, strict=True)]
    worse = [x < y if more else x > y for x, y, more in zip(a, b, maximize, strict=True)]
    return any(better) and not any(worse)


def front_by_definition(points: np.ndarray, maximize: Directions) -> list[bool]:
    known = ~np.isnan(points).any(axis=1)
    rivals = points[known]
    return [
        bool(ok) and not any(dominates(rival, point, maximize) for rival in rivals)
        for point, ok in zip(points, known, strict=True)
    ]


def volume_by_cells(points: np.ndarray, reference: tuple[float, ...], maximize: Directions) -> float:
    """Sums the cells of the grid spanned by all coordinates whose centre lies in some point's box."""
    points = points[~np.isnan(points).any(axis=1)]
    cuts = [np.unique(np.append(points[:, j], reference[j])) for j in range(len(maximize))]
    volume = 0.0
    for cell in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
        centre = [(low + high) / 2 for low, high in cell]
        inside = [
            all(
                (r < c < v) if more else (v < c < r)
                for r, c, v, more in zip(reference, centre, p, maximize, strict=True)
            )
            for p in points
        ]
        volume += float(np.prod([high - low for low, high in cell])) * any(inside)
    return volume


def random_points(rng: np.random.Generator, n: int, objectives: int) -> np.ndarray:
    """Integers from a small range, so that ties and duplicates are common, and a few rows with NaN."""
    points = rng.integers(-3, 4, size=(n, objectives)).astype(float)
    points[rng.random(n) < 0.1, rng.integers(objectives)] = np.nan
    return points


@pytest.mark.parametrize("maximize", DIRECTIONS)
def test_front_agrees_with_the_definition(maximize: Directions) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 8, 20) * 10:
        ties, distinct = random_points(rng, n, len(maximize)), rng.normal(size=(n, len(maximize)))
        for points in (ties, distinct):
            assert is_non_dominated(points, maximize).tolist() == front_by_definition(points, maximize)


def test_front_of_none_of_one_and_of_infinities() -> None:
    assert is_non_dominated([], (True, False)).tolist() == []
    assert is_non_dominated(np.empty((0, 2)), (True, False)).tolist() == []
    assert is_non_dominated([[3.0, 4.0]], (True, False)).tolist() == [True]
    assert is_non_dominated([[np.nan, 4.0]], (True, False)).tolist() == [False]
    assert is_non_dominated([[-np.inf, -np.inf]], (True, True)).tolist() == [True]
    assert is_non_dominated([[np.inf, -np.inf], [-np.inf, np.inf], [0, 0]], (True, True)).all()
    assert is_non_dominated([], (True, False, False)).tolist() == []
    far = [[1, np.inf, 5], [1, np.inf, 4], [0, np.inf, 3], [0, np.inf, 6]]
    assert is_non_dominated(far, (True, False, False)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        is_non_dominated(np.zeros(shape), (True, True))
    with pytest.raises(ValueError, match="finite"):
        hypervolume([[1, 1]], (0.0, np.inf), (True, False))
    with pytest.raises(ValueError, match="3 finite"):
        hypervolume([[1, 1, 1]], (0.0, 1.0), (True, False, False))
    with pytest.raises(ValueError, match="two or three"):
        is_non_dominated(np.zeros((2, 4)), (True,) * 4)


@pytest.mark.parametrize("maximize", DIRECTIONS)
def test_hypervolume_agrees_with_the_union_of_boxes(maximize: Directions) -> None:
    rng, objectives = np.random.default_rng(1), len(maximize)
    for n in (0, 1, 2, 3, 6, 12) * (5 if objectives == 2 else 1):
        for points in (random_points(rng, n, objectives), rng.normal(size=(n, objectives))):
            for reference in ((-4.0, 4.0, -4.0), (0.0, 0.0, 0.0), (1.0, -1.0, 1.0)):
                corner = reference[:objectives]
                expected = volume_by_cells(points, corner, maximize)
                assert hypervolume(points, corner, maximize) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_by_hand() -> None:
    # top-1 up from 70, GFLOPs down from 1.2: a 10 x 0.1 slab, then 4 more points of top-1 for the last 0.05.
    points = [[84.0, 1.15], [80.0, 1.1], [75.0, 1.18], [84.0, 1.15]]
    assert hypervolume(points, (70.0, 1.2), (True, False)) == pytest.approx(10 * 0.1 + 4 * 0.05)
    assert hypervolume([], (70.0, 1.2), (True, False)) == 0.0
    assert hypervolume([[70.0, 1.0], [90.0, 1.2]], (70.0, 1.2), (True, False)) == 0.0
    # Down from 100 tokens too: 10 x 0.1 x 40, and where only the better one with all but 10 tokens is, 4 x 0.05 x 10.
    points = [[84.0, 1.15, 90.0], [80.0, 1.1, 60.0]]
    three = hypervolume(points, (70.0, 1.2, 100.0), (True, False, False))
    assert three == pytest.approx(10 * 0.1 * 40 + 4 * 0.05 * 10)


@pytest.mark.parametrize("maximize", [(True, False), (True, False, False)], ids=["two", "three"])
def test_curve_is_the_hypervolume_of_each_beginning(maximize: Directions) -> None:
    rng, reference = np.random.default_rng(2), (-1.0, 1.0, 1.0)[: len(maximize)]
    points = rng.normal(size=(40, len(maximize)))
    points[[0, 7], 0] = np.nan
    points[12] = points[11]
    curve = hypervolume_curve(points, reference, maximize)
    expected = [hypervolume(points[: i + 1], reference, maximize) for i in range(40)]
    assert curve == pytest.approx(expected)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] == 0.0
    assert hypervolume_curve([], reference, maximize).shape == (0,)


def test_ranks_in_three_dimensions() -> None:
    rng = np.random.default_rng(3)
    points = rng.integers(0, 4, size=(30, 3)).astype(float)
    ranks = np.array(front_ranks(points.tolist(), (True, False, False)))
    for rank in range(ranks.max() + 1):
        left = ranks >= rank
        assert ((ranks == rank)[left] == front_by_definition(points[left], (True, False, False))).all()
