"""A layer with a merging operator: how it is attached, and what it merges to."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltmsearch.merging import MergeOperator
from ltmsearch.schedules.grid import Grid, tokens
from ltmsearch.schedules.schedule import Form

MERGING = "merging"
"""Name of a layer's child module that merges: `<layer>.merging`."""


class MergingLayer:
    """Mixin of timm's modules that were cast to merge."""

    earlier: tuple[MergeOperator, ...] = ()
    """Of a block that undoes its merge: the operators of the blocks before it on the same feature map."""

    def __prepare_scriptable__(self) -> None:  # called by torch.jit.script
        raise TypeError(
            "a network that merges tokens cannot be scripted: use torch.jit.trace, torch.export or `ltmsearch export`."
        )


def attach_operator(layer: nn.Module, operator: MergeOperator) -> None:
    """Make an operator the `merging` child of a layer, and notify it when backbone weights are loaded."""
    layer.add_module(MERGING, operator)
    layer.register_load_state_dict_pre_hook(_notify_of_weights)


def _notify_of_weights(layer: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
    has_weights = any(name.startswith(prefix) and name.endswith(".weight") for name in state_dict)
    if has_weights and not any(name.startswith(f"{prefix}{MERGING}.") for name in state_dict):
        cast(MergeOperator, layer.get_submodule(MERGING)).on_backbone_weights_loaded()


def merge_target(layer: nn.Module, grid: Grid) -> tuple[MergeOperator | None, Grid]:
    """A layer's operator and the grid that it merges to; (None, `grid`) while the layer does not merge."""
    operator: MergeOperator | None = getattr(layer, MERGING, None)
    if operator is None or operator.keep_ratio == 1:
        return None, grid
    if operator.adaptive:  # only the merge itself will tell
        return (operator, grid) if tokens(grid) > 1 else (None, grid)
    # Through text, a constant for `torch.compile`, to which a float attribute that has changed is a variable.
    target = _constant_target(type(operator), grid, f"{operator.keep_ratio}", operator.form, operator.needs_grid)
    return (None, grid) if target == grid else (operator, target)


@torch.compiler.assume_constant_result  # `torch.compile` need not trace the search for a grid
def _constant_target(operator: type[MergeOperator], grid: Grid, ratio: str, form: Form, needs_grid: bool) -> Grid:
    return operator.target(grid, float(ratio), form, needs_grid=needs_grid)


def idle_operator(layer: nn.Module, x: Tensor) -> Tensor:
    """`x`, for a layer that does not merge at this image size; in training its operator takes part with zero.

    Distributed training requires a gradient of every weight, if only of zero.
    """
    operator: MergeOperator | None = getattr(layer, MERGING, None)
    if operator is None or operator.keep_ratio == 1 or not (operator.training and torch.is_grad_enabled()):
        return x
    return operator.with_all_weights(x)


def attached_operators(model: nn.Module, layers: Sequence[str]) -> dict[str, MergeOperator]:
    """The operators attached to a model, by layer."""
    found = {layer: getattr(model.get_submodule(layer), MERGING, None) for layer in layers}
    return {layer: operator for layer, operator in found.items() if isinstance(operator, MergeOperator)}
