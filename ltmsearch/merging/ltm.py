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

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.merging.assignment import Assignment, HardAssignment, SoftAssignment
from ltmsearch.merging.constants import tensors
from ltmsearch.merging.matching import average, match, matching_macs, unit
from ltmsearch.merging.operator import MaskStart, Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.prior import area_overlap, local_cells, log_overlap, mean_sides, seed_sides
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.grid import tokens as token_count
from ltmsearch.schedules.schedule import Form

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
EMPTY_TOTAL = 1e-30
"""Total weight of a merged token that no token goes to, so that nothing divided by it is zero."""
EMPTY_SIZE = 1e-4
"""Size of a merged token that no token goes to: attention all but ignores it."""
NEAR = 9
"""Cells that a token may go to: the 3×3 around it."""


def soft_shares(values: Tensor, sizes: Tensor, grid: Grid, target: Grid, kappa: Tensor) -> Tensor:
    """A: how much of token n goes to merged token p.

        c = l2norm(Oᵀ (s·v)),   A = softmax over p of (log O + κ · v cᵀ)

    Args:
        values: (B, N, d) unit vectors v.
        sizes: (B, N) s.
        grid: (h, w) with h·w = N.
        target: (p, q) with p·q = P.
        kappa: () gain of content over place, ≥ 0.

    Returns:
        (B, N, P) float32; rows sum to 1; zero where the prior O is zero.
    """
    (prior,) = tensors(area_overlap, grid, target, device=values.device)
    (log_prior,) = tensors(log_overlap, grid, target, device=values.device)
    seeds = torch.bmm(prior.mT.expand(values.shape[0], -1, -1), sizes[..., None] * values)  # (B, P, d)
    seeds = kappa * unit(seeds)  # κ goes to the smaller factor of v cᵀ
    return torch.bmm(values, seeds.mT).add_(log_prior).softmax(dim=-1)


