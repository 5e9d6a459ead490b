"""MobileViT (https://arxiv.org/abs/2110.02178): merges between attention and MLP, undone before the fold.

timm's `MobileVitBlock` unfolds its feature map into patches of 2×2 pixels, runs a transformer on each of the 4 pixel
positions separately, and folds the tokens back, assuming that their number did not change. So the pixel positions share
a mask, and merges accumulate inside one `MobileVitBlock` and are undone at the end of its transformer.
"""

import math
from functools import partial
from itertools import groupby
from typing import ClassVar, cast

from timm.models.mobilevit import MobileVitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ltmsearch.merging import MergeOperator
from ltmsearch.models.adapter import Adapter, Chain, grid_of, input_shapes, modules_of, register_family, strides
from ltmsearch.models.block_shape import BlockShape
from ltmsearch.models.merge_state import MergeState, unmerge, with_state
from ltmsearch.models.merging_layer import MergingLayer, attach_operator
from ltmsearch.models.rewiring import Rewired
from ltmsearch.models.transformer import make_merging, unfit_blocks
from ltmsearch.schedules.grid import Grid


class MergingMobileVitBlock(MergingLayer, MobileVitBlock):
    """timm's block, whose transformer can merge its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) to the same."""
        transform = partial(self._transform, grid=_token_grid(x.shape, self.patch_size))
        return MobileVitBlock.forward(cast(MobileVitBlock, Rewired(self, transformer=transform)), x)

    def _transform(self, x: Tensor, grid: Grid) -> Tensor:
        """(B·G, N, D) to the same."""
        return unmerge(self.transformer(with_state(x, MergeState(grid=grid, undo=()))), self.patch_area)


def _token_grid(shape: tuple[int, ...], patch_size: tuple[int, int]) -> Grid:
    """The grid of patches of a (B, C, height, width) feature map."""
    rows, columns = grid_of(*shape[-2:])
    return math.ceil(rows / patch_size[0]), math.ceil(columns / patch_size[1])


@register_family
class MobileViT(Adapter):
    """MobileViT (Mehta & Rastegari, 2022, https://arxiv.org/abs/2110.02178)."""

    family = "mobilevit"
    best_forms: ClassVar = {"ltm": "matched"}

    def recognises(self, model: nn.Module) -> bool:
        return any(isinstance(module, MobileVitBlock) for module in model.modules())

    def refusal(self, model: nn.Module) -> str | None:
        found = (unfit_blocks(block.transformer) for block in modules_of(model, MobileVitBlock).values())
        return next(filter(None, found), None)

    def layers(self, model: nn.Module) -> tuple[str, ...]:
        """Every transformer block of every `MobileVitBlock`."""
        return tuple(
            f"{path}.transformer.{index}"
            for path, block in modules_of(model, MobileVitBlock).items()
            for index in range(len(block.transformer))
        )

    def attach(self, model: nn.Module, operators: dict[str, MergeOperator]) -> None:
        for layer, operator in operators.items():
            attach_operator(model.get_submodule(layer), operator)
        for block in modules_of(model, MobileVitBlock).values():
            make_merging(block.transformer, groups=block.patch_area)
            block.__class__ = MergingMobileVitBlock

    def dim(self, model: nn.Module, layer: str) -> int:
        return cast(Block, model.get_submodule(layer)).attn.attn_dim

    def sequences(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        by_block = groupby(self.layers(model), key=lambda layer: layer.rpartition(".")[0])
        return tuple(tuple(layers) for _, layers in by_block)

    def chains(self, model: nn.Module, img_size: Grid) -> tuple[Chain, ...]:
        """One chain per `MobileVitBlock`; input shapes are recorded in one forward pass."""
        blocks = modules_of(model, MobileVitBlock)
        sizes = input_shapes(model, blocks, img_size)

        def stride(path: str, block: MobileVitBlock) -> tuple[float, float]:
            # timm stretches a feature map of odd size to whole patches.
            cells, grid = sizes[path][-2:], _token_grid(sizes[path], block.patch_size)
            down, right = strides(img_size, (cells[0], cells[1]))
            return down * cells[0] / grid[0], right * cells[1] / grid[1]

        return tuple(
            Chain(
                module=f"{path}.transformer",
                grid=_token_grid(sizes[path], block.patch_size),
                token_stride=stride(path, block),
                layers=tuple(
                    BlockShape.of(layer, name=f"{path}.transformer.{index}", groups=block.patch_area)
                    for index, layer in enumerate(block.transformer)
                ),
                unmerges=True,
            )
            for path, block in blocks.items()
        )
