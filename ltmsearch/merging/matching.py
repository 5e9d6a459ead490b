"""Bipartite soft matching: which tokens are so alike that one may stand for both.

Written from the description in "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023), section 3. Differences:
tokens keep their order; where fewer than half are to stay, matching is repeated.

Shapes: B images, G groups that share the assignment, N tokens in, P tokens out, C channels of the keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.merging.assignment import Assignment, HardAssignment


def match(keys: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Match until `count` tokens are left; merged tokens go on with the mean of their keys.

    Args:
        keys: (B, N, C).
        sizes: (B, N).
        count: P < N.

    Returns:
        (B, N) int64: the merged token of each token.
    """
    n = int(keys.shape[1])  # a number also while a tracer watches
    position = torch.arange(n, device=keys.device).expand(keys.shape[0], -1)
    for merges in rounds(n, count):
        step = match_once(keys, merges)
        n -= merges
        position = step.gather(1, position)
        if n > count:
            merged, sizes = average(keys[:, None], sizes, HardAssignment(step, n))
            keys = merged[:, 0]
    return position


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


def matching_macs(n: int, p: int, key_dim: int) -> int:
    """Multiply-adds of `match`: the similarities of every round; merging by index counts zero."""
    total = 0
    for merges in rounds(n, p):
        total += ((n + 1) // 2) * (n // 2) * key_dim
        n -= merges
    return total
