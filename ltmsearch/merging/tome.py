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
from ltmsearch.merging.assignment import Assignment, HardAssignment
from ltmsearch.merging.operator import Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.schedule import Form


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


def average(values: Tensor, sizes: Tensor, assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of (B, G, N, C) values by merged token, and the (B, P) sizes of those."""
    new_sizes = assignment.collect(sizes[:, None, :, None])[:, 0, :, 0]
    total = assignment.collect(values * sizes[:, None, :, None].to(values.dtype))
    return total / new_sizes[:, None, :, None].to(total.dtype), new_sizes


@register_operator
class BipartiteSoftMatching(MergeOperator):
    """ToMe's operator; nothing is learned."""

    name = "tome"
    forms = ("hard",)
    needs_keys = True

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge; arguments as in `MergeOperator`."""
        if keys is None:
            raise ValueError("`keys` must be given: ToMe matches attention keys.")
        n, p = token_count(grid), token_count(target)
        position: Tensor | None = None
        round_keys, round_sizes, left = keys.detach()[:, None], sizes, n
        for merges in rounds(n, p):
            step = match_once(round_keys[:, 0], merges)
            left -= merges
            position = step if position is None else step.gather(1, position)
            if left > p:
                round_keys, round_sizes = average(round_keys, round_sizes, HardAssignment(step, left))
        if position is None:
            raise ValueError(f"`target` must have fewer tokens than `grid`, but got {grid=} and {target=}.")
        assignment = HardAssignment(position, p)
        merged, merged_sizes = average(tokens, sizes, assignment)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Key similarities of every round; merging by index counts zero."""
        total, n = 0, shape.n
        for merges in rounds(n, shape.p):
            total += ((n + 1) // 2) * (n // 2) * shape.key_dim
            n -= merges
        return total

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """Unmerging by index counts zero."""
        return 0
