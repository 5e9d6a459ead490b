"""Swin (https://arxiv.org/abs/2103.14030): merges inside each window between attention and MLP, undone after the block.

The windows are those of the block's attention, but never shifted: see `windows.py`.

Shapes: B images, W windows per image, N tokens per window, C channels per head, D channels.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, cast

import torch
from timm.layers import PatchEmbed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention, get_relative_position_index
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.models.adapter import NORM_MACS, BlockAdapter, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.windows import (
    FittingWindows,
    WindowsShape,
    change_in_windows,
    count_windows,
    fitted_windows,
    to_merging_windows,
    with_windows,
)
from ltmsearch.schedules.grid import Grid, tokens


class KeyedWindowAttention(WindowAttention):
    """timm's attention that can hand out its keys, and run in smaller windows."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, 3·heads·C) projections to `qkv`, if given."""
        module = self if qkv is None else Rewired(self, qkv=recorded(self.qkv, qkv))
        return WindowAttention.forward(cast(WindowAttention, module), x, mask)

    def in_windows(self, window: Grid, qkv: list[Tensor] | None) -> Callable[..., Tensor]:
        """`forward` in windows of another size, with position biases as timm resizes them when it loads weights."""
        if window == self.window_size:
            return partial(self.forward, qkv=qkv)
        table = self.relative_position_bias_table
        resize = _resizing(grid_of(*self.window_size), window).to(table.device, table.dtype)
        index = get_relative_position_index(*window, device=table.device)
        own = {"window_area": tokens(window), "relative_position_index": index}
        module: Any = Rewired(self, relative_position_bias_table=resize @ table, **own)
        module._get_rel_pos_bias = partial(WindowAttention._get_rel_pos_bias, module)
        return partial(KeyedWindowAttention.forward, module, qkv=qkv)


@cache
def _resizing(old: Grid, new: Grid) -> Tensor:
    """(positions in windows of the new size, positions in those of the old size): timm's interpolation, a matrix."""
    before, after = ((2 * rows - 1) * (2 * columns - 1) for rows, columns in (old, new))
    # Kept for training too, which cannot use tensors of inference mode; timm's interpolation warns.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings(action="ignore"):
        return resize_rel_pos_bias_table(
            torch.eye(before), new_window_size=new, new_bias_shape=(after, before), old_window_size=old
        )


class MergingSwinBlock(FittingWindows, MergingLayer, SwinTransformerBlock):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, D) to the same."""
        size = grid_of(*x.shape[1:3])
        window, shift = fitted_windows(self, size)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        needs_keys = operator is not None and operator.needs_keys
        qkv: list[Tensor] | None = [] if needs_keys else None
        module: Any = self
        if needs_keys or (window, shift) != (self.window_size, self.shift_size):
            module = with_windows(self, window, shift, self.attn.in_windows(window, qkv))
        if operator is None:
            return carried.onto(SwinTransformerBlock.forward(module, idle_operator(self, x)))
        x = x + self.drop_path1(module._attn(self.norm1(x)))
        keys = None if qkv is None else self._keys(qkv[0], window, shift, size)
        change = change_in_windows(
            operator,
            carried,
            x,
            window,
            target,
            keys,
            self.attn.num_heads,
            lambda merged: self.drop_path2(self.mlp(self.norm2(merged))),
        )
        return carried.onto(x + change)

    def _keys(self, qkv: Tensor, window: Grid, shift: Grid, size: Grid) -> Tensor:
        """Projections of shifted windows, (B·W, N, 3·H·C), to the keys of all heads in their places, (B·W, N, H·C)."""
        keys = qkv.reshape(*qkv.shape[:2], 3, -1)[:, :, 1]
        return to_merging_windows(keys, window, shift, size, window)


@dataclass(frozen=True, kw_only=True)
class SwinShape(WindowsShape):
    """A block with attention inside windows. The MLP runs on the feature map, or on merged tokens."""

    attn_dim: int
    """Channels of queries, keys and values."""
    hidden: int

    def macs_before(self, grid: Grid) -> int:
        """Norm of the feature map; projections and the products QKᵀ and AV of all windows, padding included."""
        n = tokens(self.window)
        attention = n * 4 * self.dim * self.attn_dim + 2 * n * n * self.attn_dim
        return NORM_MACS * tokens(self.size) * self.dim + self.windows * attention

    def macs_after(self, grid: Grid) -> int:
        """Norm and the two projections of the MLP."""
        n = self.tokens_after(grid)
        return NORM_MACS * n * self.dim + 2 * n * self.dim * self.hidden


@register_family
class Swin(BlockAdapter):
    """Swin transformers (Liu et al., 2021, https://arxiv.org/abs/2103.14030)."""

    family = "swin"
    best_forms: ClassVar = {"ltm": "matched"}
    fixed_size = True
    # timm has no argument that pads images to whole patches, but accepts a layer that does.
    any_size_kwargs: ClassVar = {"strict_img_size": False, "embed_layer": partial(PatchEmbed, dynamic_img_pad=True)}
    learning = Learning(lr=5e-4, grows=False, patience=2)
    blocks: ClassVar = {SwinTransformerBlock: MergingSwinBlock}

    def cast(self, block: SwinTransformerBlock) -> None:
        super().cast(block)
        block.attn.__class__ = KeyedWindowAttention

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(SwinTransformerBlock, model.get_submodule(layer)).dim

    def shape(self, name: str, block: SwinTransformerBlock, input_shape: tuple[int, ...]) -> tuple[Grid, SwinShape]:
        """See `BlockAdapter.shape`; the input is (B, rows, columns, D)."""
        size = (input_shape[1], input_shape[2])
        window, _ = fitted_windows(block, size)
        attn_dim = block.attn.qkv.out_features // 3
        shape = SwinShape(
            name=name,
            dim=block.dim,
            heads=block.attn.num_heads,
            key_dim=attn_dim // block.attn.num_heads,
            windows=count_windows(size, window),
            size=size,
            window=window,
            attn_dim=attn_dim,
            hidden=block.mlp.fc1.out_features,
        )
        return window, shape
