"""Swin V2 (https://arxiv.org/abs/2111.09883): merges inside each window before the MLP, undone after the block.

Its blocks normalise the output of attention and MLP instead of their input, and compare queries and keys by cosine.
Windows that merge are those of the block's attention, but never shifted, and smaller where that saves padding: see
`windows.py`.

Shapes: B images, W windows per image, N tokens per window, C channels per head, D channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

from timm.models.swin_transformer_v2 import SwinTransformerV2Block, WindowAttention
from torch import Tensor, nn
from torch.nn.functional import normalize

from ltmsearch.config.defaults import Learning
from ltmsearch.models.adapter import NORM_MACS, BlockAdapter, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.windows import WindowsShape, change_in_windows, count_windows, even_window, from_shifted_windows
from ltmsearch.schedules.grid import Grid, tokens


class KeyedWindowV2Attention(WindowAttention):
    """timm's attention that can hand out its keys."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, 3·heads·C) projections to `qkv`, if given."""
        if qkv is None:
            return super().forward(x, mask)
        # Only with separate biases timm calls the module `qkv`; keys have no bias.
        module = Rewired(self, qkv_bias_separate=True, qkv=recorded(self.qkv, qkv))
        return WindowAttention.forward(cast(WindowAttention, module), x, mask)


class MergingSwinV2Block(MergingLayer, SwinTransformerV2Block):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, D) to the same."""
        size = grid_of(*x.shape[1:3])
        window = even_window(size, self.window_size)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        qkv: list[Tensor] = []
        module = Rewired(self, attn=partial(self.attn, qkv=qkv)) if operator.needs_keys else self
        attended = SwinTransformerV2Block._attn(cast(SwinTransformerV2Block, module), x)
        x = x + self.drop_path1(self.norm1(attended))
        keys = self._keys(qkv[0], size) if qkv else None
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

    def _keys(self, qkv: Tensor, size: Grid) -> Tensor:
        """Projections of shifted windows, (B·W, N, 3·H·C), to the keys of all heads, (B, rows, columns, H·C).

        The keys of each head have length one, as attention compares them.
        """
        keys = qkv.reshape(*qkv.shape[:2], 3, self.attn.num_heads, -1)[:, :, 1]
        keys = normalize(keys, dim=-1).flatten(2)
        return from_shifted_windows(keys, self.window_size, self.shift_size, size)


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
        size, attention_window = (input_shape[1], input_shape[2]), (block.window_size[0], block.window_size[1])
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
