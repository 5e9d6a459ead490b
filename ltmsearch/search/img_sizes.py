"""Image sizes of a study: those that are searched, and smaller ones at which baselines run.

Smaller images are the first thing that a person lowers, so the plain network on smaller images, and one ratio on them,
are always among the baselines. Costs are exact at each size. Networks are trained and scored at the same share of the
proxy's image size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ltmsearch.costs import CostModel
from ltmsearch.errors import InputError
from ltmsearch.schedules.schedule import MergeSchedule

SHARES = (0.875, 0.75, 0.625, 0.5)
"""Sides of smaller images, as shares of the network's own, rounded to its patches or stride."""
STEPS = 8
"""Steps of the image side that bring sizes close to these shares."""
LEAST = 32
"""Smallest image side in pixels."""

Wanted = Sequence[int] | Literal["auto"] | None
"""Sizes that are searched, as in the settings."""


@dataclass(frozen=True, kw_only=True)
class ImgSizes:
    """Costs and proxies at each image size."""

    own: int
    """Image side in pixels that the network is built for."""
    searched: tuple[int, ...]
    """Sizes that are searched, the network's own first."""
    costs: dict[int, CostModel]
    """Costs at every size; those of `own` and `searched` come first."""
    proxy_sides: dict[int, int] = field(default_factory=dict)
    """Size → image side in training and scoring trials."""
    proxy_costs: dict[int, CostModel] = field(default_factory=dict)
    """Costs and token grids there."""

    @property
    def choices(self) -> tuple[int, ...]:
        """All sizes in the order of a schedule's index; empty if there is only one."""
        return tuple(self.costs) if len(self.costs) > 1 else ()

    def of(self, schedule: MergeSchedule) -> int:
        """The image size of a schedule."""
        return schedule.img_size or self.own


def open_sizes(
    wanted: Wanted,
    *,
    own: int,
    proxy: int,
    costs: CostModel,
    proxy_costs: CostModel,
    smaller: bool,
    costs_at: Callable[[int], CostModel],
    proxy_costs_at: Callable[[int], CostModel],
) -> ImgSizes:
    """The sizes of a study, with their costs.

    Args:
        wanted: Sizes to search.
        own, proxy: Image side of the network, and of the largest in training.
        costs, proxy_costs: Costs at these.
        smaller: Whether baselines may run at smaller sizes too.
        costs_at: Costs at a size; raises `InputError` if the network cannot have it.
        proxy_costs_at: The same for the shared weights.

    Raises:
        InputError: For a size that is not smaller than the network's own, or that it cannot have.
    """
    suggested = _suggested(own, costs) if smaller or wanted == "auto" else []
    given = suggested if wanted == "auto" else sorted(set(wanted or ()) - {own}, reverse=True)
    for size in given:
        if not LEAST <= size < own:
            raise InputError(
                f"--search-img-size must be sizes from {LEAST} to --img-size {own}, but got {size}; larger images need "
                f"--img-size {size}"
            )
    by_size, searched = {own: costs}, [own]
    for size in dict.fromkeys([*given, *suggested]):
        try:
            by_size[size] = costs_at(size)
        except InputError:
            if wanted != "auto" and size in given:
                raise
            continue  # not a size of this network
        if size in given:
            searched.append(size)
    sides = {size: proxy_side(size, own=own, proxy=proxy) for size in by_size}
    return ImgSizes(
        own=own,
        searched=tuple(searched),
        costs=by_size,
        proxy_sides=sides,
        proxy_costs={size: proxy_costs if size == own else proxy_costs_at(sides[size]) for size in by_size},
    )


def proxy_side(size: int, *, own: int, proxy: int) -> int:
    """Image side in training and scoring for an image size: the same share of `proxy` as that size is of `own`."""
    return max(LEAST, round(size * proxy / own))


def _suggested(own: int, costs: CostModel) -> list[int]:
    """Smaller sizes that fill whole patches, or strides of the last stage, halved while there are few of them.

    They are not halved below the pixels of the smallest token.
    """
    finest = max(1, round(min(min(chain.token_stride) for chain in costs.chains)))
    coarsest = own / min(min(grid) for grid in costs.layer_grids.values())  # above the stride where maps are padded
    step = finest * 2 ** max(0, math.floor(math.log2(coarsest / finest)))
    while step > finest and own / step < STEPS:
        step //= 2
    sizes = [math.floor(share * own / step + 0.5) * step for share in SHARES]
    return [size for size in dict.fromkeys(sizes) if LEAST <= size < own]
