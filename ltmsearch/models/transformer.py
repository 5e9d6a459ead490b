"""A sequence of timm's transformer blocks through which merges accumulate, shared by ViT and MobileViT.

Each block can merge between attention and MLP; the next one starts from the merged tokens, and its attention weighs
each by the number of input tokens in it.

Shapes: B images, G groups that share a mask (the pixel positions of a MobileViT patch; 1 in a ViT), K tokens that never
merge (class and register tokens of a ViT), N tokens on the grid, D channels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltmsearch.merging import Merge, MergeOperator
from ltmsearch.models.adapter import MERGING, NORM_MACS, LayerShape, captured_outputs, merge_target
from ltmsearch.schedules.grid import Grid, tokens

Result = TypeVar("Result")


class MergingBlocks(nn.Sequential):
    """timm's blocks with optional merges; without any, this is timm's own loop over its blocks.

    `groups` is G, `prefix` is K; with `unmerges`, all merges are undone after the last block.
    """

    grid: Grid
    """Token grid of the current input; set by the model before each pass."""
    sizes: Tensor | None
    """(B, P) sizes of the tokens after the last block; None without merges, or if all are undone. The reader resets it
    to None, so that the tensor does not outlive its pass."""
    checkpoints: bool
    """Whether activations are recomputed in the backward pass instead of kept."""

    def __init__(self, blocks: nn.Sequential, *, groups: int = 1, prefix: int = 0, unmerges: bool) -> None:
        super().__init__(*blocks)
        self.groups, self.prefix, self.unmerges = groups, prefix, unmerges
        self.sizes, self.checkpoints = None, False

    @property
    def merges(self) -> bool:
        """Whether some block has an operator with a keep ratio below 1."""
        operators = (getattr(block, MERGING, None) for block in self)
        return any(operator is not None and operator.keep_ratio < 1 for operator in operators)

    def forward(self, x: Tensor) -> Tensor:
        """(B·G, K + N, D) tokens to the same, or (B·G, K + P, D) if merges are not undone."""
        grid = self.grid
        if self.merges and x.shape[1] != self.prefix + tokens(grid):
            raise ValueError(
                f"`x` must have {self.prefix} + {tokens(grid)} tokens for the grid {grid}, but got {x.shape[1]}: "
                "patch dropout (`patch_drop_rate`) cannot be combined with merging."
            )
        sizes: Tensor | None = None  # until the first merge, every token has size 1
        merges: list[tuple[Tensor, Merge]] = []
        for block in cast(Iterable[Block], self):
            operator, target = merge_target(block, grid)
            bias = None if sizes is None else self._size_bias(sizes)
            if operator is None:
                x = self._run(block, x, attn_mask=bias)
                continue
            if sizes is None:
                sizes = x.new_ones(x.shape[0] // self.groups, tokens(grid), dtype=torch.float32)
            x, before, merge = self._run(self._merge_block, block, operator, x, bias, sizes, grid, target)
            if self.unmerges:
                merges.append((before, merge))
            grid, sizes = target, merge.sizes
        for before, merge in reversed(merges):
            x = merge.unmerge(before, x.unflatten(0, (-1, self.groups))).flatten(0, 1)
        self.sizes = None if self.unmerges else sizes
        return x

    def _run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        if self.checkpoints and self.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        return function(*args, **kwargs)

    def _merge_block(
        self, block: Block, operator: MergeOperator, x: Tensor, bias: Tensor | None, sizes: Tensor, grid: Grid,
        target: Grid,
    ) -> tuple[Tensor, Tensor, Merge]:  # fmt: skip
        """One block that merges: its output, the (B, G, N, D) tokens before the merge, and the merge."""
        x, keys = attend(block, x, bias, return_keys=operator.needs_keys)
        fixed, rest = x[:, : self.prefix], x[:, self.prefix :]
        before = rest.unflatten(0, (-1, self.groups))
        if keys is not None:
            keys = keys[:, :, self.prefix :].unflatten(0, (-1, self.groups)).mean(dim=(1, 2))
        merge = operator(before, sizes, grid, target, keys)
        x = merge.tokens.flatten(0, 1)
        x = torch.cat((fixed, x), dim=1) if self.prefix else x
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), before, merge

    def _size_bias(self, sizes: Tensor) -> Tensor:
        """Proportional attention (ToMe, https://arxiv.org/abs/2210.09461, equation 1): log s added to the logits.

        (B, N) to (B·G, 1, 1, K + N).
        """
        bias = sizes.log()
        if self.groups > 1:
            bias = bias.repeat_interleave(self.groups, dim=0)
        if self.prefix:
            bias = nn.functional.pad(bias, (self.prefix, 0))
        return bias[:, None, None, :]


def attend(block: Block, x: Tensor, bias: Tensor | None, *, return_keys: bool) -> tuple[Tensor, Tensor | None]:
    """The attention half of a timm block, residual included: (B, N, D) to the same, and its (B, heads, N, C) keys.

    `bias` is added to the attention logits, broadcast to (B, heads, N, N).
    """
    # timm computes the keys inside its forward; `k_norm`, mostly an identity, is the only module that outputs them.
    with captured_outputs(block.attn.k_norm, enabled=return_keys) as keys:
        x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=bias)))
    return x, keys[0] if return_keys else None


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
