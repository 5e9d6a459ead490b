"""Optimizers in which the weights of merging operators have parameter groups and learning rates of their own."""

import math
from collections.abc import Iterable
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ltmsearch.merging import MergeOperator

MASK_LR_SCALE = 10.0
"""Learning rate of the operators' weights, relative to that of the backbone: they start far from their place, and the
backbone near it."""
MASKS = "masks"
"""Key of a parameter group: whether it has weights of operators."""
LR_SCALE = "lr_scale"
"""Key of a parameter group: factor by which timm's schedules multiply its learning rate."""


def make_optimizer(
    model: nn.Module, opt: str, *, lr: float, weight_decay: float, layer_decay: float | None = None, **options: Any
) -> Optimizer:
    """timm's optimizer, with groups of their own for the weights of operators, at `MASK_LR_SCALE` times the rate.

    Biases, norms and parameters that `model.no_weight_decay` exempts are not decayed.

    Args:
        model: Network or supernet.
        opt: timm name of the optimizer.
        lr: Learning rate of the backbone.
        weight_decay: Of the weights that decay.
        layer_decay: Factor of the learning rate from each group of layers to the one before it; None: no decay.
        options: Passed to `timm.optim.create_optimizer_v2`.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups: list[dict[str, Any]]
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    split = [part for group in groups for part in _split(group, _mask_parameters(model))]
    return create_optimizer_v2(split, opt=opt, lr=lr, **options)


def _mask_parameters(model: nn.Module) -> set[int]:
    operators = (module for module in model.modules() if isinstance(module, MergeOperator))
    return {id(parameter) for operator in operators for parameter in operator.parameters()}


def _split(group: dict[str, Any], masks: set[int]) -> Iterable[dict[str, Any]]:
    """A group's weights of the backbone and of operators, without empty ones."""
    for of_masks in (False, True):
        params = [parameter for parameter in group["params"] if (id(parameter) in masks) == of_masks]
        scale = group.get(LR_SCALE, 1.0) * (MASK_LR_SCALE if of_masks else 1.0)
        if params:
            yield {**group, "params": params, MASKS: of_masks, LR_SCALE: scale}


def set_rates(optimizer: Optimizer, *, backbone: float, masks: float) -> None:
    """Set the learning rates of a step; `masks` is the rate of the backbone that theirs is a multiple of."""
    for group in optimizer.param_groups:
        group["lr"] = group[LR_SCALE] * (masks if group[MASKS] else backbone)


def backbone_rate(optimizer: Optimizer) -> float:
    """Largest learning rate of a group of the backbone."""
    return max(group["lr"] for group in optimizer.param_groups if not group[MASKS])


def cosine_rate(step: int, steps: int, *, peak: float, floor: float, ramp: int) -> float:
    """Learning rate of a step: from `floor` to `peak` in `ramp` steps, then along a cosine to `floor` after `steps`."""
    if step < ramp:
        return floor + (peak - floor) * step / ramp
    return floor + (peak - floor) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
