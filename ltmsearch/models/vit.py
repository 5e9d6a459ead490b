"""Vision transformers (ViT, DeiT): merges between attention and MLP, which accumulate with depth and are not undone.

Class, distillation and register tokens never merge. Pooling at the end weighs each token by the number of input tokens
in it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import AttentionPoolLatent
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ltmsearch.config.defaults import Learning
from ltmsearch.config.names import BACKBONES
from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import NORM_MACS, Adapter, Chain, attach_operator, blank_image, register_family
from ltmsearch.models.transformer import BlockShape, MergingBlocks
from ltmsearch.schedules.grid import Grid, tokens

AVERAGED = ("avg", "avgmax")
"""timm's poolings that take a mean over tokens."""


class MergingVisionTransformer(VisionTransformer):
    """timm's `VisionTransformer` with optional merges in its blocks."""

    blocks: MergingBlocks

    def _pos_embed(self, x: Tensor) -> Tensor:
        # The first method that receives the patches: (B, h, w, D) if images may have any size, else (B, N, D).
        self.blocks.grid = (int(x.shape[1]), int(x.shape[2])) if x.dim() == 4 else self.patch_embed.grid_size
        return super()._pos_embed(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """timm's pooling of (B, K + P, D) tokens, with merged tokens weighted by their sizes."""
        kind = self.global_pool if pool_type is None else pool_type
        pooled_by_attention = isinstance(self.attn_pool, AttentionPoolLatent)
        if self.blocks.sizes is None or not (pooled_by_attention or kind in AVERAGED):
            return super().pool(x, pool_type)
        sizes = nn.functional.pad(self.blocks.sizes, (self.blocks.prefix, 0), value=1.0)
        if not self.pool_include_prefix:
            x, sizes = x[:, self.blocks.prefix :], sizes[:, self.blocks.prefix :]
        if pooled_by_attention:
            return self.attn_pool(x, attn_mask=sizes.log()[:, None, None, :])
        weights = (sizes / sizes.sum(dim=1, keepdim=True)).to(x.dtype)
        mean = (x * weights[..., None]).sum(dim=1)
        return mean if kind == "avg" else 0.5 * (x.amax(dim=1) + mean)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """See timm; discards the sizes of this pass."""
        try:
            return super().forward_head(x, pre_logits)
        finally:
            self.blocks.sizes = None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; timm's own implementation would skip the merges."""
        self.blocks.checkpoints = enable

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.blocks.merges:
            raise ValueError("`forward_intermediates` must be called without merging: merged tokens are on no grid.")
        return super().forward_intermediates(x, *args, **kwargs)


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

    learning = Learning(lr=5e-4, grows=False, patience=2)

    def layers(self, model: VisionTransformer) -> tuple[str, ...]:
        return tuple(f"blocks.{index}" for index in range(len(model.blocks)))

    def attach(self, model: VisionTransformer, operators: dict[str, MergeOperator]) -> None:
        if not isinstance(model.blocks, MergingBlocks):
            model.blocks = MergingBlocks(model.blocks, prefix=model.num_prefix_tokens, unmerges=False)
            # Without a wrapper, parameters keep timm's names and the model remains an instance of timm's class.
            model.__class__ = MERGING_CLASSES[type(model)]
        for layer, operator in operators.items():
            attach_operator(model.get_submodule(layer), operator)

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
