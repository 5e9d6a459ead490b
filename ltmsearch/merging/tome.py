"""Token Merging (ToMe) as a baseline: bipartite soft matching on attention keys.

Written from the description in "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023), section 3. Differences:
tokens keep their order; where fewer than half are to stay, matching is repeated; the grid is used for its number of
tokens only.

Shapes: B images, N tokens in, P tokens out, C channels of the keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.grid import Grid
from ltmsearch.grid import tokens as token_count
from ltmsearch.merging.operator import Merge, MergeOperator, register_operator


def match_once(keys: Tensor, merges: int) -> Tensor:
    """One round of bipartite soft matching.

    Tokens alternate between two sets; each token of the first (even positions) finds its most similar one in the
    second (odd positions) by cosine similarity of the keys; the `merges` most similar pairs are merged.

    Args:
        keys: (B, N, C).
        merges: Number of pairs, 1 ≤ merges ≤ ⌊N/2⌋.

    Returns:
        (B, N) int64: the new position of every token among the N − merges that stay, in their old order.
    """
    batch, n, _ = keys.shape
    if not 1 <= merges <= n // 2:
        raise ValueError(f"`merges` must be from 1 to {n // 2} for {n} tokens, but got {merges=}.")
    unit = F.normalize(keys.float(), dim=-1)
    similarity = unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)
    best, partner = similarity.max(dim=-1)
    merged = best.argsort(dim=-1, descending=True, stable=True)[:, :merges]  # indices into the first set
    target = 2 * partner.gather(1, merged) + 1
    stays = torch.ones(batch, n, dtype=torch.long, device=keys.device).scatter(1, 2 * merged, 0)
    position = stays.cumsum(dim=1) - 1
    return position.scatter(1, 2 * merged, position.gather(1, target))


def rounds(n: int, p: int) -> list[int]:
    """How many pairs each round merges to bring n tokens to p, at most half of what is left at a time."""
    out = []
    while n > p:
        out.append(min(n - p, n // 2))
        n -= out[-1]
    return out


def _average(values: Tensor, sizes: Tensor, position: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of (B, …, N, C) values by new position; also the new (B, count) sizes."""
    new_sizes = sizes.new_zeros(len(sizes), count).scatter_add(1, position, sizes)
    extra = values.dim() - 3  # group dimensions between B and N
    index = position.reshape(len(position), *([1] * extra), -1, 1).expand_as(values)
    weight = sizes.reshape(len(sizes), *([1] * extra), -1, 1).to(values.dtype)
    total = values.new_zeros(*values.shape[:-2], count, values.shape[-1]).scatter_add(-2, index, values * weight)
    return total / new_sizes.reshape(len(sizes), *([1] * extra), -1, 1).to(values.dtype), new_sizes


@register_operator
class BipartiteSoftMatching(MergeOperator):
    """ToMe's operator; nothing is learned.

    Args:
        dim: D; not used, every operator is built alike.
        content_gain: Not used: matching is by content alone.
    """

    name = "tome"
    needs_keys = True

    def __init__(self, dim: int, content_gain: float = 0.0) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge; arguments as in `MergeOperator`."""
        if keys is None:
            raise ValueError("`keys` must be given: ToMe matches attention keys.")
        n, p = token_count(grid), token_count(target)
        position: Tensor | None = None
        round_keys, round_sizes, left = keys.detach(), sizes, n
        for merges in rounds(n, p):
            step = match_once(round_keys, merges)
            left -= merges
            position = step if position is None else step.gather(1, position)
            if left > p:
                round_keys, round_sizes = _average(round_keys, round_sizes, step, left)
        if position is None:
            raise ValueError(f"`target` must have fewer tokens than `grid`, but got {grid=} and {target=}.")
        merged, merged_sizes = _average(tokens, sizes, position, p)
        index = position[:, None, :, None].expand_as(tokens)
        return Merge(tokens=merged, sizes=merged_sizes, spread=lambda change: change.gather(2, index))

    @staticmethod
    def merge_macs(n: int, p: int, *, dim: int, key_dim: int, groups: int) -> int:
        """Key similarities of every round; merging by index counts zero."""
        total = 0
        for merges in rounds(n, p):
            total += ((n + 1) // 2) * (n // 2) * key_dim
            n -= merges
        return total

    @staticmethod
    def unmerge_macs(n: int, p: int, *, dim: int, groups: int) -> int:
        """Unmerging by index counts zero."""
        return 0
