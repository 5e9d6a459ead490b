"""Differentiable top-k: shares in (0, 1) that sum to k, with their exact gradient.

From VisionSelector (Zhu et al., 2025, https://arxiv.org/abs/2510.16598).
"""

import torch
from torch import Tensor

BISECTIONS = 64
"""Halvings of the interval of the threshold: as many as a float64 has bits."""
REACH = 40.0
"""Beyond it, a sigmoid is 0 or 1 in float32."""


def soft_top_k(scores: Tensor, k: int) -> Tensor:
    """σ(s + t) with the t for which the shares sum to k.

    The gradient is that of the exact solution, through t: ∂p/∂s = diag(v) − v vᵀ / Σ v with v = p (1 − p).

    Args:
        scores: (B, N) float32 or float64.
        k: Sum of the shares, in 1 to N − 1.

    Returns:
        (B, N).

    Raises:
        ValueError: For another k.
    """
    n = scores.shape[1]
    if not 0 < k < n:
        raise ValueError(f"`k` must be between 1 and {n - 1}, one less than the number of scores, but got {k=}.")
    with torch.no_grad():
        low = -scores.amax(dim=1, keepdim=True) - REACH
        high = -scores.amin(dim=1, keepdim=True) + REACH
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            few = (scores + middle).sigmoid().sum(dim=1, keepdim=True) < k
            low, high = torch.where(few, middle, low), torch.where(few, high, middle)
        threshold = (low + high) / 2
        p = (scores + threshold).sigmoid()
        v = p * (1 - p)
        # Where all scores are far from the threshold, all v are zero, and so is the gradient.
        v = v / v.sum(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    change = scores - scores.detach()  # zero, with the gradient of the scores
    return (scores + threshold - (v * change).sum(dim=1, keepdim=True)).sigmoid()
