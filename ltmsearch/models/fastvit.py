"""FastViT (https://arxiv.org/abs/2303.14189): merges inside windows between token mixer and MLP, undone after the MLP.

The MLP, two projections behind a depthwise convolution, runs on the map that the merged windows are put together to.
Windows have 8×8 tokens at most: a mask over the large maps of the first stages would cost many times what it saves.
Tokens are mixed by convolutions, in the last stages of some networks by attention.

Shapes: B images, W windows per image, N tokens per window, P merged tokens per window, C channels of a key, D channels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from timm.models.fastvit import Attention, AttentionBlock, ConvMlp, RepMixerBlock
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import BATCHNORM_MACS, NORM_MACS, BlockAdapter, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.windows import (
    WindowsShape,
    change_in_windows,
    count_windows,
    even_window,
    from_windows,
    in_windows,
)
from ltmsearch.schedules.grid import Grid, tokens

WINDOW: Grid = (8, 8)
"""Largest window that merges."""


class MergingMlp:
    """Stand-in for a block's MLP, which merges the tokens of its input for the call."""

    def __init__(
        self,
        block: Any,
        operator: MergeOperator,
        carried: CarriedChange,
        window: Grid,
        target: Grid,
        keys: list[Tensor],
        heads: int,
    ) -> None:
        self.mlp, self.operator, self.carried = cast(ConvMlp, block.mlp), operator, carried
        self.window, self.target, self.keys, self.heads = window, target, keys, heads

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        size = grid_of(*x.shape[2:])
        keys = None
        if self.operator.needs_keys:
            keys = self.keys[0].reshape(x.shape[0], *size, -1) if self.keys else x.permute(0, 2, 3, 1)
            keys = in_windows(keys, self.window)
        change = partial(self._on_merged, size=_merged_size(size, self.window, self.target))
        x = x.permute(0, 2, 3, 1)
        changed = change_in_windows(self.operator, self.carried, x, self.window, self.target, keys, self.heads, change)
        return changed.permute(0, 3, 1, 2)

    def _on_merged(self, merged: Tensor, size: Grid) -> Tensor:
        """(B, W·P, D) to the same; `size`: rows and columns of the map of all merged windows."""
        together = from_windows(merged, self.target, size).permute(0, 3, 1, 2)
        return in_windows(self.mlp(together).permute(0, 2, 3, 1), self.target).reshape(merged.shape)


def _merged_size(size: Grid, window: Grid, target: Grid) -> Grid:
    rows, columns = (math.ceil(n / side) * p for n, side, p in zip(size, window, target, strict=True))
    return rows, columns


class MergingRepMixerBlock(MergingLayer, RepMixerBlock):
    """timm's block with convolutions, with an optional merge inside windows before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        window = even_window(grid_of(*x.shape[2:]), WINDOW)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        # The tokens themselves replace attention keys.
        mlp = MergingMlp(self, operator, carried, window, target, [], heads=1)
        return carried.onto(RepMixerBlock.forward(cast(RepMixerBlock, Rewired(self, mlp=mlp)), x))


class KeyedFastVitAttention(Attention):
    """timm's attention that can hand out its keys."""

    def forward(self, x: Tensor, *, keys: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B, N, H·C) keys of all heads to `keys`, if given."""
        if keys is None:
            return super().forward(x)
        qkv: list[Tensor] = []
        out = Attention.forward(cast(Attention, Rewired(self, qkv=recorded(self.qkv, qkv))), x)
        keys.append(qkv[0].reshape(*qkv[0].shape[:2], 3, -1)[:, :, 1])
        return out


class MergingAttentionBlock(MergingLayer, AttentionBlock):
    """timm's block with attention, with an optional merge inside windows before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        window = even_window(grid_of(*x.shape[2:]), WINDOW)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        keys: list[Tensor] = []
        heads = self.token_mixer.num_heads
        children: dict[str, Any] = {"mlp": MergingMlp(self, operator, carried, window, target, keys, heads)}
        if operator.needs_keys:
            children["token_mixer"] = partial(self.token_mixer, keys=keys)
        return carried.onto(AttentionBlock.forward(cast(AttentionBlock, Rewired(self, **children)), x))


