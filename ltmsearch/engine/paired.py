"""Paired comparison of two networks on the same images, with standard errors that respect groups of images."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference between two networks."""

    value: float
    se: float
    """Standard error."""

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Two-sided interval of the mean, by the normal distribution."""
        half = NormalDist().inv_cdf(0.5 + confidence / 2) * self.se
        return self.value - half, self.value + half

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """One-sided lower bound of the mean."""
        return self.value - NormalDist().inv_cdf(confidence) * self.se

    def __str__(self) -> str:
        return f"{self.value:+z.1f} ± {self.se:.1f}".replace("-", "−")


def mean_with_error(values: ArrayLike, groups: ArrayLike | None = None) -> Difference:
    """Mean over images, and its standard error clustered by groups of images that are not independent.

    The clustered variance is Liang and Zeger's (Biometrika 73, 1986, https://doi.org/10.1093/biomet/73.1.13) with the
    usual factor G / (G − 1) for G groups; without groups it is that of independent images. With a single image or group
    the error is infinite.

    Args:
        values: (n,) numbers, one per image; for a paired comparison the difference of both networks' values.
        groups: (n,) equal numbers for images that are not independent; None: all are.

    Raises:
        ValueError: If there is no image, or `groups` has another length.
    """
    numbers = np.asarray(values, dtype=np.float64)
    n = len(numbers)
    if not n:
        raise ValueError("a mean needs at least one image, but got none.")
    own = np.arange(n) if groups is None else np.asarray(groups)
    if own.shape != numbers.shape:
        raise ValueError(f"`groups` must have one number per image, {n}, but has shape {own.shape}.")
    mean = float(numbers.mean())
    _, members = np.unique(own, return_inverse=True)
    totals = np.bincount(members, weights=numbers - mean)
    g = len(totals)
    if g < 2:
        return Difference(value=mean, se=float("inf"))
    return Difference(value=mean, se=float(np.sqrt(g / (g - 1) * np.sum(totals**2)) / n))
