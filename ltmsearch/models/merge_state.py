"""What a block must know of the merges before it: it travels with the tokens, as an attribute of their tensor.

Nothing about an input is kept in modules, so that one network can serve several inputs at a time. Operations other than
those of the network return tensors without the attribute; what needs it then refuses them.

Shapes: B images, G groups that share a mask, K tokens that never merge, N tokens on the full grid, P after the merges,
D channels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltmsearch.merging import MaskChange, Merge, MergeOperator
from ltmsearch.schedules.grid import Grid


@dataclass(frozen=True, kw_only=True)
class MergeState:
    """The merges before a (B·G, K + P, D) tensor of tokens."""

    grid: Grid
    """(p, q) of the tokens."""
    sizes: Tensor | None = None
    """(B, P) float32 sizes of the tokens; None: 1 each, nothing has merged."""
    undo: tuple[tuple[Tensor, Merge], ...] | None = None
    """The (B, G, N, D) tokens before each merge, and the merge; None: not kept."""
    places: Tensor | None = None
    """(B, P, 2) places of the tokens, for rotary positions: see `rotary.py`; (1, N, 2) before the first merge; None:
    the network has no such positions."""
    change: MaskChange | None = None
    """That of the last merge, see `Merge.change`."""


def state_of(x: Tensor) -> MergeState | None:
    """The state that travels with tokens; None if there is none."""
    return getattr(x, "merge_state", None)


def with_state(x: Tensor, state: MergeState | None) -> Tensor:
    """The same tokens, with a state."""
    x.merge_state = state  # type: ignore[attr-defined]
    return x


def carry_state(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Forward hook of a module that treats each token alone, such as a norm."""
    return with_state(output, state_of(args[0]))


class CarriedChange:
    """The change of the mask along the blocks of a feature map, which undo their merges: it travels with the map.

    Args:
        x: The input of a block.
        earlier: Operators of the blocks before it on the same map.

    Raises:
        ValueError: If one of them changes masks, and `x` is not the tensor that its block returned.
    """

    def __init__(self, x: Tensor, earlier: Iterable[MergeOperator]) -> None:
        if not hasattr(x, _CHANGE) and any(op.keep_ratio < 1 and op.form in op.step_forms for op in earlier):
            raise ValueError(
                "a block whose mask continues from the one before needs the very tensor that the block before "
                "returned, since the change of the mask travels with it: leave out operations between blocks, full "
                "backward hooks on blocks and reentrant checkpointing, which return other tensors, or use another form."
            )
        self.change: MaskChange | None = getattr(x, _CHANGE, None)

    def merge(self, operator: MergeOperator, *args: Any) -> Merge:
        """The operator's merge, from the change so far; `args`: those of `MergeOperator.forward`."""
        merge = operator.merge_from(self.change, *args)
        self.change = merge.change
        return merge

    def onto(self, x: Tensor) -> Tensor:
        """The output of the block, with the change."""
        setattr(x, _CHANGE, self.change)
        return x


_CHANGE = "mask_change"


def by_group(x: Tensor, groups: int) -> Tensor:
    """(B·G, …) to (B, G, …)."""
    # Not `unflatten`, whose translation to ONNX by torch's older exporter fixes the batch size.
    return x.reshape(x.shape[0] // groups, groups, *x.shape[1:])


def unmerge(x: Tensor, groups: int) -> Tensor:
    """Undo all merges of (B·G, P, D) tokens by residual unmerges: (B·G, N, D), without a state."""
    state = state_of(x)
    for before, merge in reversed(state.undo or () if state else ()):
        x = merge.unmerge(before, by_group(x, groups)).flatten(0, 1)
    return x


def unmerging(
    block: Callable[..., Tensor], grid: Grid, prefix: int, *, of_dropped: bool = False
) -> Callable[..., Tensor]:
    """A stand-in for a block or a norm: takes and returns unmerged tokens, which carry the merged ones to the next one.

    The value of each merged token stands at the places of its tokens (A · X̃), and dropped tokens have the last value
    that they had. `grid`: the full grid; `prefix`: K; `of_dropped`: whether `block` acts on dropped tokens too, as a
    norm does, which treats each token alone.
    """

    def call(x: Tensor, **options: Any) -> Tensor:
        merged = block(getattr(x, "merged", x), **options)
        state = state_of(merged)
        if state is None or not state.undo:
            return merged
        fixed, values = merged[:, :prefix], merged[:, None, prefix:]
        present = None  # (B, 1, P, 1) share of each token that is in a merged one, if some are in none
        for before, merge in reversed(state.undo):
            if merge.left_out is not None:
                before = block(before, **options) if of_dropped else before
                present = values.new_ones(values.shape[0], 1, values.shape[2], 1) if present is None else present
            values = merge.at_places(before, values)
            present = None if present is None else merge.assignment.spread(present)
        sizes = None if present is None else present[:, 0, :, 0].float()  # what is in none is not pooled either
        full = with_state(torch.cat((fixed, values[:, 0]), dim=1), MergeState(grid=grid, sizes=sizes))
        full.merged = merged  # type: ignore[attr-defined]
        return full

    return call
