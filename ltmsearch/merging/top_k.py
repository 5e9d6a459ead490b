"""The k largest scores; and differentiable, as shares in (0, 1) that sum to k, with their exact gradient.

The latter from VisionSelector (Zhu et al., 2025, https://arxiv.org/abs/2510.16598).
"""

import torch
from torch import Tensor

BISECTIONS = 64
"""Halvings of the interval of the threshold: as many as a float64 has bits."""
REACH = 40.0
"""Beyond it, a sigmoid is 0 or 1 in float32."""


def ranked(scores: Tensor) -> Tensor:
    """(B, N) numbers of the scores from the largest to the smallest; equal ones keep their order."""
    # ONNX has only a stable sort, and its older exporter only knows the other one.
    if torch.onnx.is_in_onnx_export():
        return scores.sort(descending=True)[1]
    return scores.argsort(descending=True, stable=True)


def top_k(scores: Tensor, k: int) -> Tensor:
    """(B, k) numbers of the k largest of (B, N) scores, in ascending order; of equal ones the first."""
    return ranked(scores)[:, :k].sort(dim=1)[0]


def soft_top_k(scores: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """σ(s + t) with the t for which the shares sum to k; with weights, Σ w σ(s + t) = k.

    The gradient is that of the exact solution, through t: ∂p/∂s = diag(v) − v vᵀ / Σ v with v = p (1 − p).

    Args:
        scores: (B, N) float32 or float64.
        k: Sum of the shares, in 1 to N − 1.
        weights: (B, N) > 0; None: 1 each. Where they sum to less than k, all shares are 1.

    Returns:
        (B, N).

    Raises:
        ValueError: For another k.
    """
    n = scores.shape[1]
    if not 0 < k < n:
        raise ValueError(f"`k` must be between 1 and {n - 1}, one less than the number of scores, but got {k=}.")
    with torch.no_grad():
        w = torch.ones_like(scores) if weights is None else weights
        low = -scores.amax(dim=1, keepdim=True) - REACH
        high = -scores.amin(dim=1, keepdim=True) + REACH
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            few = (w * (scores + middle).sigmoid()).sum(dim=1, keepdim=True) < k
            low, high = torch.where(few, middle, low), torch.where(few, high, middle)
        threshold = (low + high) / 2
        p = (scores + threshold).sigmoid()
        v = w * p * (1 - p)
        # Where all scores are far from the threshold, all v are zero, and so is the gradient.
        by_all = 1 / v.sum(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        v, p = v * by_all, p * by_all
    excess = v * (scores - scores.detach())  # zero, with the gradient of the scores
    if weights is not None:
        excess = excess + p * (weights - weights.detach())
    return (scores + threshold - excess.sum(dim=1, keepdim=True)).sigmoid()
