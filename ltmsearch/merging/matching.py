"""Bipartite soft matching of the most similar tokens.

From "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023, https://arxiv.org/abs/2210.09461), section 3.
Differences: tokens keep their order; matching is repeated if fewer than half of the tokens are to remain.

Shapes: B images, G groups that share the assignment, N tokens in, P tokens out, C channels of the keys.
"""

import torch
from torch import Tensor

from ltmsearch.merging.assignment import Assignment, HardAssignment
from ltmsearch.merging.constants import exporting
from ltmsearch.merging.precision import full_precision
from ltmsearch.merging.top_k import ranked


def length(vectors: Tensor) -> Tensor:
    """Length of the vectors in the last dimension, which is kept; at least 1e-12."""
    if exporting():  # without ONNX's ReduceL2, whose shape onnxruntime's tools for quantisation cannot infer
        # Products, since squares become ONNX's Pow, which is many times slower.
        return (vectors * vectors).sum(dim=-1, keepdim=True).clamp_min(1e-24).sqrt()
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(1e-12)


def unit(vectors: Tensor) -> Tensor:
    """Vectors in the last dimension, normalised to length 1; zero remains zero."""
    return vectors / length(vectors)


def match(keys: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Match until `count` tokens remain; the key of a merged token is the mean of its tokens'.

    From (B, N, C) keys and (B, N) sizes to (B, N) int64: the merged token of each token.
    """
    n = int(keys.shape[1])  # an int also in a traced program
    position = None
    for merges in rounds(n, count):
        step = match_once(similarity(keys), merges)
        n -= merges
        position = step if position is None else step.gather(1, position)
        if n > count:
            merged, sizes = average(keys[:, None], sizes, HardAssignment(step, n))
            keys = merged[:, 0]
    assert position is not None  # `count` is less than N
    return position


def similarity(keys: Tensor) -> Tensor:
    """Cosines of (B, N, C) keys at even positions with those at odd ones: (B, ⌈N/2⌉, ⌊N/2⌋)."""
    keys = keys.float()
    even, odd = keys[:, 0::2], keys[:, 1::2]
    with full_precision(keys.device):  # products of long keys overflow in float16
        # The products have a fraction of the keys' numbers, so that dividing them by the lengths is cheaper.
        products = torch.bmm(even, odd.transpose(-2, -1))
    lengths = length(keys)
    return products / lengths[:, 0::2] / lengths[:, 1::2].transpose(-2, -1)


def match_once(pairs: Tensor, merges: int) -> Tensor:
    """One round of bipartite soft matching.

    Tokens alternate between two sets; each token of the first (even positions) finds its most similar one in the
    second (odd positions); the `merges` most similar pairs are merged.

    From the (B, ⌈N/2⌉, ⌊N/2⌋) `similarity` to (B, N) int64: the new position of every token among the N − merges that
    remain, in their old order.
    """
    batch, n = pairs.shape[0], pairs.shape[1] + pairs.shape[2]
    best, partner = _maximum(pairs)
    merged = ranked(best)[:, :merges]  # indices into the first set
    target = partner.gather(1, merged).mul_(2).add_(1)
    merged = 2 * merged  # indices into all tokens
    position = torch.ones(batch, n, dtype=torch.long, device=pairs.device).scatter_(1, merged, 0)
    position = position.cumsum(dim=1).sub_(1)
    return position.scatter_(1, merged, position.gather(1, target))


def _maximum(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of the last dimension, and its index."""
    if exporting():  # without ONNX's ReduceMax: see `unit`
        best, index = values.topk(1)
        return best[..., 0], index[..., 0]
    best, index = values.max(dim=-1)
    return best, index


def rounds(n: int, p: int) -> list[int]:
    """Numbers of pairs to merge in each round, at most half of the remaining tokens, from n tokens to p."""
    out = []
    while n > p:
        out.append(min(n - p, n // 2))
        n -= out[-1]
    return out


def average(values: Tensor, sizes: Tensor, assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of (B, G, N, C) values in each merged token, and the (B, P) new sizes."""
    new_sizes = assignment.collect_few(sizes[:, None])  # (B, 1, P)
    addends = summable(values)
    total = assignment.collect(addends * sizes[:, None, :, None].to(addends.dtype))
    mean = total / new_sizes[..., None].to(total.dtype)
    return mean if addends is values else mean.to(values.dtype), new_sizes[:, 0]


def summable(values: Tensor) -> Tensor:
    """The values, in float32 where their own format would lose bits of a sum or overflow: float16, bfloat16."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def matching_macs(n: int, p: int, key_dim: int) -> int:
    """Multiply-adds of `match`: the similarities of every round; merging by index counts zero."""
    total = 0
    for merges in rounds(n, p):
        total += ((n + 1) // 2) * (n // 2) * key_dim
        n -= merges
    return total