@dataclass(frozen=True, kw_only=True)
class FastVitShape(WindowsShape):
    """A token mixer, and an MLP behind a depthwise convolution, on the feature map or on merged tokens."""

    mixing: int
    """Multiply-adds of convolutions, norms and projections before the MLP, per token."""
    attention: bool
    hidden: int
    kernel: int
    """Side of the depthwise convolution."""

    def macs_before(self, grid: Grid) -> int:
        """Token mixer, with the products QKᵀ and AV of attention."""
        n = tokens(self.size)
        return n * self.mixing + self.attention * 2 * n * n * self.dim

    def macs_after(self, grid: Grid) -> int:
        """Depthwise convolution, batch norm, and two projections."""
        n = self.tokens_after(grid)
        return n * self.dim * (self.kernel**2 + BATCHNORM_MACS + 2 * self.hidden)


def _macs_per_token(modules: Iterable[nn.Module]) -> int:
    """Multiply-adds of convolutions of stride 1, linear layers and norms, in evaluation mode."""
    total = 0
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            total += BATCHNORM_MACS * module.num_features
        elif isinstance(module, nn.LayerNorm):
            total += NORM_MACS * module.normalized_shape[0]
    return total


class ContiguousStem(nn.Sequential):
    """timm's stem with weights and images in contiguous memory, also where the others are channels last.

    Channels last, the gradients of its depthwise convolutions write outside of their memory on a CPU and end the
    process (torch 2.14, with and without oneDNN).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())

    def _apply(self, fn: Any, recurse: bool = True) -> "ContiguousStem":
        """Called by `to`, which may change the memory format."""
        super()._apply(fn, recurse)
        for parameter in self.parameters():
            # Not `contiguous()`: a weight with one input channel counts as contiguous in both formats.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        return self


@register_family
class FastViT(BlockAdapter):
    """FastViT (Vasu et al., 2023, https://arxiv.org/abs/2303.14189), also as the image tower of MobileCLIP."""

    family = "fastvit"
    learning = Learning(lr=5e-4, grows=False, patience=2)
    blocks: ClassVar = {RepMixerBlock: MergingRepMixerBlock, AttentionBlock: MergingAttentionBlock}

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        for operator in operators.values():
            operator.needs_grid = True  # the following convolution would smear a hole
        super().attach(model, operators)
        stem = cast(nn.Module, model.stem)
        stem.__class__ = ContiguousStem
        stem.to()  # weights as they are, but contiguous

    def cast(self, block: RepMixerBlock | AttentionBlock) -> None:
        super().cast(block)
        if isinstance(block, AttentionBlock):
            block.token_mixer.__class__ = KeyedFastVitAttention

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(Any, model.get_submodule(layer)).mlp.fc1.in_channels

    def shape(self, name: str, block: Any, input_shape: tuple[int, ...]) -> tuple[Grid, FastVitShape]:
        """See `BlockAdapter.shape`; the input is (B, D, h, w)."""
        size, mlp = (input_shape[2], input_shape[3]), block.mlp
        window = even_window(size, WINDOW)
        attention = isinstance(block, AttentionBlock)
        mixers = [*block.token_mixer.modules(), *(block.norm.modules() if attention else ())]
        shape = FastVitShape(
            name=name,
            dim=mlp.fc1.in_channels,
            heads=block.token_mixer.num_heads if attention else 1,
            key_dim=block.token_mixer.head_dim if attention else mlp.fc1.in_channels,
            windows=count_windows(size, window),
            needs_grid=True,
            size=size,
            window=window,
            mixing=_macs_per_token(mixers),
            attention=attention,
            hidden=mlp.fc1.out_channels,
            kernel=mlp.conv.conv.kernel_size[0],
        )
        return window, shape
