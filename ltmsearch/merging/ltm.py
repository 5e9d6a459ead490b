"""The Learnable Token Merging operator in its three forms.

LTM's mask module is an unrolled gradient step on IBB, a separable upper bound of the information-bottleneck loss
("Efficient Visual Transformer by Learnable Token Merging", Wang & Yang, 2024). The gradient with respect to the mask
has the form ∇G_np = ⟨Z_n, R_p⟩; the module starts from a place prior and takes a step in a learned direction of that
form, at rank d.

The *soft* form shares every token out over merged tokens, by two matrix products with an (N, P) mask. The *hard* form
sends it whole to the one it belongs to most, by index, and builds no such matrix; its seeds are the soft form's. The
*matched* form leaves the grid: it joins the most alike tokens wherever they are, as ToMe does, but along the learned
directions and with the learned importance. It is what holds best in a trained network where merges accumulate and
nothing comes back (ViT): on a grid, tokens that differ must merge because they are neighbours. All forms have the same
weights, so that what was trained in one can run in another.

Shapes: B images, G groups that share the mask, N tokens in, P tokens out, D channels, d mask rank, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.grid import Grid
from ltmsearch.grid import tokens as token_count
from ltmsearch.merging.assignment import Assignment, HardAssignment, SoftAssignment
from ltmsearch.merging.matching import average, match, matching_macs
from ltmsearch.merging.operator import MaskStart, Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.prior import SPREAD, near_cell_tensors, prior_matrix, side_share_tensors
from ltmsearch.schedule import Form

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
EMPTY_SIZE = 1e-4
"""Size of a merged token that no token goes to: attention all but ignores it."""
NEAR = 9
"""Cells that a token may go to: the 3×3 around it."""


def soft_shares(values: Tensor, sizes: Tensor, prior: Tensor, kappa: Tensor) -> Tensor:
    """A: how much of token n goes to merged token p.

        c = l2norm(Oᵀ (s·v)),   A = softmax over p of (log O + κ · v cᵀ)

    Args:
        values: (B, N, d) unit vectors v.
        sizes: (B, N) s.
        prior: (N, P) O, rows sum to 1.
        kappa: () gain of content over place, ≥ 0.

    Returns:
        (B, N, P) float32; rows sum to 1; zero where the prior is zero.
    """
    seeds = F.normalize((sizes[..., None] * values).transpose(1, 2) @ prior, dim=1)  # (B, d, P)
    return (prior.log() + kappa * (values @ seeds)).softmax(dim=-1)


def near_shares(values: Tensor, sizes: Tensor, grid: Grid, target: Grid, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """The same A on the 3×3 cells around each token, which hold all of it, without an (N, P) matrix.

    Args:
        values: (B, N, d) unit vectors v.
        sizes: (B, N) s.
        grid: (h, w) with h·w = N.
        target: (p, q) with p·q = P.
        kappa: () gain of content over place, ≥ 0.

    Returns:
        (N, 9) int64 cells and (B, N, 9) float32 shares; rows sum to 1.
    """
    cells, log_prior = near_cell_tensors(grid, target, values.device)
    seeds = F.normalize(_pooled_by_prior(sizes[..., None] * values, grid, target), dim=-1)  # (B, P, d)
    near = seeds.index_select(1, cells.flatten()).unflatten(1, cells.shape)  # (B, N, 9, d)
    likeness = (near @ values[..., None]).squeeze(-1)
    return cells, (log_prior + kappa * likeness).softmax(dim=-1)


def _pooled_by_prior(values: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Oᵀ values, side by side: (B, N, C) to (B, P, C)."""
    (rows, near_rows), (columns, near_columns) = _sides(grid, target, values.device)
    return (1 - SPREAD) * _side_by_side(values, grid, rows, columns) + SPREAD * _side_by_side(
        values, grid, near_rows, near_columns
    )


def area_mean(values: Tensor, grid: Grid, target: Grid) -> Tensor:
    """The mean of the tokens under each merged token by the area they share: (B, G, N, C) to (B, G, P, C)."""
    rows, columns = (side[0] for side in _sides(grid, target, values.device))
    rows, columns = (side / side.sum(dim=1, keepdim=True) for side in (rows, columns))
    return _side_by_side(values.flatten(0, 1), grid, rows, columns).unflatten(0, values.shape[:2])


