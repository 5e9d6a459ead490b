"""Exact cost of each image under operators that merge by threshold, whose token counts depend on the image.

The counts come from forward passes (`ltmsearch.models.count_tokens`). The cost follows from them by the formulas of
fixed counts, and is exactly fvcore's count of the network that runs this image alone.

Shapes: I images, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltmsearch.costs.macs import GIGA, CostModel, plain_macs
from ltmsearch.merging import get_operator
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import MergeSchedule

QUANTILES = (0.05, 0.5, 0.95)
"""Quantiles of the cost that are reported."""


@dataclass(frozen=True, kw_only=True)
class ImageCosts:
    """Costs of some images under one schedule, with the same weights."""

    macs: np.ndarray
    """(I,) int64 multiply-adds."""
    kept: np.ndarray
    """(I, L) int64 tokens after each layer, without those that never merge."""

    @property
    def gflops(self) -> float:
        """Mean cost, in 1e9 multiply-adds."""
        return float(self.macs.mean()) / GIGA

    @property
    def gflops_sd(self) -> float:
        """Standard deviation of the cost over images, in 1e9 multiply-adds."""
        return float(self.macs.std()) / GIGA

    def quantile(self, share: float) -> float:
        """The cost that a share of the images does not exceed, in 1e9 multiply-adds: that of one of the images."""
        return self.quantile_macs(share) / GIGA

    def quantile_macs(self, share: float) -> int:
        """The same in multiply-adds."""
        return int(np.quantile(self.macs, share, method="inverted_cdf"))

    @property
    def tokens(self) -> list[float]:
        """(L,) mean tokens after each layer."""
        return [round(float(mean), 4) for mean in self.kept.mean(axis=0)]


def image_costs(costs: CostModel, schedule: MergeSchedule, kept: np.ndarray) -> ImageCosts:
    """The costs of images that keep (I, L) tokens after the layers; at least one image.

    Raises:
        ValueError: If there is no image, or the numbers of layers differ.
    """
    if kept.ndim != 2 or not len(kept) or kept.shape[1] != len(costs.layers):
        raise ValueError(f"`kept` must be (I, {len(costs.layers)}) with an image at least, but got {kept.shape}.")
    known = {row: image_macs(costs, schedule, row) for row in set(map(tuple, kept.tolist()))}
    return ImageCosts(macs=np.array([known[tuple(row)] for row in kept.tolist()]), kept=kept)


def image_macs(costs: CostModel, schedule: MergeSchedule, kept: Sequence[int]) -> int:
    """Multiply-adds of one image that keeps (L,) tokens after the layers."""
    operator, total, counts = get_operator(costs.operator), int(costs.base), iter(kept)
    for chain in costs.chains:
        grid: Grid = chain.grid
        for layer in chain.layers:
            target = (next(counts),)
            total += layer.macs_before(grid) + layer.macs_after(target) - plain_macs(layer, chain.grid)
            if schedule.keep_ratio(layer.name) < 1 and tokens(grid) > 1:
                total += operator.merge_macs(layer.merge_shape(grid, target), costs.default_form)
            grid = target
        total += chain.macs_after_chain(grid) - chain.macs_after_chain(chain.grid)
    return total
