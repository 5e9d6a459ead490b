"""Swin (https://arxiv.org/abs/2103.14030): merges inside each window between attention and MLP, undone after the block.

The windows are those of the block's attention, but never shifted: see `windows.py`.

Shapes: B images, W windows per image, N tokens per window, C channels per head, D channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.models.adapter import NORM_MACS, BlockAdapter, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.windows import WindowsShape, change_in_windows, count_windows, from_shifted_windows
from ltmsearch.schedules.grid import Grid, tokens


class KeyedWindowAttention(WindowAttention):
    """timm's attention that can hand out its keys."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, 3·heads·C) projections to `qkv`, if given."""
        module = self if qkv is None else Rewired(self, qkv=recorded(self.qkv, qkv))
        return WindowAttention.forward(cast(WindowAttention, module), x, mask)


class MergingSwinBlock(MergingLayer, SwinTransformerBlock):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, D) to the same."""
        window: Grid = self.window_size
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        qkv: list[Tensor] = []
        module = Rewired(self, attn=partial(self.attn, qkv=qkv)) if operator.needs_keys else self
        x = x + self.drop_path1(SwinTransformerBlock._attn(cast(SwinTransformerBlock, module), self.norm1(x)))
        keys = self._keys(qkv[0], grid_of(*x.shape[1:3])) if qkv else None
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

    def _keys(self, qkv: Tensor, size: Grid) -> Tensor:
        """Projections of shifted windows, (B·W, N, 3·H·C), to the keys of all heads, (B, rows, columns, H·C)."""
        keys = qkv.reshape(*qkv.shape[:2], 3, -1)[:, :, 1]
        return from_shifted_windows(keys, self.window_size, self.shift_size, size)


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
        size, window = (input_shape[1], input_shape[2]), (block.window_size[0], block.window_size[1])
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
