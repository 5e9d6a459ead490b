"""TinyViT (https://arxiv.org/abs/2207.10666): merges inside windows between local convolution and MLP, undone after it.

Windows that merge are those of the block's attention, and smaller where that saves padding: see `windows.py`. The
convolutional first stage does not merge.

Shapes: B images, W windows per image, N tokens per window, C channels of a head's keys, D channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from timm.models.tiny_vit import Attention, TinyVitBlock
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.models.adapter import BATCHNORM_MACS, NORM_MACS, BlockAdapter, grid_of, register_family
from ltmsearch.models.merge_state import CarriedChange
from ltmsearch.models.merging_layer import MergingLayer, idle_operator, merge_target
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.models.windows import WindowsShape, change_in_windows, count_windows, even_window, to_merging_windows
from ltmsearch.schedules.grid import Grid, tokens


class KeyedTinyVitAttention(Attention):
    """timm's attention that can hand out its keys, with position biases that always follow its weights."""

    def forward(self, x: Tensor, *, qkv: list[Tensor] | None = None) -> Tensor:
        """See timm; appends the (B·W, N, heads·(2·C + channels of values)) projections to `qkv`, if given."""
        module = self if qkv is None else Rewired(self, qkv=recorded(self.qkv, qkv))
        return Attention.forward(cast(Attention, module), x)

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """(heads, N, N); not kept in evaluation mode, as timm does: averaged weights change in that mode too."""
        # Five times as fast on a CPU as by a matrix of indices (5 heads, 14×14 tokens).
        biases = self.attention_biases.index_select(1, self.attention_bias_idxs.flatten())
        return biases.view(-1, *self.attention_bias_idxs.shape)


class MergingTinyVitBlock(MergingLayer, TinyVitBlock):
    """timm's block, with an optional merge inside each window before the MLP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, rows, columns, D) to the same."""
        size = grid_of(*x.shape[1:3])
        window = even_window(size, self._attention_window)
        carried = CarriedChange(x, self.earlier)
        operator, target = merge_target(self, window)
        if operator is None:
            return carried.onto(super().forward(idle_operator(self, x)))
        qkv: list[Tensor] = []

        def mlp(x: Tensor) -> Tensor:
            """(B, rows·columns, D) to the same."""
            keys = self._keys(qkv[0], size, window) if qkv else None
            x = x.reshape(-1, *size, self.dim)
            heads = self.num_heads
            return change_in_windows(operator, carried, x, window, target, keys, heads, self.mlp).flatten(1, 2)

        children: dict[str, Any] = {"attn": partial(self.attn, qkv=qkv)} if operator.needs_keys else {}
        return carried.onto(TinyVitBlock.forward(cast(TinyVitBlock, Rewired(self, mlp=mlp, **children)), x))

    @property
    def _attention_window(self) -> Grid:
        return self.window_size, self.window_size

    def _keys(self, qkv: Tensor, size: Grid, merging: Grid) -> Tensor:
        """(B·W, N, …) projections to the keys of all heads in the windows that merge."""
        by_head = qkv.reshape(*qkv.shape[:2], self.num_heads, -1)
        keys = by_head[..., self.attn.key_dim : 2 * self.attn.key_dim].flatten(2)
        return to_merging_windows(keys, self._attention_window, (0, 0), size, merging)


@dataclass(frozen=True, kw_only=True)
class TinyVitShape(WindowsShape):
    """Attention inside windows, a depthwise convolution, and an MLP on the feature map or on merged tokens."""

    attention_window: Grid
    projected: int
    """Channels of queries, keys and values."""
    value_dims: int
    """Channels of the values of all heads."""
    kernel: int
    """Side of the depthwise convolution."""
    hidden: int

    def macs_before(self, grid: Grid) -> int:
        """Norm, projections and the products QKᵀ and AV of all windows, padding included; convolution, batch norm."""
        n = tokens(self.attention_window)
        projections = n * self.dim * (NORM_MACS + self.projected + self.value_dims)
        attention = projections + n * n * (self.heads * self.key_dim + self.value_dims)
        local = tokens(self.size) * self.dim * (self.kernel**2 + BATCHNORM_MACS)
        return count_windows(self.size, self.attention_window) * attention + local

    def macs_after(self, grid: Grid) -> int:
        """Norm and the two projections of the MLP."""
        n = self.tokens_after(grid)
        return n * self.dim * (NORM_MACS + 2 * self.hidden)


@register_family
class TinyViT(BlockAdapter):
    """TinyViT (Wu et al., 2022, https://arxiv.org/abs/2207.10666)."""

    family = "tinyvit"
    best_forms: ClassVar = {"ltm": "matched"}
    learning = Learning(lr=5e-4, grows=False, patience=2)
    blocks: ClassVar = {TinyVitBlock: MergingTinyVitBlock}

    def cast(self, block: TinyVitBlock) -> None:
        super().cast(block)
        block.attn.__class__ = KeyedTinyVitAttention
        block.attn.attention_bias_cache = {}  # of passes before, with the weights of that time

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(TinyVitBlock, model.get_submodule(layer)).dim

    def shape(self, name: str, block: TinyVitBlock, input_shape: tuple[int, ...]) -> tuple[Grid, TinyVitShape]:
        """See `BlockAdapter.shape`; the input is (B, rows, columns, D)."""
        size, attention_window = (input_shape[1], input_shape[2]), (block.window_size, block.window_size)
        window = even_window(size, attention_window)
        shape = TinyVitShape(
            name=name,
            dim=block.dim,
            heads=block.num_heads,
            key_dim=block.attn.key_dim,
            windows=count_windows(size, window),
            size=size,
            window=window,
            attention_window=attention_window,
            projected=block.attn.qkv.out_features,
            value_dims=block.attn.out_dim,
            kernel=block.local_conv.conv.kernel_size[0],
            hidden=block.mlp.fc1.out_features,
        )
        return window, shape
