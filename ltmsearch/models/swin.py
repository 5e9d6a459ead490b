"""Swin (https://arxiv.org/abs/2103.14030): merges inside each window between attention and MLP, undone after the block.

The windows are those of the block's attention, but never shifted: a shifted window that wraps around joins tokens from
opposite sides of the image, which attention can mask and a merge cannot. The feature map is padded to whole windows as
in timm, and padding has next to no weight in a merge.

Shapes: B images, W windows per image, N tokens per window, P merged tokens per window, D channels.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.config.names import BACKBONES
from ltmsearch.models.adapter import (
    NORM_MACS,
    BlockAdapter,
    LayerShape,
    MergingLayer,
    idle_operator,
    merge_target,
    register_family,
)
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.schedules.grid import Grid, tokens

PADDING_SIZE = 1e-4
"""Size of a padding token; a token of the image has size 1."""


class KeyedWindowAttention(WindowAttention):
    """timm's attention that can hand out its keys."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, 3·heads·C) projections to `qkv`, if given."""
        module = self if qkv is None else Rewired(self, qkv=recorded(self.qkv, qkv))
        return WindowAttention.forward(cast(WindowAttention, module), x, mask)


class MergingSwinBlock(MergingLayer, SwinTransformerBlock):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, height, width, D) to the same."""
        window: Grid = self.window_size
        operator, target = merge_target(self, window)
        if operator is None:
            return super().forward(idle_operator(self, x))
        batch, rows, columns, dim = x.shape
        qkv: list[Tensor] = []
        module = Rewired(self, attn=partial(self.attn, qkv=qkv)) if operator.needs_keys else self
        x = x + self.drop_path1(SwinTransformerBlock._attn(cast(SwinTransformerBlock, module), self.norm1(x)))
        keys = self._in_windows(self._unshifted_keys(qkv[0], rows, columns)) if qkv else None
        before = self._in_windows(x)[:, None]  # (B·W, 1, N, D)
        merge = operator(before, self._sizes(x), window, target, keys)
        merged = merge.tokens.reshape(batch, -1, dim)  # (B, W·P, D): drop path works by image
        change = self.drop_path2(self.mlp(self.norm2(merged)))
        after = merge.unmerge_change(before, change.view(merge.tokens.shape)).view(-1, *window, dim)
        padded = self._padded(rows, columns)
        after = window_reverse(after, window, *padded)
        return after if padded == (rows, columns) else after[:, :rows, :columns].contiguous()

    def _padded(self, rows: int, columns: int) -> Grid:
        """Size of the feature map, padded to whole windows."""
        height, width = self.window_size
        return math.ceil(rows / height) * height, math.ceil(columns / width) * width

    def _in_windows(self, x: Tensor) -> Tensor:
        """(B, height, width, C) to (B·W, N, C), padded with zeros."""
        rows, columns = self._padded(*x.shape[1:3])
        if (rows, columns) != x.shape[1:3]:  # padding by zero would copy
            x = nn.functional.pad(x, (0, 0, 0, columns - x.shape[2], 0, rows - x.shape[1]))
        return window_partition(x, self.window_size).flatten(1, 2)

    def _sizes(self, x: Tensor) -> Tensor:
        """(B·W, N) float32: 1 for tokens of the image, `PADDING_SIZE` for padding."""
        batch, rows, columns, _ = x.shape
        if self._padded(rows, columns) == (rows, columns):
            n = tokens(self.window_size)
            return x.new_ones(batch * rows * columns // n, n, dtype=torch.float32)
        inside = self._in_windows(x.new_ones(1, rows, columns, 1, dtype=torch.float32)).squeeze(-1)
        return inside.clamp_min(PADDING_SIZE).repeat(batch, 1)

    def _unshifted_keys(self, qkv: Tensor, rows: int, columns: int) -> Tensor:
        """Projections of shifted windows, (B·W, N, 3·heads·C), to the mean key of the heads, (B, height, width, C)."""
        keys = qkv.unflatten(-1, (3, self.attn.num_heads, -1))[:, :, 1].mean(dim=2)
        keys = keys.reshape(-1, *self.window_size, keys.shape[-1])
        keys = window_reverse(keys, self.window_size, *self._padded(rows, columns))[:, :rows, :columns]
        return torch.roll(keys, shifts=tuple(self.shift_size), dims=(1, 2)) if any(self.shift_size) else keys


@dataclass(frozen=True, kw_only=True)
class SwinShape(LayerShape):
    """A block with attention inside windows. The MLP runs on the feature map, or on merged tokens."""

    size: Grid
    """(rows, columns) of the feature map."""
    window: Grid
    attn_dim: int
    """Channels of queries, keys and values."""
    hidden: int

    def image_grid(self, grid: Grid) -> Grid:
        return self.size

    def macs_before(self, grid: Grid) -> int:
        """Norm of the feature map; projections and the products QKᵀ and AV of all windows, padding included."""
        n = tokens(self.window)
        attention = n * 4 * self.dim * self.attn_dim + 2 * n * n * self.attn_dim
        return NORM_MACS * tokens(self.size) * self.dim + self.windows * attention

    def macs_after(self, grid: Grid) -> int:
        """Norm and the two projections of the MLP."""
        n = tokens(self.size) if grid == self.window else self.windows * tokens(grid)
        return NORM_MACS * n * self.dim + 2 * n * self.dim * self.hidden


@register_family
class Swin(BlockAdapter):
    """Swin transformers (Liu et al., 2021, https://arxiv.org/abs/2103.14030)."""

    family = "swin"
    backbones = BACKBONES[family]
    unsupported: ClassVar = {
        "swinv2_*": "Swin v2 normalises after attention and MLP; use swin_tiny_patch4_window7_224 or its siblings"
    }
    fixed_size = True
    # timm has no argument that pads images to whole patches, but accepts a layer that does.
    any_size_kwargs: ClassVar = {"strict_img_size": False, "embed_layer": partial(PatchEmbed, dynamic_img_pad=True)}
    learning = Learning(lr=5e-4, grows=False, patience=2)
    block = SwinTransformerBlock
    merging_block = MergingSwinBlock

    def cast(self, block: SwinTransformerBlock) -> None:
        super().cast(block)
        block.attn.__class__ = KeyedWindowAttention

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(SwinTransformerBlock, model.get_submodule(layer)).dim

    def shape(self, name: str, block: SwinTransformerBlock, input_shape: tuple[int, ...]) -> tuple[Grid, SwinShape]:
        """See `BlockAdapter.shape`; the input is (B, height, width, D)."""
        size, window = (input_shape[1], input_shape[2]), (block.window_size[0], block.window_size[1])
        attn_dim = block.attn.qkv.out_features // 3
        shape = SwinShape(
            name=name,
            dim=block.dim,
            key_dim=attn_dim // block.attn.num_heads,
            windows=math.prod(math.ceil(length / side) for length, side in zip(size, window, strict=True)),
            size=size,
            window=window,
            attn_dim=attn_dim,
            hidden=block.mlp.fc1.out_features,
        )
        return window, shape
