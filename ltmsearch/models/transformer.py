"""timm's transformer block with an optional merge between attention and MLP, shared by ViT and MobileViT.

Merges accumulate: the next block starts from the merged tokens, and its attention weighs each by the number of input
tokens in it.

Shapes: B images, G groups that share a mask (the pixel positions of a MobileViT patch; 1 in a ViT), K tokens that never
merge (class and register tokens of a ViT), N tokens on the grid, D channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltmsearch.errors import InputError
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import MERGING, NORM_MACS, LayerShape, MergingLayer, idle_operator, merge_target
from ltmsearch.models.merge_state import MergeState, by_group, state_of, with_state
from ltmsearch.models.rewiring import Rewired, recorded
from ltmsearch.schedules.grid import Grid, tokens


class KeyedAttention(Attention):
    """timm's attention that can hand out its keys."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, *, keys: list[Tensor] | None = None
    ) -> Tensor:
        """See timm; appends the (B, heads, N, C) keys to `keys`, if given."""
        # Mostly an identity, `k_norm` is the only module that outputs them.
        module = self if keys is None else Rewired(self, k_norm=recorded(self.k_norm, keys))
        return Attention.forward(cast(Attention, module), x, attn_mask, is_causal)


class MergingBlock(MergingLayer, Block):
    """timm's block, with an optional merge of its tokens."""

    attn: KeyedAttention
    groups: int
    """G."""
    prefix: int
    """K."""
    upstream: list[MergeOperator]
    """Operators of this block and of those before it."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B·G, K + N, D) tokens to the same, or to (B·G, K + P, D).

        Raises:
            ValueError: If tokens merge here or before, and `x` comes without the state of its merges or with a mask.
        """
        state = state_of(x)
        if state is None:
            if any(operator.keep_ratio < 1 for operator in self.upstream):
                raise ValueError(
                    "a block that merges tokens needs them as the network's own layers return them, since their grid "
                    "and sizes travel with that tensor: leave out operations between blocks, patch dropout "
                    "(`patch_drop_rate`), full backward hooks on blocks and reentrant checkpointing, which return "
                    "other tensors, or build the network without merging."
                )
            return super().forward(x, attn_mask, is_causal)
        operator, target = merge_target(self, state.grid)
        if operator is None and state.sizes is None:
            x = super().forward(idle_operator(self, x), attn_mask, is_causal)
            return with_state(x, state)
        if attn_mask is not None or is_causal:
            raise ValueError(
                "`attn_mask` and `is_causal` cannot be combined with merging: merged tokens have no row or column of "
                "their own in a mask; build the network without merging to use them."
            )
        bias = None if state.sizes is None else self._size_bias(state.sizes, x.dtype)
        if operator is None:
            return with_state(super().forward(idle_operator(self, x), bias), state)
        return self._merge(operator, x, bias, state, target)

    def _merge(
        self, operator: MergeOperator, x: Tensor, bias: Tensor | None, state: MergeState, target: Grid
    ) -> Tensor:
        keys: list[Tensor] = []
        wanted = {"keys": keys} if operator.needs_keys else {}
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=bias, **wanted)))
        fixed, rest = x[:, : self.prefix], x[:, self.prefix :]
        before = by_group(rest, self.groups)
        sizes = state.sizes
        if sizes is None:
            sizes = x.new_ones(x.shape[0] // self.groups, tokens(state.grid), dtype=torch.float32)
        merge = operator(before, sizes, state.grid, target, self._mean_key(keys[0]) if keys else None)
        x = merge.tokens.flatten(0, 1)
        x = torch.cat((fixed, x), dim=1) if self.prefix else x
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        undo = None if state.undo is None else (*state.undo, (before, merge))
        return with_state(x, MergeState(grid=target, sizes=merge.sizes, undo=undo))

    def _mean_key(self, keys: Tensor) -> Tensor:
        """(B·G, heads, K + N, C) to (B, N, C)."""
        return by_group(keys[:, :, self.prefix :], self.groups).mean(dim=(1, 2))

    def _size_bias(self, sizes: Tensor, dtype: torch.dtype) -> Tensor:
        """Proportional attention (ToMe, https://arxiv.org/abs/2210.09461, equation 1): log s added to the logits.

        (B, N) to (B·G, 1, 1, K + N).
        """
        bias = sizes.log().to(dtype)
        if self.groups > 1:
            bias = bias.repeat_interleave(self.groups, dim=0)
        if self.prefix:
            bias = nn.functional.pad(bias, (self.prefix, 0))
        return bias[:, None, None, :]


def make_merging(blocks: Iterable[nn.Module], *, groups: int = 1, prefix: int = 0) -> None:
    """Turn a sequence of timm's blocks, with their operators attached, into merging blocks in place.

    They are cast: without a wrapper, parameters keep timm's names.

    Raises:
        InputError: If a block or its attention is of another class than timm's usual one.
    """
    upstream: list[MergeOperator] = []
    for block in cast(Iterable[Any], blocks):
        if type(block) is not Block or type(block.attn) is not Attention:
            got = f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
            raise InputError(
                f"blocks must be timm's Block with Attention, but got {got}: leave out block_fn, attn_layer"
            )
        block.__class__, block.attn.__class__ = MergingBlock, KeyedAttention
        upstream = [*upstream, getattr(block, MERGING)] if hasattr(block, MERGING) else upstream
        block.groups, block.prefix, block.upstream = groups, prefix, upstream


@dataclass(frozen=True, kw_only=True)
class BlockShape(LayerShape):
    """A pre-norm transformer block with attention among all tokens of a group."""

    hidden: int
    prefix: int = 0
    """Tokens that never merge."""

    @classmethod
    def of(cls, block: Block, *, name: str, groups: int = 1, prefix: int = 0) -> "BlockShape":
        return cls(
            name=name,
            dim=block.attn.attn_dim,
            key_dim=block.attn.head_dim,
            groups=groups,
            hidden=block.mlp.fc1.out_features,
            prefix=prefix,
        )

    def macs_before(self, grid: Grid) -> int:
        """Norm, q, k, v and output projections, and the products QKᵀ and AV."""
        n, d = self.prefix + tokens(grid), self.dim
        return self.groups * (NORM_MACS * n * d + 4 * n * d * d + 2 * n * n * d)

    def macs_after(self, grid: Grid) -> int:
        """Norm and the two projections of the MLP."""
        n, d = self.prefix + tokens(grid), self.dim
        return self.groups * (NORM_MACS * n * d + 2 * n * d * self.hidden)
