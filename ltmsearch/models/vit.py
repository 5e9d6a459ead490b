"""Vision transformers (ViT, DeiT): merges between attention and MLP, which accumulate with depth and are not undone.

Class, distillation and register tokens never merge. Pooling at the end weighs each token by the number of input tokens
in it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from timm.layers import AttentionPoolLatent
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.config.names import BACKBONES
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import (
    NORM_MACS,
    Adapter,
    Chain,
    MergingLayer,
    attach_operator,
    blank_image,
    grid_of,
    register_family,
)
from ltmsearch.models.merge_state import MergeState, carry_state, state_of, unmerging, with_state
from ltmsearch.models.rewiring import Rewired
from ltmsearch.models.transformer import BlockShape, make_merging
from ltmsearch.schedules.grid import Grid, tokens

AVERAGED = ("avg", "avgmax")
"""timm's poolings that take a mean over tokens."""


class MergingVisionTransformer(MergingLayer, VisionTransformer):
    """timm's `VisionTransformer` with optional merges in its blocks."""

    @property
    def merges(self) -> bool:
        """Whether some block has an operator with a keep ratio below 1."""
        return any(operator.keep_ratio < 1 for block in self.blocks for operator in block.upstream)

    def _pos_embed(self, x: Tensor) -> Tensor:
        # The first method that receives the patches: (B, h, w, D) if images may have any size, else (B, N, D).
        grid = grid_of(*x.shape[1:3]) if x.dim() == 4 else self.patch_embed.grid_size
        return with_state(super()._pos_embed(x), MergeState(grid=grid))

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """timm's pooling of (B, K + P, D) tokens, with merged tokens weighted by their sizes.

        Raises:
            ValueError: If tokens merge, all are pooled, and `x` comes without their sizes.
        """
        kind = self.global_pool if pool_type is None else pool_type
        pooled_by_attention = isinstance(self.attn_pool, AttentionPoolLatent)
        if self.attn_pool is not None and not pooled_by_attention and self.merges:
            raise ValueError(
                f"merged tokens cannot be pooled by timm's {type(self.attn_pool).__name__}, which knows no sizes; use "
                "global_pool token, avg, avgmax or map, or build the network without merging."
            )
        if not (pooled_by_attention or kind in AVERAGED):
            return super().pool(x, pool_type)
        state = state_of(x)
        if state is None and self.merges:
            raise ValueError(
                "the head of a network that merges tokens needs the very tensor that `forward_features` or "
                "`forward_intermediates` returned, since the sizes of the tokens travel with it."
            )
        if state is None or state.sizes is None:
            return super().pool(x, pool_type)
        prefix = self.num_prefix_tokens
        sizes = nn.functional.pad(state.sizes, (prefix, 0), value=1.0)
        if not self.pool_include_prefix:
            x, sizes = x[:, prefix:], sizes[:, prefix:]
        if pooled_by_attention:
            return self.attn_pool(x, attn_mask=sizes.log().to(x.dtype)[:, None, None, :])
        weights = (sizes / sizes.sum(dim=1, keepdim=True)).to(x.dtype)
        mean = (x * weights[..., None]).sum(dim=1)
        return mean if kind == "avg" else 0.5 * (x.amax(dim=1) + mean)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See timm; all features are unmerged: each token's value stands at the places of the tokens in it."""
        grid = grid_of(*self.patch_embed.dynamic_feat_size(x.shape[-2:]))
        blocks = [unmerging(block, grid, self.num_prefix_tokens) for block in self.blocks]
        rewired = Rewired(self, blocks=blocks, _pos_embed=self._pos_embed_undoable)
        return VisionTransformer.forward_intermediates(cast(VisionTransformer, rewired), x, *args, **kwargs)

    def _pos_embed_undoable(self, x: Tensor) -> Tensor:
        x = self._pos_embed(x)
        return with_state(x, replace(cast(MergeState, state_of(x)), undo=()))


