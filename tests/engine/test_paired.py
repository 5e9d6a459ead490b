"""Means with clustered standard errors, against the definition, a bootstrap and simulated data."""

import math

import numpy as np
import pytest

from ltmsearch.engine.paired import Difference, mean_with_error


def test_independent_images_have_the_usual_standard_error() -> None:
    values = np.random.default_rng(0).choice([-100.0, 0.0, 100.0], size=57, p=[0.2, 0.7, 0.1])
    expected = values.std(ddof=1) / math.sqrt(57)
    for groups in (None, np.arange(57), np.random.default_rng(1).permutation(57) * 10):
        found = mean_with_error(values, groups)
        assert found.value == pytest.approx(values.mean())
        assert found.se == pytest.approx(expected)


def test_two_groups_by_hand() -> None:
    """Values 0, 0, 1 and 1 in pairs: mean 1/2, totals of residuals −1 and 1, variance 2/1 · (1 + 1) / 4²."""
    found = mean_with_error([0, 0, 1, 1], [7, 7, 3, 3])
    assert (found.value, found.se) == (0.5, pytest.approx(math.sqrt(2 * 2) / 4))


def test_images_that_repeat_each_other_add_nothing() -> None:
    """Constant inside groups of five: the error is that of one image per group."""
    ones = np.random.default_rng(0).normal(size=40)
    groups = np.repeat(np.arange(40), 5)
    found = mean_with_error(np.repeat(ones, 5), groups)
    assert found.value == pytest.approx(ones.mean())
    assert found.se == pytest.approx(ones.std(ddof=1) / math.sqrt(40))
    assert found.se == pytest.approx(math.sqrt(5) * mean_with_error(np.repeat(ones, 5)).se, rel=0.02)


def test_opposite_images_in_a_group_cancel() -> None:
    values = np.tile([1.0, -1.0], 30)
    assert mean_with_error(values, np.repeat(np.arange(30), 2)).se == 0
    assert mean_with_error(values).se > 0.1


def test_the_error_is_that_of_a_bootstrap_over_groups() -> None:
    """Groups of unequal size, with a part of the noise in common."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, size=150)
    groups = np.repeat(np.arange(150), sizes)
    values = rng.normal(size=150)[groups] + rng.normal(size=len(groups))
    means = []
    for _ in range(4000):
        drawn = rng.integers(0, 150, size=150)
        chosen = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
        means.append(values[chosen].mean())
    assert mean_with_error(values, groups).se == pytest.approx(np.std(means), rel=0.05)


def test_95_of_100_intervals_have_the_mean() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    drawn = [mean_with_error(rng.normal(size=60)[groups] + rng.normal(size=240), groups) for _ in range(1000)]
    inside = [low < 0 < high for low, high in (each.interval() for each in drawn)]
    assert 0.93 < np.mean(inside) < 0.97
    below = [each.lower() < 0 for each in drawn]
    assert 0.93 < np.mean(below) < 0.97


@pytest.mark.parametrize("groups", [None, [4], [4, 4, 4]], ids=["one image", "one group", "one group of three"])
def test_a_single_group_says_nothing_about_the_error(groups: list[int] | None) -> None:
    found = mean_with_error([1.0] * len(groups or [0]), groups)
    assert found == Difference(value=1.0, se=math.inf)
    assert found.interval() == (-math.inf, math.inf)
    assert found.lower() == -math.inf


def test_refused_input() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        mean_with_error([])
    with pytest.raises(ValueError, match=r"one number per image, 3, but has shape \(2,\)"):
        mean_with_error([1, 2, 3], [0, 1])


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference(value=-1.25, se=0.34), "−1.2 ± 0.3"),
        (Difference(value=0.4, se=0.0), "+0.4 ± 0.0"),
        (Difference(value=-0.04, se=0.5), "+0.0 ± 0.5"),
    ],
)
def test_differences_in_words_have_a_sign(difference: Difference, words: str) -> None:
    assert str(difference) == words
    assert difference.interval(0.95)[0] == pytest.approx(difference.value - 1.959964 * difference.se)
    assert difference.lower(0.95) == pytest.approx(difference.value - 1.644854 * difference.se)
