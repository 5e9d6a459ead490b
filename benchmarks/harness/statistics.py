"""Means with spread, paired differences, and Kendall's τ with bootstrap intervals."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

BOOTSTRAPS = 1000


def mean_sd(values: Iterable[float], digits: int = 1, *, sign: bool = False) -> str:
    """`mean ± standard deviation`; empty without values."""
    array = np.array(list(values))
    if not len(array):
        return ""
    text = f"{array.mean():{'+' if sign else ''}.{digits}f}"
    return text + (f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else "")


def mean_interval(values: Sequence[float], digits: int) -> str:
    """`mean ± half width of the 95 % interval` of paired differences."""
    if len(values) < 2:
        return mean_sd(values, digits, sign=True)
    return f"{np.mean(values):+.{digits}f} ± {half_width(values):.{digits}f}"


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Paired differences."""
    return [a - b for a, b in zip(one, other, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean; infinite with one value."""
    return float(stats.sem(values)) if len(values) > 1 else float("inf")


def half_width(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1)) * standard_error(values)


# -- ranks -----------------------------------------------------------------------------------------------------------


def kendall_beyond_noise(a: np.ndarray, b: np.ndarray, noise: np.ndarray) -> tuple[float, int]:
    """Kendall's τ over the pairs whose second values differ by more than twice the noise, and their number."""
    signs = [
        np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])
        for i, j in combinations(range(len(a)), 2)
        if abs(b[i] - b[j]) > 2 * np.hypot(noise[i], noise[j])
    ]
    return (float(np.mean(signs)) if signs else float("nan")), len(signs)


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b; 0 where one side has nothing but ties. Much faster than scipy's on few items."""
    one, other = (np.sign(values[:, None] - values[None, :]) for values in (a, b))
    norm = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / norm) if norm else 0.0


def rank_agreement(scores: np.ndarray, truth: np.ndarray, costs: np.ndarray) -> dict[str, Any]:
    """Kendall's τ of scores with a truth, beside that of costs; intervals bootstrap over items, seeds and scorers.

    Args:
        scores: (scorers, items), more is better.
        truth: (seeds, items), more is better.
        costs: (items,).
    """
    rng, (seeds, items), scorers = np.random.default_rng(0), truth.shape, len(scores)
    tests = [stats.kendalltau(row, truth.mean(axis=0)) for row in scores]  # nan where one side is nothing but ties
    drawn, gains = [], []
    for _ in range(BOOTSTRAPS):
        some = rng.integers(items, size=items)
        means = truth[rng.integers(seeds, size=seeds)][:, some].mean(axis=0)
        drawn.append(np.mean([tau_b(row[some], means) for row in scores[rng.integers(scorers, size=scorers)]]))
        gains.append(drawn[-1] - tau_b(costs[some], means))
    tau = float(np.mean([np.nan_to_num(test.statistic) for test in tests]))
    return {
        "tau": tau,
        "interval": np.quantile(drawn, [0.025, 0.975]),
        "p": [float(np.nan_to_num(test.pvalue, nan=1.0)) for test in tests],
        "over_costs": tau - tau_b(costs, truth.mean(axis=0)),
        "over_costs_interval": np.quantile(gains, [0.025, 0.975]),
    }


def rank_reliability(truth: np.ndarray) -> dict[str, Any]:
    """Agreement between the seeds of a (seeds, items) truth, and the mean τ that a perfect predictor reaches.

    The ceiling is simulated with the variance between items and, within them, between seeds.
    """
    mean, (seeds, items) = truth.mean(axis=0), truth.shape
    if seeds < 2:
        return {}
    rest = truth - truth.mean(axis=1, keepdims=True) - mean + mean.mean()
    noise = (rest**2).sum() / ((seeds - 1) * (items - 1)) / seeds  # variance of the mean
    share = max(0.0, 1 - noise / mean.var(ddof=1))
    rng, taus = np.random.default_rng(0), []
    for _ in range(BOOTSTRAPS):
        real = np.sqrt(share) * rng.permutation(mean - mean.mean())
        taus.append(tau_b(real, real + rng.normal(0, np.sqrt(noise), items)))
    return {
        "tau_between_seeds": float(np.mean([tau_b(a, b) for a, b in combinations(truth, 2)])),
        "se": float(np.sqrt(noise)),
        "sd": float(mean.std(ddof=1)),
        "reliability": share,
        "ceiling": float(np.mean(taus)),
        "ceiling_interval": np.quantile(taus, [0.025, 0.975]),
    }


def regret(score: np.ndarray, value: np.ndarray, costs: np.ndarray) -> float:
    """Value that the item of the best score lacks against the best item, mean over all costs as the limit."""
    lacks = []
    for limit in costs:
        within = np.flatnonzero(costs <= limit)
        lacks.append(value[within].max() - value[within[score[within].argmax()]])
    return float(np.mean(lacks))