def _sides(grid: Grid, target: Grid, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    return [side_share_tensors(length, short, device) for length, short in zip(grid, target, strict=True)]


def _side_by_side(values: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """(R ⊗ C) values with (p, h) R and (q, w) C: (B, h·w, C) to (B, p·q, C)."""
    batch, _, channels = values.shape
    by_rows = rows.to(values.dtype).expand(batch, -1, -1) @ values.reshape(batch, grid[0], -1)  # (B, p, w·C)
    by_rows = by_rows.reshape(-1, grid[1], channels)
    both = columns.to(values.dtype).expand(by_rows.shape[0], -1, -1) @ by_rows  # (B·p, q, C)
    return both.reshape(batch, -1, channels)


@register_operator
class LearnableTokenMerging(MergeOperator):
    """The elastic mask module: V (D, d) and κ say which tokens belong together, u (D, H) which of them count.

    With κ = 0 and u = 0 its soft form is area pooling, the operator `pool`.

    Args:
        dim: D, divisible by `HEADS`.
        start: How it merges before it is trained.

    Raises:
        ValueError: If `dim` cannot be divided into heads.
    """

    name = "ltm"
    forms = ("soft", "hard", "matched")

    def __init__(self, dim: int, start: MaskStart = "auto") -> None:
        super().__init__(dim, start)
        if dim % HEADS or dim < RANK:
            raise ValueError(f"`dim` must be a multiple of {HEADS} and at least {RANK}, but got {dim=}.")
        self._start = start
        # The same orthonormal start in every layer and every run: it does not use up the caller's random numbers.
        directions = torch.randn(dim, RANK, generator=torch.Generator().manual_seed(0))
        self.directions = nn.Parameter(torch.linalg.qr(directions)[0].contiguous())
        self.importance = nn.Parameter(torch.zeros(dim, HEADS))
        self.kappa = nn.Parameter(torch.tensor(CONTENT_GAIN if start == "content" else PLACE_GAIN))

    def no_weight_decay(self) -> set[str]:
        """See `MergeOperator.no_weight_decay`."""
        return {"importance", "kappa"}

    def assign(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid) -> tuple[Assignment, Tensor]:
        """Where the tokens go and how much they count, from the mean of the groups.

        Args:
            tokens: (B, G, N, D).
            sizes: (B, N).
            grid: (h, w) with h·w = N.
            target: (p, q) with p·q = P.

        Returns:
            The assignment, and (B, N, H) weights w > 0; float32.
        """
        # The mask sees the tokens but does not train them: a sharp softmax into Z harms the backbone.
        content = tokens.detach().float().mean(dim=1)
        content = F.layer_norm(content, content.shape[-1:])
        projected = content @ torch.cat((self.directions, self.importance), dim=1)
        directions, log_weights = projected.split((RANK, HEADS), dim=-1)
        values = F.normalize(directions, dim=-1)
        # κ ≥ 0, with the gradient of the identity: a κ that a step took below zero can come back.
        kappa = self.kappa + (self.kappa.clamp_min(0) - self.kappa).detach()
        weights = sizes[..., None] * log_weights.clamp(-IMPORTANCE_LIMIT, IMPORTANCE_LIMIT).exp()
        if self.form == "soft":
            shares = soft_shares(values, sizes, prior_matrix(grid, target, tokens.device), kappa)
            return SoftAssignment(shares), weights
        if self.form == "matched":
            return self._matched(values, sizes, kappa, token_count(target)), weights
        cells, shares = near_shares(values, sizes, grid, target, kappa)
        best, choice = shares.max(dim=-1)  # (B, N)
        position = cells.expand(choice.shape[0], -1, -1).gather(2, choice[..., None]).squeeze(-1)
        # One, but with the gradient of the logarithm of the share: what gains from the choice makes it surer.
        gate = best / best.detach() if best.requires_grad else None
        return HardAssignment(position, token_count(target), gate), weights

    def _matched(self, values: Tensor, sizes: Tensor, kappa: Tensor, count: int) -> HardAssignment:
        """The assignment by matching (B, N, d) unit vectors v, whatever the grid."""
        position = match(values.detach(), sizes, count)
        if not values.requires_grad:
            return HardAssignment(position, count)
        # What chose is not differentiable: as a stand-in, how surely a token's likeness to its merged token joins it.
        seeds, _ = average(values[:, None], sizes, HardAssignment(position, count))
        own = HardAssignment(position, count).spread(F.normalize(seeds, dim=-1))[:, 0]
        sure = (kappa * (values * own).sum(dim=-1)).sigmoid()
        return HardAssignment(position, count, sure / sure.detach())

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """X̃_p = Σ_n A_np w_n Z_n / Σ_n A_np w_n per head, sizes Aᵀ s; arguments as in `MergeOperator`."""
        with torch.autocast(tokens.device.type, enabled=False):
            assignment, w = self.assign(tokens, sizes, grid, target)
            totals = assignment.collect(torch.cat((w, sizes[..., None]), dim=-1)[:, None])  # (B, 1, P, H + 1)
        totals, merged_sizes = totals[..., :HEADS], totals[:, 0, :, HEADS]
        weighted = tokens.unflatten(-1, (HEADS, -1)) * w[:, None, ..., None].to(tokens.dtype)
        summed = assignment.collect(weighted.flatten(-2))
        empty = totals[..., :1] == 0  # in the soft form only where a very large κ leaves no share above zero
        totals, merged_sizes = totals + empty, merged_sizes.clamp_min(EMPTY_SIZE)
        merged = (summed.unflatten(-1, (HEADS, -1)) / totals[..., None].to(summed.dtype)).flatten(-2)
        if self.fills_empty and self.form == "hard":
            merged = torch.where(empty, area_mean(tokens, grid, target).to(merged.dtype), merged)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    def settle_in_trained_weights(self) -> None:
        """Where the start was left open, cluster by content from now on."""
        if self._start == "auto":
            with torch.no_grad():
                self.kappa.fill_(CONTENT_GAIN)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Norm (4 per element) and projection; then seeds, logits and the weighted sums of the form."""
        n, p, d = shape.n, shape.p, shape.dim
        mask = 4 * n * d + n * d * (RANK + HEADS)
        if form == "soft":
            return mask + 2 * n * p * RANK + shape.groups * n * p * d + n * p * (HEADS + 1)
        if form == "matched":
            return mask + matching_macs(n, p, RANK)
        side_by_side = shape.target[0] * n + p * shape.grid[1]  # rows first, then columns; per channel
        mask += 2 * RANK * side_by_side + n * NEAR * RANK
        return mask + (shape.groups * d * side_by_side if shape.filled else 0)

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """One product A (X̃_out − X̃_in) per group; by index it counts zero."""
        return shape.groups * shape.n * shape.p * shape.dim if form == "soft" else 0
