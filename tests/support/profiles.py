"""Costs and hand-made latency profiles."""

from collections.abc import Callable, Mapping
from functools import cache

from ltmsearch.costs import CostModel, backbone_costs
from ltmsearch.costs.latency import after_chain_features, layer_features
from ltmsearch.latency import LatencyProfile, LatencyTarget, Measurement, profile_space
from ltmsearch.models import get_adapter
from ltmsearch.schedules.space import SearchSpace
from ltmsearch.schedules.space_file import SpaceFile

FAR = LatencyTarget(
    device="cpu", hardware="a machine far away", threads=4, runtime="torch", dtype="fp32",
    memory_format="channels_last", batch_size=1, img_size=224, num_classes=10, versions={"torch": "0.1"},
)  # fmt: skip
"""A target that no machine is."""


def measurement(ms: float, error: float = 0.01) -> Measurement:
    """A stable measurement."""
    return Measurement(ms=ms, least_ms=ms, iqr_ms=0.0, error=error, visits=6, runs=18, stable=True)


@cache
def costs_of(backbone: str, img_size: int, operator: str = "ltm") -> CostModel:
    """Of a net of ten classes."""
    return backbone_costs(backbone, img_size, operator, num_classes=10)


def whole_space(costs: CostModel, backbone: str, space: str | None = None) -> SearchSpace:
    """All that a family's file, or another, offers for a latency profile."""
    return profile_space(SpaceFile.load(space, family=get_adapter(backbone).family), costs)


def feature_names(costs: CostModel, space: SearchSpace) -> list[str]:
    """Every name that a schedule of a space can need a weight for."""
    names: dict[str, None] = {}
    options = iter(space.choices)
    for chain in costs.chains:
        grids = {chain.grid}
        for layer in chain.layers:
            choices = next(options)
            for grid in sorted(grids):
                for choice in choices:
                    names |= dict.fromkeys(layer_features(chain, layer, grid, choice, costs))
            grids = {costs.outgoing(layer, grid, choice) for grid in grids for choice in choices}
        for grid in sorted(grids):
            names |= dict.fromkeys(after_chain_features(chain, grid))
    return list(names)


def suffix(name: str) -> str:
    """A feature's name without the layer that it is of: `hard 0.5`, `work after`, …"""
    return name.partition("×")[2].partition(" ")[2] if "×" in name else name


def hand_made_profile(
    truth: Callable[[str], float], *, base_ms: float, target: LatencyTarget = FAR, space: str | None = None,
    backbone: str = "mobilevit_xxs",
) -> LatencyProfile:  # fmt: skip
    """A profile of weights that were not fitted.

    Args:
        truth: Milliseconds by a feature's name without its layer.
        base_ms: Of the plain net.
        target: Whose it is.
        space: Search-space file; None: the family's.
        backbone: timm name.
    """
    costs = costs_of(backbone, target.img_size)
    choices = whole_space(costs, backbone, space)
    weights: Mapping[str, float] = {name: truth(suffix(name)) for name in feature_names(costs, choices)}
    return LatencyProfile(
        backbone=backbone, operator="ltm", space=choices.digest(), target=target, plain=measurement(base_ms),
        subnets=[], load=0.5, seconds=1.0, weights=dict(weights), check={"error": 0.02, "noise": 0.01, "subnets": 0},
    )  # fmt: skip
