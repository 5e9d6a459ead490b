"""A gradient step on IBB with respect to the mask of a merge.

IBB, a separable upper bound of the information-bottleneck loss (`engine/ib_loss.py`), is what the mask modules of
"Efficient Visual Transformer by Learnable Token Merging" (Wang & Yang, 2024, https://arxiv.org/abs/2407.15219) descend:
mask G maps Z to merged tokens X̃ = Gᵀ Z, and consecutive modules are consecutive steps. The paper's text of the step was
not to be had, so it is derived here from the bound. With memberships φ̃_a = softmax_a(−β ‖X̃ − C_a‖²) in clusters with
centroids C and ψ_a = Σ_b φ_b log φ_b − log Q(a | y) of the image and its label y,

    ∂/∂G Σ_a φ̃_a ψ_a = Z Rᵀ,   R = 2β Σ_a φ̃_a ψ_a (C_a − C̄),   C̄ = Σ_a φ̃_a C_a

Three things differ from the paper, where X̃ is one matrix of all P merged tokens and so is each centroid:

* Every merged token belongs to clusters by itself, and centroids C_a of D channels serve all of them: one set of
  weights for every P. IBB of the memberships averaged over P is still a bound, that of a merged token drawn at random,
  with Q of the same memberships. Its gradient by column p is that of token p alone, up to 1/P, which is left out.
* At inference labels are unknown. ψ is read out of the image's own memberships, s + φ̄ S with learned s and S: in effect
  the label is guessed. With s alone, where classes are separated already, the step leads all images to the cluster that
  is least bad for all classes, and raises IBB. Terms of ψ that do not depend on a cancel.
* Steps are multiplicative, G ∝ G · exp(−η ∂) with normalised columns: a mirror descent on the same gradient. With
  G − η ∂, clamped at zero, a local mask becomes dense, and where both lower IBB equally, a trained ViT moves much
  further from its predictions (`benchmarks/gradient_step.py`).

As R lies in the span of the centroids, nothing wider than A is computed from tokens: Z Rᵀ = (Z Cᵀ) Wᵀ.

Shapes: B images, N tokens on an h×w grid, P merged tokens on a p×q grid, A clusters, D channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.merging.constants import constant_tensors
from ltmsearch.merging.prior import side_shares
from ltmsearch.schedules.grid import Grid

BETA = 5.0
"""β of the memberships: between unit vectors, clusters overlap, but a token mostly belongs to a few of them."""
CHANGE_LIMIT = 4.0
"""Largest absolute logarithm of the change of a mask: no share grows or shrinks by more than e⁴ against the prior."""


@dataclass(frozen=True, kw_only=True)
class MaskChange:
    """How steps have changed a mask: the logarithm of its ratio to the prior, up to a constant per column."""

    log_ratio: Tensor
    """(B, N, P) float32."""
    grid: Grid
    """(h, w)."""
    target: Grid
    """(p, q)."""

    def on(self, grid: Grid, target: Grid) -> Tensor:
        """The logarithm between other grids that cover the same image: (B, N', P') means over the area they share.

        By index and sums, which cost no matrix product: the cost of a merge does not depend on the merge before it.
        """
        change = _resampled(self.log_ratio, self.grid, grid)
        return _resampled(change.transpose(1, 2), self.target, target).transpose(1, 2)


def _resampled(values: Tensor, before: Grid, after: Grid) -> Tensor:
    """Mean of (B, N, C) values over the area of each cell of another grid: (B, N', C)."""
    if before == after:
        return values
    cells, shares = constant_tensors(covered_cells, before, after, device=values.device)  # (N', K)
    near = values.index_select(1, cells.flatten()).reshape(values.shape[0], *cells.shape, values.shape[2])
    return (near * shares[..., None]).sum(dim=2)


def covered_cells(before: Grid, after: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The cells of grid `before` under each cell of grid `after`: (N', K) int64 indices, and shares of its area.

    K is the largest number of such cells; the share of further ones is zero.
    """
    rows, columns = (side_shares(new, old)[0] for old, new in zip(before, after, strict=True))
    overlap = np.kron(rows, columns)  # (N', N), rows sum to 1
    most = int((overlap > 0).sum(axis=1).max())
    cells = np.argsort(-overlap, axis=1, kind="stable")[:, :most]
    return cells, np.take_along_axis(overlap, cells, axis=1)


def unit_tokens(tokens: Tensor, dim: int) -> Tensor:
    """(B, N, D) tokens in float32, normalised over channels (no weights) and divided by √D, so that length is 1.

    Distances then depend neither on the layer nor on D, and one β serves all. `dim`: D.
    """
    return F.layer_norm(tokens.float(), (dim,)) / dim**0.5


def memberships(products: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """φ̃: softmax_a(−β ‖X̃ − C_a‖²) from (B, P, A) products X̃ Cᵀ and (A, D) centroids."""
    # ‖X̃‖² is the same for every a and drops out of the softmax.
    return (beta * (2 * products - centroids.square().sum(dim=-1))).softmax(dim=-1)


def expected_scores(inside: Tensor, scores: Tensor, readout: Tensor) -> Tensor:
    """ψ of images whose labels are unknown: s + φ̄ S, with the mean φ̄ of an image's memberships.

    From (B, P, A) memberships, (A,) s and (A, A) S to (B, 1, A).
    """
    return (scores + inside.mean(dim=1) @ readout)[:, None]


def mask_gradient(products: Tensor, inside: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Gradient of Σ_a φ̃_pa ψ_a with respect to column p of G, for each merged token p: Z R_pᵀ.

    Args:
        products: (B, N, A) Z Cᵀ.
        inside: (B, P, A) φ̃ at G.
        scores: (B, 1, A) ψ, or any shape that broadcasts to (B, P, A).
        beta: β.

    Returns:
        (B, N, P).
    """
    weighted = inside * scores
    weights = weighted - inside * weighted.sum(dim=-1, keepdim=True)  # W: R = 2β W C
    return torch.bmm(products, (2 * beta * weights).transpose(-2, -1))


def step_down(change: Tensor | None, gradient: Tensor, mask: Tensor, rate: Tensor) -> Tensor:
    """The change of a mask, as a logarithm, after a step: `change` − η (∂ − its mean under each column of the mask).

    A constant per column does not change a normalised column; without it the limit counts from the middle.

    Args:
        change: (B, N, P) before the step; None: zero.
        gradient: (B, N, P) ∂ at the mask.
        mask: (B, N, P) G; columns sum to 1.
        rate: η.
    """
    step = rate * (gradient - (mask * gradient).sum(dim=1, keepdim=True))
    return (-step if change is None else change - step).clamp(-CHANGE_LIMIT, CHANGE_LIMIT)


def changed_mask(log_prior: Tensor, log_sizes: Tensor, change: Tensor | None) -> Tensor:
    """G: the prior, weighted by the sizes of tokens and changed, with columns that sum to 1.

    From (N, P) logarithms of the prior, (B, N) of the sizes and (B, N, P) of the change (None: zero) to (B, N, P).
    """
    logits = log_prior + log_sizes[..., None]
    return (logits if change is None else logits + change).softmax(dim=1)
