"""Exact multiply-adds of any schedule in microseconds, without building or tracing a subnet.

The plain network is traced once. A schedule adds terms for each layer that depend on the layer's incoming and outgoing
grid, so that the cost is a sum along each chain of layers. The result is exactly fvcore's count of the built subnet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltmsearch.costs.tables import ChainedCosts
from ltmsearch.costs.traced import traced_macs
from ltmsearch.errors import InputError
from ltmsearch.merging import get_operator
from ltmsearch.models import (
    Chain,
    LayerShape,
    attached_operators,
    check_operator,
    create_backbone,
    create_subnet,
    get_adapter,
)
from ltmsearch.models.arguments import refusing_arguments, users_arguments
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.schedule import Choice, MergeSchedule

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class CostModel(ChainedCosts):
    """Multiply-adds of one image, exact integers; of operators whose counts depend on the image, the least possible."""

    def step(self, chain: Chain, layer: LayerShape, grid: Grid, choice: Choice) -> int:
        target = self.outgoing(layer, grid, choice)
        macs = layer.macs_before(grid) + layer.macs_after(target) + self.merge_macs(chain, layer, grid, choice)
        return macs - plain_macs(layer, chain.grid)

    def after_chain(self, chain: Chain, grid: Grid) -> int:
        return chain.macs_after_chain(grid) - chain.macs_after_chain(chain.grid)

    def macs(self, schedule: MergeSchedule) -> int:
        """Multiply-adds of one image under a schedule, an exact integer.

        Raises:
            InputError: If they depend on the image: see `ltmsearch.costs.image_costs`.
        """
        if schedule.merging_layers and get_operator(self.operator).adaptive:
            raise InputError(
                f"the cost of {self.operator} merging depends on weights and images, so it cannot be counted without "
                "them: `ltmsearch validate RECIPE --checkpoint FILE` measures it"
            )
        return int(self.cost(schedule))

    def gflops(self, schedule: MergeSchedule) -> float:
        """`macs` in units of 1e9."""
        return self.macs(schedule) / GIGA

    def plain_layer_macs(self) -> dict[str, int]:
        """Multiply-adds of each layer in the plain network."""
        return {layer.name: plain_macs(layer, chain.grid) for chain in self.chains for layer in chain.layers}

    def merge_balance(self, layer: str, choice: Choice) -> tuple[int, int]:
        """Multiply-adds of mask, merge and unmerge at only one layer, and those saved in the rest of the network.

        Where the number of tokens depends on the image, those saved are the most that are possible.
        """
        macs = self.cost_at_one_layer(layer, choice)
        chain, shape = self._found(layer)
        overhead = self.merge_macs(chain, shape, chain.grid, choice)
        return overhead, self.base - macs + overhead


def plain_macs(layer: LayerShape, grid: Grid) -> int:
    """Multiply-adds of a layer that does not merge."""
    return layer.macs_before(grid) + layer.macs_after(grid)


def cost_model(backbone: str, model: nn.Module, img_size: Grid, operator: str = "ltm") -> CostModel:
    """Trace a network, plain or with inactive operators, once, and record the shapes of its layers.

    Raises:
        ValueError: If a layer of the model merges.
        InputError: If timm refuses the size of the images.
    """
    adapter = get_adapter(backbone)
    check_operator(backbone, operator)
    active = [name for name, op in attached_operators(model, adapter.layers(model)).items() if op.keep_ratio < 1]
    if active:
        raise ValueError(f"`model` must be plain, but it merges at {', '.join(active)}.")
    chains = adapter.chains(model, img_size)  # first: it refuses sizes of images in one line
    form = adapter.default_form(operator)
    return CostModel(base=traced_macs(model, img_size), chains=chains, operator=operator, default_form=form)


def backbone_costs(backbone: str, img_size: int, operator: str = "ltm", **timm_kwargs: Any) -> CostModel:
    """The cost model of a backbone at square images, as `create_model` builds it for these; `timm_kwargs` are its.

    A network with fixed image size leaves out the pixels that fill no patch, where the supernet pads them to one.

    Raises:
        InputError: For an unknown backbone or operator, a size that timm refuses, and for arguments that timm or
            merging does not support.
    """
    check_operator(backbone, operator)
    of_user = users_arguments(timm_kwargs)
    with refusing_arguments(backbone, of_user):
        kwargs = {"img_size": img_size, **timm_kwargs}
        costs = cost_model(backbone, create_backbone(backbone, **kwargs), (img_size, img_size), operator)
        if of_user:
            _refuse_other_layers(backbone, costs, img_size, of_user, kwargs)
    return costs


def _refuse_other_layers(
    backbone: str, costs: CostModel, img_size: int, of_user: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise `InputError` unless a network with a user's arguments merges, at exactly the cost of the formula."""
    schedule = MergeSchedule.uniform(costs.layers, 0.5, costs.operator)
    merging = create_subnet(backbone, keep_ratios=schedule.keep_ratios, operator=costs.operator, **kwargs)
    if get_operator(costs.operator).adaptive:
        return  # its weights, which the counts depend on, are not known yet; the layers are the same
    traced, counted = traced_macs(merging, (img_size, img_size)), costs.macs(schedule)
    given = ", ".join(f"{name}={value!r}" for name, value in of_user.items())
    if not costs.layers:
        raise InputError(f"{backbone} must have a layer that can merge, but with {given} it has none")
    if traced != counted:
        raise InputError(
            f"`model_kwargs` must leave layers whose costs are known, but with {given} a merging {backbone} has "
            f"{traced / GIGA:.6f} GFLOPs and the formula gives {counted / GIGA:.6f}"
        )
