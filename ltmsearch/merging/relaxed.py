"""A gradient for matching: each token's share in every merged token, as if it were distributed.

Inspired by DTEM (Lee and Hong, NeurIPS 2024, https://arxiv.org/abs/2412.10569), which trains the similarity of tokens
by a continuous relaxation of matching and matches as ToMe does afterwards. Here the forward pass is that of the
discrete matching in training too: only the gradient is that of the relaxation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.merging.assignment import SoftAssignment
from ltmsearch.merging.matching import match_once, merged_keys, rounds, similarity
from ltmsearch.merging.top_k import soft_top_k


def match_with_gradient(
    keys: Tensor, sizes: Tensor, count: int, learned: tuple[Tensor, Tensor], gain: Tensor
) -> SoftAssignment:
    """The assignment of `matching.match`, with a gradient to `learned` and to the keys.

    Args:
        keys: (B, N, C).
        sizes: (B, N).
        count: P.
        learned: (B, N, d) vectors of even and of odd tokens: see `matching.similarity`.
        gain: κ, sharpness of the relaxation.
    """
    n, shares = keys.shape[1], None
    both: tuple[Tensor, Tensor] | None = learned
    for merges in rounds(n, count):
        pairs = similarity(keys, both)
        position = match_once(pairs.detach(), merges)
        n -= merges
        hard = F.one_hot(position, n).to(pairs.dtype)
        soft = _relaxed(pairs, merges, position, n, gain)
        step = hard + (soft - soft.detach())  # the value of the first, the gradient of the second
        shares = step if shares is None else torch.bmm(shares, step)
        if n > count:
            keys, sizes, both = merged_keys(keys, sizes, both, SoftAssignment(step))
    assert shares is not None  # `count` is less than N
    return SoftAssignment(shares)


def _relaxed(pairs: Tensor, merges: int, position: Tensor, count: int, gain: Tensor) -> Tensor:
    """Shares of one round, (B, N, count).

    A token at an even position merges with probability m, Σ m = `merges`, into the partner j with probability
    q_j = softmax over j of κ · similarity, and stays with probability 1 − m, if it has a place to stay.
    """
    batch, evens, odds = pairs.shape
    partner = (gain * pairs).softmax(dim=-1)
    best = (partner.detach() * pairs).sum(dim=-1)
    merging = soft_top_k(gain * best, merges) if merges < evens else torch.ones_like(best)
    to_odd = (
        (merging[..., None] * partner)
        .new_zeros(batch, evens, count)
        .scatter_add(2, position[:, None, 1::2].expand(-1, evens, -1), merging[..., None] * partner)
    )
    own = position[:, 0::2]
    stays = (position[:, None, 1::2] != own[..., None]).all(dim=-1)
    to_self = F.one_hot(own, count).to(pairs.dtype) * (stays * (1 - merging))[..., None]
    even = to_odd + to_self
    odd = F.one_hot(position[:, 1::2], count).to(pairs.dtype)
    shares = pairs.new_zeros(batch, evens + odds, count)
    shares[:, 0::2], shares[:, 1::2] = even, odd
    return shares
