"""The Learnable Token Merging operator, soft form.

LTM's mask module is an unrolled gradient step on IBB, a separable upper bound of the information-bottleneck loss
("Efficient Visual Transformer by Learnable Token Merging", Wang & Yang, 2024). The gradient with respect to the mask
has the form ∇G_np = ⟨Z_n, R_p⟩; the module starts from a place prior and takes a step in a learned direction of that
form, at rank d.

Shapes: B images, G groups that share the mask, N tokens in, P tokens out, D channels, d mask rank, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.grid import Grid
from ltmsearch.merging.operator import Merge, MergeOperator, register_operator
from ltmsearch.merging.prior import prior_matrix

RANK = 16
"""d: width of the space in which tokens are compared with the seeds of the merged tokens."""
HEADS = 4
"""H: channel groups with an importance of their own."""
IMPORTANCE_LIMIT = 4.0
"""The learned log-importance is clamped to ± this: no token counts more than e⁴ times its size."""
CONTENT_GAIN = 20.0
"""κ at the start when LTM is put into trained weights: tokens cluster by content."""
PLACE_GAIN = 0.0
"""κ at the start when training from scratch: tokens merge by place until training finds better."""


def assignment(content: Tensor, sizes: Tensor, prior: Tensor, directions: Tensor, kappa: Tensor) -> Tensor:
    """A: how much of token n goes to merged token p.

        v = l2norm(z V),   c = l2norm(Oᵀ (s·v)),   A = softmax over p of (log O + κ · v cᵀ)

    Args:
        content: (B, N, D) normalised tokens z.
        sizes: (B, N) s.
        prior: (N, P) O, rows sum to 1.
        directions: (B, N, d) the projection z V.
        kappa: () gain of content over place, ≥ 0.

    Returns:
        (B, N, P) float32; rows sum to 1; zero where the prior is zero.
    """
    values = F.normalize(directions, dim=-1)
    seeds = F.normalize((sizes[..., None] * values).transpose(1, 2) @ prior, dim=1)  # (B, d, P)
    return (prior.log() + kappa * (values @ seeds)).softmax(dim=-1)


class LearnableTokenMerging(MergeOperator):
    """The elastic mask module: V (D, d) and κ say which tokens belong together, u (D, H) which of them count.

    With κ = 0 and u = 0 it is area pooling, the operator `pool`.

    Args:
        dim: D, divisible by `HEADS`.
        content_gain: κ at the start (`CONTENT_GAIN` or `PLACE_GAIN`).

    Raises:
        ValueError: If `dim` cannot be divided into heads.
    """

    name = "ltm"

    def __init__(self, dim: int, content_gain: float = PLACE_GAIN) -> None:
        super().__init__()
        if dim % HEADS or dim < RANK:
            raise ValueError(f"`dim` must be a multiple of {HEADS} and at least {RANK}, but got {dim=}.")
        # The same orthonormal start in every layer and every run: it does not use up the caller's random numbers.
        start = torch.randn(dim, RANK, generator=torch.Generator().manual_seed(0))
        self.directions = nn.Parameter(torch.linalg.qr(start)[0].contiguous())
        self.importance = nn.Parameter(torch.zeros(dim, HEADS))
        self.kappa = nn.Parameter(torch.tensor(float(content_gain)))

    def no_weight_decay(self) -> set[str]:
        """See `MergeOperator.no_weight_decay`."""
        return {"importance", "kappa"}

    def mask(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid) -> tuple[Tensor, Tensor]:
        """A and the weights w of the tokens, from the mean of the groups.

        Args:
            tokens: (B, G, N, D).
            sizes: (B, N).

        Returns:
            A (B, N, P) with rows that sum to 1, and w (B, N, H) > 0; float32.
        """
        # The mask sees the tokens but does not train them: a sharp softmax into Z harms the backbone.
        content = tokens.detach().float().mean(dim=1)
        content = F.layer_norm(content, content.shape[-1:])
        projected = content @ torch.cat((self.directions, self.importance), dim=1)
        directions, log_weights = projected.split((RANK, HEADS), dim=-1)
        # κ ≥ 0, with the gradient of the identity: a κ that a step took below zero can come back.
        kappa = self.kappa + (self.kappa.clamp_min(0) - self.kappa).detach()
        prior = prior_matrix(grid, target, tokens.device)
        a = assignment(content, sizes, prior, directions, kappa)
        w = sizes[..., None] * log_weights.clamp(-IMPORTANCE_LIMIT, IMPORTANCE_LIMIT).exp()
        return a, w

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """X̃_p = Σ_n A_np w_n Z_n / Σ_n A_np w_n per head, sizes Aᵀ s; arguments as in `MergeOperator`."""
        groups = tokens.shape[1]
        with torch.autocast(tokens.device.type, enabled=False):
            a, w = self.mask(tokens, sizes, grid, target)
            totals = a.transpose(1, 2) @ torch.cat((w, sizes[..., None]), dim=-1)  # (B, P, H + 1)
        to_merged = a.to(tokens.dtype).transpose(1, 2)[:, None].expand(-1, groups, -1, -1)
        weighted = tokens.unflatten(-1, (HEADS, -1)) * w[:, None, ..., None].to(tokens.dtype)
        summed = (to_merged @ weighted.flatten(-2)).unflatten(-1, (HEADS, -1))
        merged = (summed / totals[:, None, :, :HEADS, None].to(summed.dtype)).flatten(-2)
        back = a.to(tokens.dtype)[:, None].expand(-1, groups, -1, -1)
        return Merge(tokens=merged, sizes=totals[..., HEADS], spread=lambda change: back @ change)

    @staticmethod
    def merge_macs(n: int, p: int, *, dim: int, key_dim: int, groups: int) -> int:
        """Norm (4 per element), projection, seeds, logits, weighted sum of the tokens, their totals."""
        mask = 4 * n * dim + n * dim * (RANK + HEADS) + 2 * n * p * RANK
        return mask + groups * n * p * dim + n * p * (HEADS + 1)

    @staticmethod
    def unmerge_macs(n: int, p: int, *, dim: int, groups: int) -> int:
        """One product A (X̃_out − X̃_in) per group."""
        return groups * n * p * dim


register_operator(LearnableTokenMerging)
