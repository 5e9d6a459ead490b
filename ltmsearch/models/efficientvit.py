"""EfficientViT (https://arxiv.org/abs/2205.14756): merges between context and local module, undone after the block.

The local module, an inverted bottleneck with a depthwise convolution, runs on the smaller grid.

Shapes: B images, N tokens on an h×w grid, P on a p×q grid, D channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from timm.models.efficientvit_mit import EfficientVitBlock, LiteMLA, ResidualBlock
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import BATCHNORM_MACS, BlockAdapter, LayerShape, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.schedules.grid import Grid, tokens


class KeyedLinearAttention(LiteMLA):
    """timm's attention that can hand out its keys."""

    def forward(self, x: Tensor, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B, heads·3·C, h, w) projections of the first scale to `qkv`, if given."""
        module = self if qkv is None else Rewired(self, qkv=recorded(self.qkv, qkv))
        return LiteMLA.forward(cast(LiteMLA, module), x)


class KeyedContextModule(ResidualBlock):
    """timm's residual block around its attention, which can hand out the keys."""

    def forward(self, x: Tensor, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See `KeyedLinearAttention`."""
        module = self if qkv is None else Rewired(self, main=partial(self.main, qkv=qkv))
        return ResidualBlock.forward(cast(ResidualBlock, module), x)


class MergingEfficientVitBlock(MergingLayer, EfficientVitBlock):
    """timm's block, with an optional merge before the local module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same."""
        grid = grid_of(*x.shape[2:])
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, grid)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        qkv: list[Tensor] = []
        x = self.context_module(x, qkv=qkv) if operator.needs_keys else self.context_module(x)
        before = _to_tokens(x)
        sizes = x.new_ones(x.shape[0], tokens(grid), dtype=torch.float32)
        merge = carried.merge(operator, before, sizes, grid, target, self._keys(qkv[0]) if qkv else None)
        # Without the local module's own shortcut, which the residual unmerge would subtract again.
        change = _to_tokens(self.local_module.main(_to_map(merge.tokens, target)))
        return carried.onto(_to_map(merge.unmerge_change(before, change), grid))

    def _keys(self, qkv: Tensor) -> Tensor:
        """Projections of the first scale, (B, H·3·C, h, w), to the keys of all heads, (B, N, H, C)."""
        attention = cast(LiteMLA, self.context_module.main)
        by_head = qkv.reshape(qkv.shape[0], -1, 3, attention.dim, qkv.shape[2] * qkv.shape[3])
        return attention.kernel_func(by_head[:, :, 1]).permute(0, 3, 1, 2)


def _heads(block: EfficientVitBlock) -> int:
    attention = block.context_module.main
    return int(attention.qkv.conv.out_channels) // (3 * int(attention.dim))


def _to_tokens(x: Tensor) -> Tensor:
    """(B, D, h, w) to (B, 1, N, D), in memory like a channels-last feature map."""
    batch, dim, rows, columns = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, 1, rows * columns, dim)


def _to_map(x: Tensor, grid: Grid) -> Tensor:
    """(B, 1, N, D) to (B, D, h, w)."""
    return x.view(x.shape[0], *grid, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class BottleneckShape(LayerShape):
    """Linear attention at several scales, followed by an inverted bottleneck."""

    total_dim: int
    """Channels of the queries of all heads at one scale."""
    scales: tuple[int, ...]
    """Kernel sizes of the additional scales of attention."""
    hidden: int
    kernel: int
    """Side of the depthwise convolution."""

    def macs_before(self, grid: Grid) -> int:
        """Projections, additional scales, the products KᵀV and Q(KᵀV) with a column of ones beside V, batch norm."""
        n, head, width = tokens(grid), self.key_dim, self.total_dim * (1 + len(self.scales))
        qkv = 3 * self.total_dim
        scales = sum(qkv * scale * scale + qkv * head for scale in self.scales)
        return n * (self.dim * qkv + scales + 2 * width * (head + 1) + width * self.dim + BATCHNORM_MACS * self.dim)

    def macs_after(self, grid: Grid) -> int:
        """Two pointwise convolutions around a depthwise one, batch norm."""
        per_token = 2 * self.dim * self.hidden + self.hidden * self.kernel**2 + BATCHNORM_MACS * self.dim
        return tokens(grid) * per_token


@register_family
class EfficientViT(BlockAdapter):
    """EfficientViT with linear attention (Cai et al., 2023, https://arxiv.org/abs/2205.14756)."""

    family = "efficientvit"
    learning = Learning(lr=5e-4, grows=False, patience=2)
    blocks: ClassVar = {EfficientVitBlock: MergingEfficientVitBlock}

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        for operator in operators.values():
            operator.needs_grid = True  # the following convolution would smear a hole
        super().attach(model, operators)

    def cast(self, block: EfficientVitBlock) -> None:
        super().cast(block)
        block.context_module.__class__ = KeyedContextModule
        block.context_module.main.__class__ = KeyedLinearAttention

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(nn.Conv2d, model.get_submodule(f"{layer}.local_module.main.inverted_conv.conv")).in_channels

    def shape(self, name: str, block: EfficientVitBlock, input_shape: tuple[int, ...]) -> tuple[Grid, BottleneckShape]:
        """See `BlockAdapter.shape`; the input is (B, D, h, w)."""
        attention, local = block.context_module.main, block.local_module.main
        shape = BottleneckShape(
            name=name,
            dim=local.inverted_conv.conv.in_channels,
            heads=_heads(block),
            key_dim=attention.dim,
            needs_grid=True,
            total_dim=attention.qkv.conv.out_channels // 3,
            scales=tuple(branch[0].kernel_size[0] for branch in attention.aggreg),
            hidden=local.inverted_conv.conv.out_channels,
            kernel=local.depth_conv.conv.kernel_size[0],
        )
        return (input_shape[2], input_shape[3]), shape
