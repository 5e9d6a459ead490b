"""Nets merged at one keep ratio: every form of LTM, ToMe at equal GFLOPs, pooling, and a merge that costs nothing."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ltmsearch.costs import CostModel, cost_model
from ltmsearch.merging import Merge, MergeOperator
from ltmsearch.models import MERGING, attached_operators, create_subnet
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form, MergeSchedule

IMG_SIZE = 224
"""Image side in pixels, where a name has none."""
FORMS: tuple[Form, ...] = ("soft", "hard", "matched")
EQUAL = 0.01
"""GFLOPs that differ by this share or less are equal."""


class FreeMerge(Merge):
    """Merge that changes nothing on the way back."""

    def unmerge_change(self, before: Tensor, change: Tensor) -> Tensor:
        return before


@dataclass(frozen=True)
class FreeAssignment:
    """Carries nothing: the values before the merge stand for those after it."""

    before: Tensor
    """(B, G, N, C)."""

    def collect(self, values: Tensor) -> Tensor:
        """Never called: `FreeMerging` keeps tokens instead of averaging them."""
        raise NotImplementedError

    collect_few = collect

    def spread(self, values: Tensor) -> Tensor:
        return self.before


class FreeMerging(MergeOperator):
    """Keep the first P tokens: the shapes of a merge without its work."""

    forms = ("soft",)
    grid_forms = ("soft",)

    def forward(self, tokens_in: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        count = tokens(target)
        assignment = FreeAssignment(tokens_in)
        return FreeMerge(tokens=tokens_in[:, :, :count], sizes=sizes[:, :count], assignment=assignment)


def at_size(name: str) -> tuple[str, int]:
    """timm name and image side of NAME or NAME@PIXELS."""
    backbone, _, size = name.partition("@")
    return backbone, int(size or IMG_SIZE)


def free_net(backbone: str, layers: tuple[str, ...], keep: float, img_size: int) -> nn.Module:
    """Net whose merges cost nothing: no merge can be faster."""
    net = create_subnet(backbone, keep_ratios={"*": keep}, img_size=img_size)
    for layer, operator in attached_operators(net, layers).items():
        free = FreeMerging(0)  # type: ignore[abstract]
        free.keep_ratio = operator.keep_ratio
        net.get_submodule(layer).add_module(MERGING, free)
    return net


def nearest_tome(costs: CostModel, macs: int) -> MergeSchedule:
    """ToMe's schedule of the nearest cost: one keep ratio up to some layer and another from there on."""
    ratios = [float(ratio) for ratio in np.round(np.arange(0.3, 1.0, 0.02), 2)]
    uniform = {ratio: costs.macs(MergeSchedule.uniform(costs.layers, ratio, "tome")) for ratio in ratios}
    best = min(uniform, key=lambda ratio: abs(uniform[ratio] - macs))
    mixed = []
    for other in ratios:
        for k in range(1, len(costs.layers) + 1):
            kept = dict.fromkeys(costs.layers[:k], best) | dict.fromkeys(costs.layers[k:], other)
            mixed.append(MergeSchedule(keep_ratios=kept, operator="tome"))
    return min(mixed, key=lambda schedule: abs(costs.macs(schedule) - macs))


@dataclass
class MergedNets:
    """All nets of one backbone."""

    nets: dict[str, nn.Module] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    """Multiply-adds over the plain net's; unknown for `free`."""
    tome: dict[str, str] = field(default_factory=dict)
    """Form -> name of the ToMe net of its cost."""

    def known_tome(self, cost: float) -> str | None:
        """ToMe net whose cost is already the wanted one, to half of what counts as equal."""
        names = (name for name in self.nets if name.startswith("tome"))
        return next((name for name in names if abs(self.cost[name] / cost - 1) <= EQUAL / 2), None)


def make_nets(sized_name: str, keep: float) -> MergedNets:
    """Plain net, forms of LTM, ToMe at the cost of each form, pooling, and the free merge; for the name: `at_size`."""
    backbone, size = at_size(sized_name)
    build = partial(create_subnet, backbone, img_size=size)
    made, plain = MergedNets(), build()
    costs, tome, pool = (cost_model(backbone, plain, (size, size), operator) for operator in ("ltm", "tome", "pool"))
    made.nets["plain"], made.cost["plain"] = plain, 1.0
    for name in FORMS:
        made.nets[name] = build(keep_ratios={"*": keep}, forms=name, mask_start="content")
        macs = costs.macs(MergeSchedule.uniform(costs.layers, keep, "ltm", name))
        made.cost[name] = macs / costs.base
        equal = made.known_tome(made.cost[name])
        if equal is None:
            schedule, equal = nearest_tome(tome, macs), f"tome {len(made.nets)}"
            made.nets[equal] = build(keep_ratios=dict(schedule.keep_ratios), operator="tome")
            made.cost[equal] = tome.macs(schedule) / costs.base
        made.tome[name] = equal
    made.nets["pool"] = build(keep_ratios={"*": keep}, operator="pool")
    made.cost["pool"] = pool.macs(MergeSchedule.uniform(costs.layers, keep, "pool")) / costs.base
    made.nets["free"] = free_net(backbone, costs.layers, keep, size)
    for net in made.nets.values():
        net.eval().to(memory_format=torch.channels_last)
    return made