class MergingVisionTransformerDistilled(MergingVisionTransformer, VisionTransformerDistilled):
    """timm's `VisionTransformerDistilled` with optional merges in its blocks."""


MERGING_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: MergingVisionTransformer,
    VisionTransformerDistilled: MergingVisionTransformerDistilled,
}


@dataclass(frozen=True, kw_only=True)
class ViTChain(Chain):
    """All blocks of a vision transformer, followed by norm and pooling of the remaining tokens."""

    prefix: int
    """K, tokens that never merge."""
    norm_dim: int
    """Channels of the norm over all tokens, 0 if it follows the pooling."""
    pool_dim: int
    """Channels of attention pooling, 0 without it."""
    pool_prefix: int
    """Pooled tokens that never merge."""

    def macs_after_chain(self, grid: Grid) -> int:
        """Norm; keys, values and their products with one latent query."""
        remaining, pooled = self.prefix + tokens(grid), self.pool_prefix + tokens(grid)
        return NORM_MACS * remaining * self.norm_dim + 2 * pooled * self.pool_dim * (self.pool_dim + 1)


@register_family
class ViT(Adapter):
    """ViT (https://arxiv.org/abs/2010.11929) and DeiT (https://arxiv.org/abs/2012.12877) with patches of 16 pixels."""

    family = "vit"
    backbones = BACKBONES[family]
    unsupported: ClassVar = {
        "vit_*_rope*": "its rotary positions belong to the full grid",
        "vit_*dinov3*": "its rotary positions belong to the full grid",
        "vit_*_rpn_*": "its blocks normalise after attention and MLP",
        "vit_*_xp_*": "its attention and MLP run in parallel, with nothing between them",
        "vit_*_18x2_*": "its blocks have two parallel attentions",
        "vit_*": "no adapter supports its blocks; use vit_tiny, vit_small or vit_base with _patch16_224",
    }
    fixed_size = True
    any_size_kwargs: ClassVar = {"dynamic_img_size": True, "dynamic_img_pad": True}
    feature_nets = ("getter",)  # the others return the tokens between blocks, which may be merged
    learning = Learning(lr=5e-4, grows=False, patience=2)

    def layers(self, model: VisionTransformer) -> tuple[str, ...]:
        return tuple(f"blocks.{index}" for index in range(len(model.blocks)))

    def attach(self, model: VisionTransformer, operators: dict[str, MergeOperator]) -> None:
        for layer, operator in operators.items():
            attach_operator(model.get_submodule(layer), operator)
        make_merging(model.blocks, prefix=model.num_prefix_tokens)
        for norm in (model.norm_pre, model.norm):
            norm.register_forward_hook(carry_state)
        # Without a wrapper, parameters keep timm's names and the model remains an instance of timm's class.
        model.__class__ = MERGING_CLASSES[type(model)]

    def dim(self, model: VisionTransformer, layer: str) -> int:
        return model.embed_dim

    def chains(self, model: VisionTransformer, img_size: Grid) -> tuple[Chain, ...]:
        """One chain of all blocks; the grid is found by a forward pass through the patch embedding."""
        with torch.no_grad():
            patches = model.patch_embed(blank_image(model, img_size))
        rows, columns = patches.shape[1:3] if patches.dim() == 4 else model.patch_embed.grid_size
        prefix = model.num_prefix_tokens
        return (
            ViTChain(
                module="",
                grid=(int(rows), int(columns)),
                token_stride=model.patch_embed.patch_size,
                layers=tuple(
                    BlockShape.of(block, name=f"blocks.{index}", prefix=prefix)
                    for index, block in enumerate(model.blocks)
                ),
                unmerges=False,
                prefix=prefix,
                norm_dim=0 if isinstance(model.norm, nn.Identity) else model.embed_dim,
                pool_dim=model.embed_dim if isinstance(model.attn_pool, AttentionPoolLatent) else 0,
                pool_prefix=prefix if model.pool_include_prefix else 0,
            ),
        )
