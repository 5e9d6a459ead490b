"""MobileViT: merges between attention and MLP, shared by the pixel positions of a patch, undone before the fold.

timm's `MobileVitBlock` unfolds its feature map into patches of 2×2 pixels, runs a transformer on each of the 4 pixel
positions separately, and folds the tokens back, assuming that their number did not change. So merges accumulate inside
one `MobileVitBlock` and are unwound at the end of its transformer.

Shapes: B images, G pixel positions of a patch (4), N tokens (patches), D channels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltmsearch.backbones.adapter import MERGING, Adapter, Chain, LayerShape, blank_image, register_family
from ltmsearch.grid import Grid, target_grid, tokens
from ltmsearch.merging import Merge, MergeOperator

NORM_MACS = 5
"""What fvcore counts per element of a layer norm with affine weights."""


class MergingTransformer(nn.Sequential):
    """The transformer of one `MobileVitBlock`: timm's blocks, some of which merge.

    A block merges when it has an operator whose keep ratio leads to a smaller grid. As long as none does, this is
    timm's own loop over its blocks.
    """

    grid: Grid
    """(rows, columns) of patches of the current input, noted by `note_grid`."""
    groups: int
    """Pixel positions per patch."""

    def __init__(self, blocks: nn.Sequential, groups: int) -> None:
        super().__init__(*blocks)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B·G, N, D) tokens to (B·G, N, D)."""
        grid, sizes = self.grid, x.new_ones(len(x) // self.groups, x.shape[1], dtype=torch.float32)
        merges: list[tuple[Tensor, Merge]] = []
        for block in cast(Iterable[Block], self):
            bias = self._size_bias(sizes) if merges else None
            operator: MergeOperator | None = getattr(block, MERGING, None)
            target = grid if operator is None else target_grid(grid, operator.keep_ratio)
            if operator is None or target == grid:
                x = block(x, attn_mask=bias)
                continue
            x, keys = attend(block, x, bias, wants_keys=operator.needs_keys)
            if keys is not None:
                keys = keys.unflatten(0, (-1, self.groups)).mean(dim=(1, 2))
            before = x.unflatten(0, (-1, self.groups))
            merge = operator(before, sizes, grid, target, keys)
            merges.append((before, merge))
            x = merge.tokens.flatten(0, 1)
            x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
            grid, sizes = target, merge.sizes
        if merges:
            after = x.unflatten(0, (-1, self.groups))
            for before, merge in reversed(merges):
                after = merge.unmerge(before, after)
            x = after.flatten(0, 1)
        return x

    def _size_bias(self, sizes: Tensor) -> Tensor:
        """Proportional attention: log s on the logits of the keys (ToMe, equation 1). (B, N) to (B·G, 1, 1, N)."""
        return sizes.log().repeat_interleave(self.groups, dim=0)[:, None, None, :]


def attend(block: Block, x: Tensor, bias: Tensor | None, *, wants_keys: bool) -> tuple[Tensor, Tensor | None]:
    """The attention half of a timm block, residual included, and on request the keys it used.

    Args:
        block: timm's block.
        x: (B, N, D).
        bias: Added to the attention logits, broadcast to (B, heads, N, N).
        wants_keys: Whether to return the keys.

    Returns:
        (B, N, D) tokens, and the (B, heads, N, C) keys or None.
    """
    keys: list[Tensor] = []
    # timm computes the keys inside its forward; its `k_norm` (an identity here) is where they can be seen.
    handle = block.attn.k_norm.register_forward_hook(lambda _m, _a, out: keys.append(out)) if wants_keys else None
    try:
        x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=bias)))
    finally:
        if handle is not None:
            handle.remove()
    return x, keys[0] if wants_keys else None


def note_grid(block: MobileVitBlock, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a `MobileVitBlock`: tell its transformer on which grid the tokens of this input stand."""
    block.transformer.grid = _token_grid(args[0].shape[-2:], block.patch_size)


def _token_grid(feature_size: tuple[int, int], patch_size: tuple[int, int]) -> Grid:
    rows, columns = (math.ceil(n / p) for n, p in zip(feature_size, patch_size, strict=True))
    return rows, columns


@dataclass(frozen=True, kw_only=True)
class TransformerShape(LayerShape):
    """A pre-norm transformer block with full attention among the tokens of one pixel position."""

    hidden: int
    """Channels inside the MLP."""

    def macs_before(self, grid: Grid) -> int:
        """Norm, q, k, v and output projections, and the products QKᵀ and AV."""
        n, d = tokens(grid), self.dim
        return self.groups * (NORM_MACS * n * d + 4 * n * d * d + 2 * n * n * d)

    def macs_after(self, grid: Grid) -> int:
        """Norm and the two projections of the MLP."""
        n, d = tokens(grid), self.dim
        return self.groups * (NORM_MACS * n * d + 2 * n * d * self.hidden)


@register_family
class MobileViT(Adapter):
    """`mobilevit_xxs`, `mobilevit_xs`, `mobilevit_s` (Mehta & Rastegari, 2022)."""

    family = "mobilevit"
    backbones = ("mobilevit_xxs", "mobilevit_xs", "mobilevit_s")

    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """Every transformer block of every `MobileVitBlock`."""
        return tuple(
            f"{path}.transformer.{index}"
            for path, block in self._blocks(model)
            for index in range(len(block.transformer))
        )

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        """See `Adapter.attach`."""
        for _, block in self._blocks(model):
            if not isinstance(block.transformer, MergingTransformer):
                block.transformer = MergingTransformer(block.transformer, block.patch_area)
                block.register_forward_pre_hook(note_grid)
        for layer, operator in operators.items():
            model.get_submodule(layer).add_module(MERGING, operator)

    def dim(self, model: nn.Module, layer: str) -> int:
        """See `Adapter.dim`."""
        return cast(Block, model.get_submodule(layer)).attn.attn_dim

    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """One chain per `MobileVitBlock`; the feature sizes are read off one forward pass."""
        sizes: dict[str, Grid] = {}
        handles = [
            block.register_forward_pre_hook(
                lambda _block, args, path=path: sizes.update({path: tuple(args[0].shape[-2:])})
            )
            for path, block in self._blocks(model)
        ]
        image = blank_image(model, img_size)
        was_training = model.training
        try:
            with torch.no_grad():
                model.eval()(image)
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()
        return tuple(
            Chain(
                grid=_token_grid(sizes[path], block.patch_size),
                layers=tuple(
                    TransformerShape(
                        name=f"{path}.transformer.{index}",
                        dim=layer.attn.attn_dim,
                        key_dim=layer.attn.head_dim,
                        groups=block.patch_area,
                        hidden=layer.mlp.fc1.out_features,
                    )
                    for index, layer in enumerate(block.transformer)
                ),
                unmerges=True,
            )
            for path, block in self._blocks(model)
        )

    @staticmethod
    def _blocks(model: nn.Module) -> list[tuple[str, MobileVitBlock]]:
        return [(path, m) for path, m in model.named_modules() if isinstance(m, MobileVitBlock)]
