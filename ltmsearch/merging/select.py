"""Selection of tokens by a learned score: the best stay as they are, the others are dropped.

From VisionSelector (Zhu et al., 2025, https://arxiv.org/abs/2510.16598), which selects among the visual tokens of a
language model, once, with everything else frozen. Differences: see docs/method.md.

Shapes: B images, G groups that share the selection, N tokens, of which P stay, D channels, h = D/2.
"""

from dataclasses import replace
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.merging.assignment import PartialSelection, Selection
from ltmsearch.merging.operator import MaskStart, Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.precision import full_precision
from ltmsearch.merging.top_k import soft_top_k, top_k
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.grid import tokens as token_count
from ltmsearch.schedules.schedule import Form

DEVIATION = 0.01
"""Standard deviation of the weights at their start: the N(0, 1e-4) of the source, read as a variance."""
CURRICULUM = (0.1, 2.0)
"""λ at the start of a training and at its end."""
SMALLEST = 1e-6
"""Size of a token whose share is smaller, so that its logarithm is finite."""
GONE = 1e-3
"""Largest size of padding, and of what an earlier layer has left out in training: it comes last, whatever its score."""


def indecision(shares: Tensor, stays: Tensor, sizes: Tensor) -> Tensor:
    """Cross-entropy of shares p with the choice: −log p of a token that stays, −log(1 − p) of another.

    The mean over tokens by size; all (B, N), `stays` of truth values.
    """
    of_choice = torch.where(stays, shares, 1 - shares).clamp_min(torch.finfo(shares.dtype).tiny)
    return -((sizes * of_choice.log()).sum(dim=1) / sizes.sum(dim=1)).mean()


def taken(tokens: Tensor, sizes: Tensor, selection: Selection) -> Merge:
    """The merge that keeps the selected of (B, G, N, D) tokens with (B, N) sizes."""
    return Merge(
        tokens=selection.pick(tokens),
        sizes=selection.collect_few(sizes[:, None])[:, 0],
        assignment=selection,
        left_out=selection.left_out(),
    )


@register_operator
class TokenSelection(MergeOperator):
    """A scorer of width h, and the P tokens with the largest scores.

        s_i = mean_j (W_q x_i)·(W_k x_j + b) / √h      mean_j W_k x_j = W_k mean(x): linear in N
        p = σ(s + t) with the t for which Σ p = P

    In training all tokens go on, with p as their sizes: attention and pooling count them by it, and an unmerge hands
    back p times their change. Where a convolution needs the smaller grid, the P tokens are taken in training too, and
    only the gradient is that of p. A loss of the operator's own makes p decided: λ times its cross-entropy with the
    choice, λ growing linearly.

    Args:
        dim: D.
        start: Not used: a score knows no place.
    """

    name = "select"
    forms = ("select",)
    drops = True

    def __init__(self, dim: int, start: MaskStart = "auto") -> None:
        super().__init__(dim, start)
        # The same start in every layer and run, from a generator of its own.
        generator = torch.Generator().manual_seed(0)
        width = dim // 2
        query, key = (DEVIATION * torch.randn(width, dim, generator=generator, dtype=torch.float32) for _ in range(2))
        self.dim = dim
        self.query = nn.Parameter(query)
        self.key = nn.Parameter(key)
        self.key_bias = nn.Parameter(torch.zeros(width))

    def scores(self, tokens: Tensor, sizes: Tensor) -> Tensor:
        """(B, N) float32 scores of (B, G, N, D) tokens; the mean over tokens is weighted by their (B, N) sizes."""
        content = tokens.detach().float()  # the backbone learns from the tokens that stay
        content = content.mean(dim=1) if tokens.shape[1] > 1 else content[:, 0]
        content = F.layer_norm(content, (self.dim,))
        center = (content * sizes[..., None]).sum(dim=1) / sizes.sum(dim=1, keepdim=True)  # (B, D)
        key = F.linear(center, self.key.float(), self.key_bias.float())  # (B, h)
        direction = key @ self.query.float() / sqrt(key.shape[1])  # (B, D)
        return torch.bmm(content, direction[..., None])[..., 0]

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        stay = token_count(target)
        with full_precision(tokens.device):
            scores = self.scores(tokens, sizes.detach())
            kept = top_k((scores + sizes.log()).detach().masked_fill(sizes < GONE, -torch.inf), stay)
            selection = Selection(kept, int(tokens.shape[2]))
            if not (self.training and scores.requires_grad):
                return taken(tokens, sizes, selection)
            shares = soft_top_k(scores, stay, sizes)
            if self.own_losses is not None:
                self.own_losses.append(indecision(shares, selection.left_out() == 0, sizes.detach()))
            return self.relaxed(self.with_all_weights(tokens), sizes, replace(selection, shares=shares), shares)

    def relaxed(self, tokens: Tensor, sizes: Tensor, selection: Selection, shares: Tensor) -> Merge:
        """The merge while training, with a gradient to the (B, N) shares."""
        if self.needs_grid:
            return taken(tokens, sizes, selection)
        partial = (sizes * shares).clamp_min(SMALLEST)
        return Merge(tokens=tokens, sizes=partial, assignment=PartialSelection(shares), left_out=1 - shares)

    def own_loss_weight(self, progress: float) -> float:
        """λ."""
        first, last = CURRICULUM
        return first + (last - first) * progress

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Norm (4 per element), the products with W_k and W_q, and that of each token with the result."""
        return 4 * shape.n * shape.dim + 2 * (shape.dim // 2) * shape.dim + shape.n * shape.dim

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """Values are put back by index."""
        return 0
