"""Swin V2 (https://arxiv.org/abs/2111.09883): merges inside each window before the MLP, undone after the block.

Its blocks normalise the output of attention and MLP instead of their input, and compare queries and keys by cosine.
Windows that merge are those of the block's attention, but never shifted, and smaller where that saves padding: see
`windows.py`.

Shapes: B images, W windows per image, N tokens per window, C channels per head, D channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

from timm.models.swin_transformer_v2 import SwinTransformerV2Block, WindowAttention
from torch import Tensor, nn
from torch.nn.functional import normalize

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
    even_window,
    fitted_windows,
    to_merging_windows,
    with_windows,
)
from ltmsearch.schedules.grid import Grid, tokens


class KeyedWindowV2Attention(WindowAttention):
    """timm's attention that can hand out its keys, and run in smaller windows."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, 3·heads·C) projections to `qkv`, if given."""
        module = self
        if qkv is not None:
            # Only with separate biases timm calls the module `qkv`; keys have no bias.
            module = cast(KeyedWindowV2Attention, Rewired(self, qkv_bias_separate=True, qkv=recorded(self.qkv, qkv)))
        return WindowAttention.forward(module, x, mask)

    def in_windows(self, window: Grid, qkv: list[Tensor] | None) -> Callable[..., Tensor]:
        """`forward` in windows of another size, whose position biases are computed for their coordinates."""
        if window == self.window_size:
            return partial(self.forward, qkv=qkv)
        module: Any = Rewired(self, window_size=window)
        module.relative_coords_table, module.relative_position_index = (
            WindowAttention._make_pair_wise_relative_positions(
                module, device=self.proj.weight.device, dtype=self.proj.weight.dtype
            )
        )
        return partial(KeyedWindowV2Attention.forward, module, qkv=qkv)


class MergingSwinV2Block(FittingWindows, MergingLayer, SwinTransformerV2Block):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, D) to the same."""
        size = grid_of(*x.shape[1:3])
        attention_window, shift = fitted_windows(self, size)
        window = even_window(size, attention_window)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        needs_keys = operator is not None and operator.needs_keys
        qkv: list[Tensor] | None = [] if needs_keys else None
        module: Any = self
        if needs_keys or (attention_window, shift) != (self.window_size, self.shift_size):
            module = with_windows(self, attention_window, shift, self.attn.in_windows(attention_window, qkv))
        if operator is None:
            return carried.onto(SwinTransformerV2Block.forward(module, idle_operator(self, x)))
        x = x + self.drop_path1(self.norm1(module._attn(x)))
        keys = None if qkv is None else self._keys(qkv[0], attention_window, shift, size, window)
        change = change_in_windows(
            operator,
            carried,
            x,
            window,
            target,
            keys,
            self.num_heads,
            lambda merged: self.drop_path2(self.norm2(self.mlp(merged))),
        )
        return carried.onto(x + change)

    def _keys(self, qkv: Tensor, window: Grid, shift: Grid, size: Grid, merging: Grid) -> Tensor:
        """Projections of shifted windows, (B·W, N, 3·H·C), to the keys of all heads in the windows that merge.

        The keys of each head have length one, as attention compares them.
        """
        keys = qkv.reshape(*qkv.shape[:2], 3, self.attn.num_heads, -1)[:, :, 1]
        keys = normalize(keys, dim=-1).flatten(2)
        return to_merging_windows(keys, window, shift, size, merging)


@dataclass(frozen=True, kw_only=True)
class SwinV2Shape(WindowsShape):
    """A block with attention inside windows. The MLP runs on the feature map, or on merged tokens."""

    attention_window: Grid
    bias_hidden: int
    """Hidden width of the MLP that computes position biases."""
    hidden: int

    def macs_before(self, grid: Grid) -> int:
        """Position biases; projections and the products QKᵀ and AV of all windows, padding included; norm."""
        n, (height, width) = tokens(self.attention_window), self.attention_window
        biases = (2 * height - 1) * (2 * width - 1) * self.bias_hidden * (2 + self.heads)
        attention = count_windows(self.size, self.attention_window) * (4 * n * self.dim**2 + 2 * n * n * self.dim)
        return biases + attention + NORM_MACS * tokens(self.size) * self.dim

    def macs_after(self, grid: Grid) -> int:
        """The two projections of the MLP, and norm."""
        n = self.tokens_after(grid)
        return 2 * n * self.dim * self.hidden + NORM_MACS * n * self.dim


@register_family
class SwinV2(BlockAdapter):
    """Swin transformers V2 (Liu et al., 2022, https://arxiv.org/abs/2111.09883)."""

    family = "swinv2"
    best_forms: ClassVar = {"ltm": "matched"}
    fixed_size = True
    any_size_kwargs: ClassVar = {"strict_img_size": False}
    learning = Learning(lr=5e-4, grows=False, patience=2)
    blocks: ClassVar = {SwinTransformerV2Block: MergingSwinV2Block}

    def cast(self, block: SwinTransformerV2Block) -> None:
        super().cast(block)
        block.attn.__class__ = KeyedWindowV2Attention

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(SwinTransformerV2Block, model.get_submodule(layer)).dim

    def shape(self, name: str, block: SwinTransformerV2Block, input_shape: tuple[int, ...]) -> tuple[Grid, SwinV2Shape]:
        """See `BlockAdapter.shape`; the input is (B, rows, columns, D)."""
        size = (input_shape[1], input_shape[2])
        attention_window, _ = fitted_windows(block, size)
        window = even_window(size, attention_window)
        shape = SwinV2Shape(
            name=name,
            dim=block.dim,
            heads=block.num_heads,
            key_dim=block.dim // block.num_heads,
            windows=count_windows(size, window),
            size=size,
            window=window,
            attention_window=attention_window,
            bias_hidden=block.attn.cpb_mlp[0].out_features,
            hidden=block.mlp.fc1.out_features,
        )
        return window, shape
