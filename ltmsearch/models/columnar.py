"""What vision transformers of one resolution share (ViT, EVA): one sequence of blocks on one grid of tokens.

Merges lie between attention and MLP, accumulate with depth and are not undone. Class, distillation and register tokens
never merge. Pooling at the end weighs each token by the number of input tokens in it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import NORM_MACS, Adapter, Chain, blank_image, grid_of, run_once
from ltmsearch.models.block_shape import BlockShape
from ltmsearch.models.merge_state import MergeState, carry_state, state_of, unmerging
from ltmsearch.models.merging_layer import MergingLayer, attach_operator
from ltmsearch.models.registers import RegisterReadout
from ltmsearch.models.rewiring import Rewired
from ltmsearch.models.transformer import make_merging, unfit_blocks
from ltmsearch.schedules.grid import Grid, tokens

AVERAGED = ("avg", "avgmax")
"""timm's poolings that take a mean over tokens."""


def pools_prefix(model: Any) -> bool:
    """Whether a network's pooling of all tokens includes those that never merge.

    timm's `Eva` has no option for it: it includes them in attention pooling alone.
    """
    return bool(getattr(model, "pool_include_prefix", model.attn_pool is not None))


class MergingTransformer(MergingLayer, nn.Module):
    """Mixin of timm's networks with optional merges in their blocks. K: tokens that never merge, P: merged tokens."""

    timm_class: ClassVar[type[nn.Module]]
    blocks: Any
    patch_embed: Any
    num_prefix_tokens: int
    norm: Any
    global_pool: str
    attn_pool: nn.Module | None

    @property
    def merges(self) -> bool:
        """Whether some block has an operator with a keep ratio below 1."""
        return any(operator.keep_ratio < 1 for block in self.blocks for operator in block.upstream)

    @property
    def adaptive(self) -> bool:
        """Whether some block merges by threshold, so that there may be places without a token, of size 0."""
        return any(operator.adaptive for block in self.blocks for operator in block.upstream)

    def start_state(self, patches: Tensor) -> MergeState:
        """The state before the first block, from the (B, N, D) patches, (B, h, w, D) if images may have any size."""
        return MergeState(grid=grid_of(*patches.shape[1:3]) if patches.dim() == 4 else self.patch_embed.grid_size)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """timm's pooling of (B, K + P, D) tokens, with merged tokens weighted by their sizes.

        Raises:
            ValueError: If tokens merge, all are pooled, and `x` comes without their sizes.
        """
        if isinstance(self.attn_pool, RegisterReadout):
            return super().pool(x, pool_type)  # type: ignore[misc]
        kind = self.global_pool if pool_type is None else pool_type
        pooled_by_attention = isinstance(self.attn_pool, AttentionPoolLatent)
        if self.attn_pool is not None and not pooled_by_attention and self.merges:
            raise ValueError(
                f"merged tokens cannot be pooled by timm's {type(self.attn_pool).__name__}, which knows no sizes; use "
                "global_pool token, avg, avgmax or map, or build the network without merging."
            )
        if not (pooled_by_attention or kind in AVERAGED or (kind == "max" and self.adaptive)):
            return super().pool(x, pool_type)  # type: ignore[misc]
        state = state_of(x)
        if state is None and self.merges:
            raise ValueError(
                "the head of a network that merges tokens needs the very tensor that `forward_features` or "
                "`forward_intermediates` returned, since the sizes of the tokens travel with it."
            )
        if state is None or state.sizes is None:
            return super().pool(x, pool_type)  # type: ignore[misc]
        prefix = self.num_prefix_tokens
        sizes = nn.functional.pad(state.sizes, (prefix, 0), value=1.0)
        if not pools_prefix(self):
            x, sizes = x[:, prefix:], sizes[:, prefix:]
        if self.attn_pool is not None:
            return self.attn_pool(x, attn_mask=sizes.log().to(x.dtype)[:, None, None, :])
        weights = (sizes / sizes.sum(dim=1, keepdim=True)).to(x.dtype)
        mean = (x * weights[..., None]).sum(dim=1)
        if kind == "avg":
            return mean
        if self.adaptive:
            x = x.masked_fill((sizes == 0)[..., None], -torch.inf)
        largest = x.amax(dim=1)
        return largest if kind == "max" else 0.5 * (largest + mean)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See timm; all features are unmerged: each token's value stands at the places of the tokens in it.

        Dropped tokens have the last value that they had.
        """
        grid = grid_of(*self.patch_embed.dynamic_feat_size(x.shape[-2:]))
        blocks = [unmerging(block, grid, self.num_prefix_tokens) for block in self.blocks]
        # The norm before the unmerge, as in the whole network: afterwards, soft shares have averaged the tokens.
        norm = unmerging(self.norm, grid, self.num_prefix_tokens, of_dropped=True)
        rewired: Any = Rewired(self, blocks=blocks, norm=norm, start_state=self._undoable_start)
        rewired._pos_embed = lambda patches: cast(Any, type(self))._pos_embed(rewired, patches)
        return cast(Any, self.timm_class).forward_intermediates(rewired, x, *args, **kwargs)

    def _undoable_start(self, patches: Tensor) -> MergeState:
        return replace(self.start_state(patches), undo=())


@dataclass(frozen=True, kw_only=True)
class ColumnarChain(Chain):
    """All blocks of a vision transformer, followed by norm and pooling of the remaining tokens."""

    norm_macs: int
    """Multiply-adds per token of the norm over all tokens."""
    pool_dim: int
    """Channels of attention pooling, 0 without it."""
    pool_prefix: int
    """Pooled tokens that never merge."""

    def macs_after_chain(self, grid: Grid) -> int:
        """Norm; keys, values and their products with one latent query."""
        remaining, pooled = self.prefix + tokens(grid), self.pool_prefix + tokens(grid)
        return remaining * self.norm_macs + 2 * pooled * self.pool_dim * (self.pool_dim + 1)


class Columnar(Adapter):
    """Base of adapters for vision transformers of one resolution."""

    merging_classes: ClassVar[dict[type[nn.Module], type[MergingTransformer]]]
    """timm's networks → those that merge."""
    fixed_size = True
    any_size_kwargs: ClassVar = {"dynamic_img_size": True, "dynamic_img_pad": True}
    feature_nets = ("getter",)  # the others return the tokens between blocks, which may be merged
    best_forms: ClassVar = {"ltm": "matched"}
    adaptive = True
    learning = Learning(lr=5e-4, grows=False, patience=2)

    def recognises(self, model: nn.Module) -> bool:
        return type(model) in (*self.merging_classes, *self.merging_classes.values())

    def refusal(self, model: Any) -> str | None:
        return unfit_blocks(model.blocks)

    def layers(self, model: Any) -> tuple[str, ...]:
        return tuple(f"blocks.{index}" for index in range(len(model.blocks)))

    def attach(self, model: Any, operators: dict[str, MergeOperator]) -> None:
        for layer, operator in operators.items():
            attach_operator(model.get_submodule(layer), operator)
            operator.on_merges_stay()
        make_merging(model.blocks, prefix=model.num_prefix_tokens, rope=self.rope(model))
        for norm in (model.norm_pre, model.norm):
            norm.register_forward_hook(carry_state)
        # Without a wrapper, parameters keep timm's names and the model remains an instance of timm's class.
        model.__class__ = self.merging_classes[type(model)]

    def rope(self, model: Any) -> nn.Module | None:
        """The network's rotary module, if its tokens are rotated."""
        return None

    def dim(self, model: Any, layer: str) -> int:
        return int(model.embed_dim)

    def sequences(self, model: Any) -> tuple[tuple[str, ...], ...]:
        return (self.layers(model),)

    def chains(self, model: Any, img_size: Grid) -> tuple[Chain, ...]:
        """One chain of all blocks; the grid is found by a forward pass through the patch embedding."""
        patches = run_once(model.patch_embed, blank_image(model, img_size))
        rows, columns = patches.shape[1:3] if patches.dim() == 4 else model.patch_embed.grid_size
        prefix = model.num_prefix_tokens
        # Each token's place, which the blocks after it need.
        carried = [2 * (self.rope(model) is not None and block is not model.blocks[-1]) for block in model.blocks]
        return (
            ColumnarChain(
                module="",
                grid=(int(rows), int(columns)),
                token_stride=_token_stride(model.patch_embed),
                layers=tuple(
                    BlockShape.of(block, name=f"blocks.{index}", prefix=prefix, carried=carried[index])
                    for index, block in enumerate(model.blocks)
                ),
                unmerges=False,
                prefix=prefix,
                norm_macs=NORM_MACS * model.embed_dim if isinstance(model.norm, nn.LayerNorm) else 0,
                pool_dim=model.embed_dim if isinstance(model.attn_pool, AttentionPoolLatent) else 0,
                pool_prefix=prefix if pools_prefix(model) else 0,
            ),
        )


def _token_stride(patch_embed: Any) -> tuple[float, float]:
    """Pixels (down, right) between neighbouring tokens; patches may be cut from a stem's feature map."""
    down, right = patch_embed.feat_ratio(as_scalar=False)
    return float(down), float(right)
