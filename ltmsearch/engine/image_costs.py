"""Costs of a network that merges by threshold, measured on images on one device."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn

from ltmsearch.costs import CostModel, ImageCosts, image_costs
from ltmsearch.engine.runtime import Runtime
from ltmsearch.merging import get_operator
from ltmsearch.models import count_tokens
from ltmsearch.schedules.grid import tokens
from ltmsearch.schedules.schedule import MergeSchedule

COST_IMAGES = 64
"""Training images on which a cost is measured. Their mean is off by an eighth of the spread of single images."""
COST_BATCH = 32
"""Images per forward pass."""


def depends_on_images(schedule: MergeSchedule) -> bool:
    """Whether the cost of a schedule depends on the image."""
    return bool(schedule.merging_layers) and get_operator(schedule.operator).adaptive


def whole_tokens(costs: CostModel) -> int:
    """Tokens before the first layer, without those that never merge, where merges accumulate through all layers."""
    return tokens(next(iter(costs.layer_grids.values())))


def measure_costs(
    backbone: str,
    model: nn.Module,
    costs: CostModel,
    schedule: MergeSchedule,
    batches: Iterable[Tensor],
    runtime: Runtime,
) -> ImageCosts:
    """The costs of images in (B, channels, rows, columns) batches, by a network in evaluation mode.

    Args:
        model: The network on its device, with the schedule.
        costs: The network's costs at this size of images.
    """
    whole = whole_tokens(costs)
    if not schedule.merging_layers:
        return image_costs(costs, schedule, np.full((sum(map(len, batches)), len(costs.layers)), whole))
    with runtime.autocast():
        counts = count_tokens(backbone, model, (runtime.images(batch) for batch in batches))
    return image_costs(costs, schedule, counts.kept(whole))