def local_logits(values: Tensor, sizes: Tensor, grid: Grid, target: Grid, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """The same log O + κ · v cᵀ on the 3×3 cells around each token, which hold all of A, without an (N, P) matrix.

    Args:
        values: (B, N, d) unit vectors v.
        sizes: (B, N) s.
        grid: (h, w) with h·w = N.
        target: (p, q) with p·q = P.
        kappa: () gain of content over place, ≥ 0.

    Returns:
        (N, 9) int64 cells and (B, N, 9) float32 logits, −inf for cells outside of the target.
    """
    batch, n, rank = values.shape
    cells, log_prior = tensors(local_cells, grid, target, device=values.device)
    sides = tensors(seed_sides, grid, target, device=values.device)
    seeds = kappa * unit(_side_by_side(sizes[..., None] * values, grid, *sides))  # (B, P, d)
    near = seeds.index_select(1, cells.flatten()).view(-1, NEAR, rank)
    likeness = torch.bmm(near, values.reshape(-1, rank, 1)).view(batch, n, NEAR)
    return cells, likeness.add_(log_prior)


def area_mean(values: Tensor, grid: Grid, target: Grid) -> Tensor:
    """The mean of the tokens under each merged token by the area they share: (B, G, N, C) to (B, G, P, C)."""
    sides = tensors(mean_sides, grid, target, device=values.device)
    return _side_by_side(values.flatten(0, 1), grid, *sides).unflatten(0, values.shape[:2])


def _side_by_side(values: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ_k (R_k ⊗ C_k) values with (p·k, h) R and (q, k·w) C: (B, h·w, C) to (B, p·q, C)."""
    batch, _, channels = values.shape
    values = values.reshape(batch, grid[0], -1)
    by_rows = torch.bmm(rows.to(values.dtype).expand(batch, -1, -1), values)  # (B, p·k, w·C)
    by_rows = by_rows.view(-1, columns.shape[1], channels)  # (B·p, k·w, C)
    both = torch.bmm(columns.to(values.dtype).expand(by_rows.shape[0], -1, -1), by_rows)  # (B·p, q, C)
    return both.view(batch, -1, channels)


def _least_totals() -> np.ndarray:
    """(H + 1, 1) what the weights of a merged token per head, and its size, are at least."""
    return np.array([[EMPTY_TOTAL]] * HEADS + [[EMPTY_SIZE]])


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Masks and sizes are computed in float32, whatever runs around them."""
    wanted = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if wanted else nullcontext()


def any_of(empty: Tensor) -> bool:
    """Whether some merged token is empty; taken for granted where to ask is to wait for a GPU, or a tracer watches."""
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return watched or empty.device.type != "cpu" or bool(empty.any())


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
            The assignment, and (B, H, N) weights w > 0; float32.
        """
        # The mask sees the tokens but does not train them: a sharp softmax into Z harms the backbone.
        content = tokens.detach().float()
        content = content.mean(dim=1) if tokens.shape[1] > 1 else content.squeeze(1)
        content = F.layer_norm(content, content.shape[-1:])
        values = unit(content @ self.directions)
        # Few rows times a wide matrix: several times as fast on a CPU as the tokens times few columns.
        log_weights = torch.bmm(self.importance.mT.expand(content.shape[0], -1, -1), content.mT)
        weights = sizes[:, None] * log_weights.clamp(-IMPORTANCE_LIMIT, IMPORTANCE_LIMIT).exp()
        if self.form == "soft":
            return SoftAssignment(soft_shares(values, sizes, grid, target, self._gain())), weights
        if self.form == "matched":
            return self._matched(values, sizes, token_count(target)), weights
        cells, logits = local_logits(values, sizes, grid, target, self._gain())
        choice = logits.argmax(dim=-1, keepdim=True)  # (B, N, 1)
        position = cells.expand(choice.shape[0], -1, -1).gather(2, choice).squeeze(-1)
        gate = None
        if logits.requires_grad:
            # One, but with the gradient of the logarithm of the share: what gains from the choice makes it surer.
            best = logits.softmax(dim=-1).gather(2, choice).squeeze(-1)
            gate = best / best.detach()
        return HardAssignment(position, token_count(target), gate), weights

    def _gain(self) -> Tensor:
        """κ ≥ 0, with the gradient of the identity: a κ that a step took below zero can come back."""
        gain = self.kappa.clamp_min(0)
        return self.kappa + (gain - self.kappa).detach() if torch.is_grad_enabled() else gain

    def _matched(self, values: Tensor, sizes: Tensor, count: int) -> HardAssignment:
        """The assignment by matching (B, N, d) unit vectors v, whatever the grid."""
        position = match(values.detach(), sizes, count, normed=True)
        if not values.requires_grad:
            return HardAssignment(position, count)
        # What chose is not differentiable: as a stand-in, how surely a token's likeness to its merged token joins it.
        seeds, _ = average(values[:, None], sizes, HardAssignment(position, count))
        own = HardAssignment(position, count).spread(unit(seeds))[:, 0]
        sure = (self._gain() * (values * own).sum(dim=-1)).sigmoid()
        return HardAssignment(position, count, sure / sure.detach())

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """X̃_p = Σ_n A_np w_n Z_n / Σ_n A_np w_n per head, sizes Aᵀ s; arguments as in `MergeOperator`."""
        with full_precision(tokens.device):
            assignment, w = self.assign(tokens, sizes, grid, target)
            totals = assignment.collect_few(torch.cat((w, sizes[:, None]), dim=1))  # (B, H + 1, P)
            (least,) = tensors(_least_totals, device=tokens.device)
            totals, merged_sizes = totals.clamp(min=least).split_with_sizes((HEADS, 1), dim=1)
        weighted = tokens.unflatten(-1, (HEADS, -1)) * w.mT[:, None, ..., None].to(tokens.dtype)
        summed = assignment.collect(weighted.flatten(-2))
        merged = summed.unflatten(-1, (HEADS, -1)) / totals.mT[:, None, ..., None]
        merged = merged.flatten(-2).to(summed.dtype)
        if self.fills_empty and self.form == "hard":
            empty = totals[:, :1, :, None] <= EMPTY_TOTAL
            if any_of(empty):
                merged = torch.where(empty, area_mean(tokens, grid, target).to(merged.dtype), merged)
        return Merge(tokens=merged, sizes=merged_sizes.squeeze(1), assignment=assignment)

    def on_backbone_weights_loaded(self) -> None:
        """Where the start was left open, cluster by content from now on."""
        if self._start == "auto":
            with torch.no_grad():
                self.kappa.fill_(CONTENT_GAIN)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Norm (4 per element) and projection; then seeds, logits and the weighted sums of the form.

        Where empty merged tokens are filled, as if some were empty in every image.
        """
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
