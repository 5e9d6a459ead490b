"""Latency of any schedule in microseconds, from a model fitted to subnets that were timed.

A merge changes the time of the layers of its chain and of nothing else. So each kind of chain has a linear model of its
own of the milliseconds that its merges add or save: what a merge of some form to some ratio takes by itself, what the
layers before and behind it save with the tokens that are gone, and what attention among merged tokens takes to weigh
them. Where every chain was timed by itself, each kind is fitted to its own times, which leaves out the noise of all
that never changes, such as convolutions; where only the whole net was timed, all kinds are fitted together.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ltmsearch.costs.macs import CostModel, merge_macs
from ltmsearch.costs.tables import ChainedCosts
from ltmsearch.merging import get_operator
from ltmsearch.models import Chain, LayerShape
from ltmsearch.schedules.grid import Grid, target_grid, tokens
from ltmsearch.schedules.schedule import Choice, MergeSchedule

WHOLE_NET = ""
"""Name of the segment that is the whole net."""
MEGA = 1e6


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a subnet was seen to take beyond the plain net, in milliseconds; less than zero where it saves time."""

    schedule: MergeSchedule
    """The subnet."""
    extra_ms: Mapping[str, float]
    """`Chain.module` → what is within it; or `WHOLE_NET` alone."""


@dataclass(frozen=True, kw_only=True)
class LatencyModel(ChainedCosts):
    """Milliseconds of one batch on one target."""

    base_ms: float
    """Of the plain net."""
    weights: Mapping[str, float]
    """Milliseconds by the name of a feature: see `layer_features`."""

    @property
    def base(self) -> float:
        """See `base_ms`."""
        return self.base_ms

    def step(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> float:
        """See `ChainedCosts.step`.

        Raises:
            ValueError: If no subnet that was timed took this choice at such a layer.
        """
        features = layer_features(chain, layer, grid, choice, self.operator)
        unknown = [name for name in features if name not in self.weights]
        if unknown:
            raise ValueError(f"`choice` must be one that was timed, but got {choice} at {layer.name} ({unknown[0]}).")
        return float(sum(self.weights[name] * value for name, value in features.items()))

    def after_chain(self, chain: Chain, grid: Grid) -> float:
        """See `ChainedCosts.after_chain`."""
        return float(sum(self.weights[name] * value for name, value in after_chain_features(chain, grid).items()))

    def latency_ms(self, schedule: MergeSchedule) -> float:
        """Of one batch under a schedule."""
        return float(self.cost(schedule))


def kind(chain: Chain) -> Hashable:
    """Equal for chains that take the same time under the same choices."""
    return chain.grid, chain.unmerges, tuple(replace(layer, name="") for layer in chain.layers)


def layer_features(chain: Chain, layer: LayerShape, grid: Grid, choice: Choice, operator: str) -> dict[str, float]:
    """What the time of a layer depends on, beside the plain layer's: name → number, zeros left out.

    Args:
        chain: The chain it is in.
        layer: Its shape.
        grid: The grid that comes in.
        choice: What it is.
        operator: Name of the merging operator.
    """
    target = target_grid(grid, choice.keep_ratio)
    features = {
        "tokens before": float(tokens(grid) - tokens(chain.grid)),
        "work before": (layer.macs_before(grid) - layer.macs_before(chain.grid)) / MEGA,
        "work after": (layer.macs_after(target) - layer.macs_after(chain.grid)) / MEGA,
        "weighed": float(grid != chain.grid),
    }
    if target != grid:
        own = get_operator(operator)
        form = choice.form or own.forms[0]
        features[f"{form} {choice.keep_ratio:g}"] = 1.0
        features[f"{form} work"] = merge_macs(chain, layer, own, grid, choice) / MEGA
        features[f"{form} tokens"] = float(tokens(grid))
    prefix = f"{layer.dim}@{chain.grid[0]}x{chain.grid[1]}×{layer.windows}"
    return {f"{prefix} {name}": value for name, value in features.items() if value}


def after_chain_features(chain: Chain, grid: Grid) -> dict[str, float]:
    """What the time behind a chain that leaves `grid` depends on, where nothing is undone."""
    gone = tokens(grid) - tokens(chain.grid)
    return {} if chain.unmerges or not gone else {"tokens left": float(gone)}


def chain_features(chain: Chain, schedule: MergeSchedule, costs: ChainedCosts) -> dict[str, float]:
    """The features of all layers of a chain under a schedule, added up."""
    total: dict[str, float] = {}
    grid = chain.grid
    for layer in chain.layers:
        choice = costs.choice(schedule, layer.name)
        for name, value in layer_features(chain, layer, grid, choice, costs.operator).items():
            total[name] = total.get(name, 0.0) + value
        grid = target_grid(grid, choice.keep_ratio)
    return total | after_chain_features(chain, grid)


def fit_latency(costs: CostModel, base_ms: float, timings: Sequence[Timing]) -> LatencyModel:
    """Fit the model to subnets that were timed.

    Ridge regression, its strength chosen by leaving out one row at a time (scikit-learn's `RidgeCV`).

    Args:
        costs: The shapes of the layers.
        base_ms: Latency of the plain net.
        timings: Of subnets; either all by chain or all as a whole.

    Raises:
        ValueError: If there are no timings.
    """
    if not timings:
        raise ValueError("`timings` must hold at least one subnet.")
    whole = WHOLE_NET in timings[0].extra_ms
    groups: dict[Hashable, list[tuple[dict[str, float], float]]] = {}
    for timing in timings:
        if whole:
            together: dict[str, float] = {}
            for chain in costs.chains:
                for name, value in chain_features(chain, timing.schedule, costs).items():
                    together[name] = together.get(name, 0.0) + value
            groups.setdefault(WHOLE_NET, []).append((together, timing.extra_ms[WHOLE_NET]))
        else:
            for chain in costs.chains:
                row = chain_features(chain, timing.schedule, costs)
                groups.setdefault(kind(chain), []).append((row, timing.extra_ms[chain.module]))
    weights: dict[str, float] = {}
    for rows in groups.values():
        weights |= _fit(rows)
    return LatencyModel(chains=costs.chains, operator=costs.operator, base_ms=base_ms, weights=weights)


def _fit(rows: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Weights of one linear model without a constant: the plain net adds nothing."""
    names = list(dict.fromkeys(name for features, _ in rows for name in features))
    if not names:
        return {}
    x = np.array([[features.get(name, 0.0) for name in names] for features, _ in rows])
    y = np.array([extra for _, extra in rows])
    model = make_pipeline(
        StandardScaler(with_mean=False), RidgeCV(alphas=np.logspace(-4, 3, 29), fit_intercept=False)
    ).fit(x, y)
    scaled = model[-1].coef_ / model[0].scale_
    return dict(zip(names, map(float, scaled), strict=True))
