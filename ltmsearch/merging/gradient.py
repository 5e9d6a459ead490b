"""The module that steps down the gradient of IBB, by weights that serve every keep ratio and image size.

Shapes: B images, N tokens, P merged tokens, A clusters, D channels.
"""

from math import log
from typing import Any

import torch
from torch import Tensor, nn

from ltmsearch.merging.constants import constant_tensors
from ltmsearch.merging.ib_step import (
    BETA,
    MaskChange,
    changed_mask,
    expected_scores,
    mask_gradient,
    memberships,
    step_down,
    unit_tokens,
)
from ltmsearch.merging.prior import log_overlap
from ltmsearch.schedules.grid import Grid

CLUSTERS = 16
"""A."""
START_RATE = 10.0
"""η until it is fitted: about what is found in trained networks."""


class GradientStep(nn.Module):
    """One step of a mask down the gradient of IBB, by centroids C (A, D), scores s and S, and the logarithm of η.

    Scores start at zero, so that the first step is none and masks are those of the prior, until scores are trained or
    fitted to data (`engine/mask_fit.py`).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        # The same orthonormal start in every layer and run, from a generator of its own.
        directions = torch.randn(dim, CLUSTERS, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
        self.centroids = nn.Parameter(torch.linalg.qr(directions)[0].T.contiguous())
        self.scores = nn.Parameter(torch.zeros(CLUSTERS))
        self.readout = nn.Parameter(torch.zeros(CLUSTERS, CLUSTERS))
        self.log_rate = nn.Parameter(torch.tensor(log(START_RATE)))

    @property
    def fitted(self) -> bool:
        """Whether scores have left their start."""
        return bool(self.scores.any() or self.readout.any())

    def set(self, centroids: Tensor, scores: Tensor, readout: Tensor, rate: float) -> None:
        """Replace the weights."""
        with torch.no_grad():
            self.centroids.copy_(centroids)
            self.scores.copy_(scores)
            self.readout.copy_(readout)
            self.log_rate.fill_(log(rate))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # They may be missing only if all weights of the operator are: see `MergeOperator`.
        if any(name.startswith(prefix.removesuffix("step.")) for name in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, change: MaskChange | None
    ) -> tuple[Tensor, Tensor, MaskChange]:
        """One step from the mask of `change`, or from the prior if it is None.

        From (B, N, D) tokens and (B, N) sizes to G, (B, N, P) with columns that sum to 1; the shares of each token in
        the merged tokens, (B, N, P) with rows that sum to 1; and the change of the mask.
        """
        (log_prior,) = constant_tensors(log_overlap, grid, target, device=tokens.device)
        log_sizes = sizes.log()
        centroids = self.centroids.float()
        products = unit_tokens(tokens, self.dim) @ centroids.T
        before = None if change is None else change.on(grid, target)
        mask = changed_mask(log_prior, log_sizes, before)
        inside = memberships(torch.bmm(mask.transpose(-2, -1), products), centroids, BETA)
        gradient = mask_gradient(
            products, inside, expected_scores(inside, self.scores.float(), self.readout.float()), BETA
        )
        after = step_down(before, gradient, mask, self.log_rate.float().exp())
        shares = (log_prior + after).softmax(dim=-1)
        return changed_mask(log_prior, log_sizes, after), shares, MaskChange(log_ratio=after, grid=grid, target=target)

    @staticmethod
    def macs(n: int, p: int, dim: int) -> int:
        """Norm (4 per element), products with the centroids, memberships, scores, gradient."""
        return n * dim * (4 + CLUSTERS) + 2 * n * p * CLUSTERS + CLUSTERS**2
