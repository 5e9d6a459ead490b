"""Latency of any schedule, predicted in microseconds by a model fitted to timed subnets.

A merge changes only the time of its chain. So each kind of chain has a linear model of the milliseconds that its merges
add or save: the time of the merge itself by form and ratio, the time saved in the layers before and after it, and the
time of weighted attention among merged tokens. If chains were timed separately, each kind is fitted to its own times,
without the noise of the rest of the network; if only the whole network was timed, all kinds are fitted together.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ltmsearch.costs.macs import CostModel
from ltmsearch.costs.tables import ChainedCosts
from ltmsearch.models import Chain, LayerShape
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Choice, MergeSchedule

WHOLE_NET = ""
"""Name of the segment that is the whole network."""
MEGA = 1e6


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Measured latency of a subnet less that of the plain network, in milliseconds."""

    schedule: MergeSchedule
    """The subnet."""
    extra_ms: Mapping[str, float]
    """`Chain.module` → its part; or only `WHOLE_NET`."""


@dataclass(frozen=True, kw_only=True)
class LatencyModel(ChainedCosts):
    """Milliseconds per batch on one target."""

    weights: Mapping[str, float]
    """Milliseconds per unit of each feature: see `layer_features`."""

    def step(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> float:
        """See `ChainedCosts.step`.

        Raises:
            ValueError: If no timed subnet has this choice at such a layer.
        """
        features = layer_features(chain, layer, grid, choice, self)
        unknown = [name for name in features if name not in self.weights]
        if unknown:
            raise ValueError(f"`choice` must be one that was timed, but got {choice} at {layer.name} ({unknown[0]}).")
        return float(sum(self.weights[name] * value for name, value in features.items()))

    def after_chain(self, chain: Chain, grid: Grid) -> float:
        return float(sum(self.weights[name] * value for name, value in after_chain_features(chain, grid).items()))

    def latency_ms(self, schedule: MergeSchedule) -> float:
        """Milliseconds of one batch under a schedule."""
        return float(self.cost(schedule))


def kind(chain: Chain) -> Hashable:
    """Key that is equal for chains with the same latency under the same choices."""
    return chain.grid, chain.unmerges, tuple(replace(layer, name="") for layer in chain.layers)


def layer_features(
    chain: Chain, layer: LayerShape, grid: Grid, choice: Choice, costs: ChainedCosts
) -> dict[str, float]:
    """Features of a layer's time on the incoming `grid`, relative to the plain layer: name → non-zero value."""
    target = costs.outgoing(layer, grid, choice)
    features = {
        "tokens before": float(tokens(grid) - tokens(chain.grid)),
        "work before": (layer.macs_before(grid) - layer.macs_before(chain.grid)) / MEGA,
        "work after": (layer.macs_after(target) - layer.macs_after(chain.grid)) / MEGA,
        "weighed": float(grid != chain.grid),
    }
    if target != grid:
        form = choice.form or costs.default_form
        features[f"{form} {choice.keep_ratio:g}"] = 1.0
        features[f"{form} work"] = costs.merge_macs(chain, layer, grid, choice) / MEGA
        features[f"{form} tokens"] = float(tokens(grid))
    prefix = f"{layer.dim}@{chain.grid[0]}x{chain.grid[1]}×{layer.windows}"
    return {f"{prefix} {name}": value for name, value in features.items() if value}


def after_chain_features(chain: Chain, grid: Grid) -> dict[str, float]:
    """Features of the time behind a chain with outgoing `grid`, if merges are not undone."""
    gone = tokens(grid) - tokens(chain.grid)
    return {} if chain.unmerges or not gone else {"tokens left": float(gone)}


def chain_features(chain: Chain, schedule: MergeSchedule, costs: ChainedCosts) -> dict[str, float]:
    """Sum of the features of a chain under a schedule."""
    parts, grid = [], chain.grid
    for layer in chain.layers:
        choice = costs.choice(schedule, layer.name)
        parts.append(layer_features(chain, layer, grid, choice, costs))
        grid = costs.outgoing(layer, grid, choice)
    return _sum([*parts, after_chain_features(chain, grid)])


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, value in (item for part in parts for item in part.items()):
        total[name] = total.get(name, 0.0) + value
    return total


def fit_latency(costs: CostModel, base_ms: float, timings: Sequence[Timing]) -> LatencyModel:
    """Fit the model to subnets timed all by chain or all as a whole, by ridge regression with leave-one-out validation.

    Raises:
        ValueError: If there are no timings.
    """
    if not timings:
        raise ValueError("`timings` must contain at least one subnet.")
    whole = WHOLE_NET in timings[0].extra_ms
    groups: dict[Hashable, list[tuple[dict[str, float], float]]] = {}
    for timing in timings:
        rows = [chain_features(chain, timing.schedule, costs) for chain in costs.chains]
        if whole:
            groups.setdefault(WHOLE_NET, []).append((_sum(rows), timing.extra_ms[WHOLE_NET]))
        else:
            for chain, row in zip(costs.chains, rows, strict=True):
                groups.setdefault(kind(chain), []).append((row, timing.extra_ms[chain.module]))
    weights = {name: weight for timed in groups.values() for name, weight in _fit(timed).items()}
    return LatencyModel(
        chains=costs.chains, operator=costs.operator, default_form=costs.default_form, base=base_ms, weights=weights
    )


def _fit(rows: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Weights of a linear model without intercept: the plain network adds nothing."""
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
