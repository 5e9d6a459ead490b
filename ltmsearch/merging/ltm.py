"""The Learnable Token Merging operator in its three forms.

LTM's mask module is an unrolled gradient step on IBB, a separable upper bound of the information-bottleneck loss
("Efficient Visual Transformer by Learnable Token Merging", Wang & Yang, 2024, https://arxiv.org/abs/2407.15219). The
gradient with respect to the mask has the form ∇G_np = ⟨Z_n, R_p⟩; the module starts from a spatial prior and takes a
step in a learned direction of that form, at rank d.

The *soft* form distributes each token over merged tokens, by two products with an (N, P) mask. The *hard* form sends it
to the one with the largest share, by index, without such a matrix. The *matched* form ignores the grid: it joins the
most similar tokens, as ToMe does, but compares the keys of all heads, learns how much each token counts, and corrects
what averaging takes from them. It works best in trained networks that do not undo merges (ViT): on a grid, different
tokens must merge because they are neighbours. All forms share their weights, so that those trained in one form work in
another.

Shapes: B images, G groups that share the mask, N tokens in, P tokens out, D channels, d mask rank, H attention heads
with keys of C channels, K = 4 parts of the channels.
"""

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltmsearch.merging.assignment import Assignment, HardAssignment, SoftAssignment
from ltmsearch.merging.constants import constant_tensors
from ltmsearch.merging.gradient import GradientStep
from ltmsearch.merging.ib_step import MaskChange
from ltmsearch.merging.matching import length, match, matching_macs, summable, unit
from ltmsearch.merging.operator import MaskStart, Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.precision import full_precision
from ltmsearch.merging.prior import area_overlap, local_cells, log_overlap, mean_sides, seed_sides
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.grid import tokens as token_count
from ltmsearch.schedules.schedule import Form

RANK = 16
"""d: width of the space in which tokens are compared with the seeds of merged tokens."""
PARTS = 4
"""K: parts of the channels with separate importance."""
IMPORTANCE_LIMIT = 4.0
"""Largest absolute log-importance: no token counts more than e⁴ times its size."""
CONTENT_GAIN = 20.0
"""Initial κ for trained backbone weights: tokens cluster by content."""
PLACE_GAIN = 1.0
"""Initial κ for training from scratch: tokens merge mostly by place."""
EMPTY_TOTAL = 1e-30
"""Total weight of an empty merged token, to avoid division by zero."""
EMPTY_SIZE = 1e-4
"""Size of an empty merged token: attention practically ignores it."""
NEAR = 9
"""Number of cells that a token can go to: the 3×3 around it."""


def soft_shares(values: Tensor, sizes: Tensor, grid: Grid, target: Grid, kappa: Tensor) -> Tensor:
    """A: the share of token n in merged token p.

        c = l2norm(Oᵀ (s·v)),   A = softmax over p of (log O + κ · v cᵀ)

    From (B, N, d) unit vectors v, (B, N) sizes s and a gain κ > 0 of content over place to (B, N, P) float32; rows sum
    to 1; zero where the prior O is zero.
    """
    (prior,) = constant_tensors(area_overlap, grid, target, device=values.device)
    (log_prior,) = constant_tensors(log_overlap, grid, target, device=values.device)
    seeds = torch.bmm(prior.transpose(-2, -1).expand(values.shape[0], -1, -1), sizes[..., None] * values)  # (B, P, d)
    seeds = kappa * unit(seeds)  # κ goes to the smaller factor of v cᵀ
    return torch.bmm(values, seeds.transpose(-2, -1)).add_(log_prior).softmax(dim=-1)


def local_logits(values: Tensor, sizes: Tensor, grid: Grid, target: Grid, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """log O + κ · v cᵀ on the 3×3 cells around each token, where A is not zero; arguments as in `soft_shares`.

    Returns:
        (N, 9) int64 cells and (B, N, 9) float32 logits, −inf for cells outside of the target.
    """
    batch, n, rank = values.shape
    cells, log_prior = constant_tensors(local_cells, grid, target, device=values.device)
    sides = constant_tensors(seed_sides, grid, target, device=values.device)
    seeds = kappa * unit(_separable_product(sizes[..., None] * values, grid, *sides))  # (B, P, d)
    near = seeds.index_select(1, cells.flatten()).view(-1, NEAR, rank)
    similarity = torch.bmm(near, values.reshape(-1, rank, 1)).view(batch, n, NEAR)
    return cells, similarity.add_(log_prior)


def area_mean(values: Tensor, grid: Grid, target: Grid) -> Tensor:
    """The mean of the tokens under each merged token by the area they share: (B, G, N, C) to (B, G, P, C)."""
    sides = constant_tensors(mean_sides, grid, target, device=values.device)
    batch, groups, _, channels = values.shape
    return _separable_product(values.flatten(0, 1), grid, *sides).view(batch, groups, token_count(target), channels)


def _separable_product(values: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Σ_k (R_k ⊗ C_k) values with (p·k, h) R and (q, k·w) C: (B, h·w, C) to (B, p·q, C)."""
    batch, _, channels = values.shape
    values = values.reshape(batch, grid[0], grid[1] * channels)
    by_rows = torch.bmm(rows.to(values.dtype).expand(batch, -1, -1), values)  # (B, p·k, w·C)
    by_rows = by_rows.view(-1, columns.shape[1], channels)  # (B·p, k·w, C)
    both = torch.bmm(columns.to(values.dtype).expand(by_rows.shape[0], -1, -1), by_rows)  # (B·p, q, C)
    p = rows.shape[0] * grid[1] // columns.shape[1]  # k divides out
    return both.view(batch, p * columns.shape[0], channels)


def _minimum_totals() -> np.ndarray:
    """(K + 1, 1) lower limits of the total weight per part and of the size."""
    return np.array([[EMPTY_TOTAL]] * PARTS + [[EMPTY_SIZE]])


def _learns(values: Tensor) -> bool:
    """Whether gradients flow to the mask; not in a traced program, which has none."""
    return values.requires_grad and torch.is_grad_enabled() and not torch.jit.is_tracing()  # type: ignore[attr-defined]


def _content(tokens: Tensor) -> Tensor:
    """What masks see of (B, G, N, D) tokens, (B, N, D): the mean of the groups, which share a mask.

    Detached: gradients of a sharp softmax harm the backbone.
    """
    content = tokens.detach().float()
    return content.mean(dim=1) if tokens.shape[1] > 1 else content[:, 0]


def any_empty(empty: Tensor) -> bool:
    """Whether a merged token is empty; assumed if the answer needs a synchronisation with a GPU, or when tracing."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return traced or empty.device.type != "cpu" or bool(empty.any())


def _matched(keys: Tensor | None, sizes: Tensor, count: int) -> HardAssignment:
    """Assignment by matching (B, N, H, C) keys."""
    if keys is None:
        raise ValueError("`keys` must be given: the matched form compares attention keys.")
    return HardAssignment(match(keys.detach().flatten(2), sizes, count), count)


@register_operator
class LearnableTokenMerging(MergeOperator):
    """The elastic mask module: V (D, d) and κ decide which tokens merge by place, u (D, K) how much each counts.

    With κ → 0 and u = 0 its soft form is area pooling, the operator `pool`. The matched form compares tokens by the
    cosine of their keys, and corrects what averaging takes from them: see `_length_correction` and `_grown`.

    Args:
        dim: D, divisible by `PARTS`.
        start: Initial mask.

    Raises:
        ValueError: If `dim` cannot be divided into heads.
    """

    name = "ltm"
    forms = ("soft", "hard", "matched", "gradient")
    grid_forms = ("soft", "hard", "gradient")
    keyed_forms = ("matched",)
    step_forms = ("gradient",)

    def __init__(self, dim: int, start: MaskStart = "auto") -> None:
        super().__init__(dim, start)
        if dim % PARTS or dim < RANK:
            raise ValueError(f"`dim` must be a multiple of {PARTS} and at least {RANK}, but got {dim=}.")
        self.dim = dim
        self._start = start
        # The same orthonormal start in every layer and run, from a generator of its own.
        directions = torch.randn(dim, RANK, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        self.directions = nn.Parameter(torch.linalg.qr(directions)[0].contiguous())
        self.importance = nn.Parameter(torch.zeros(dim, PARTS))
        self.log_gain = nn.Parameter(torch.tensor(log(CONTENT_GAIN if start == "content" else PLACE_GAIN)))
        self.length_power = nn.Parameter(torch.tensor(0.0))
        self.scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.step = GradientStep(dim)

    def no_weight_decay(self) -> set[str]:
        step = {f"step.{name}" for name, _ in self.step.named_parameters()}
        return {"importance", "log_gain", "length_power", "scale", "shift"} | step

    def assign(
        self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None
    ) -> tuple[Assignment, Tensor]:
        """Assignment and (B, K, N) weights w > 0 of (B, G, N, D) tokens with (B, N) sizes; float32.

        The groups share both: they are computed from the mean of the groups. `keys`: (B, N, H, C), in the matched form.
        """
        content = F.layer_norm(_content(tokens), (self.dim,))
        # Few rows, contiguous, times a wide matrix: several times as fast on a CPU as the tokens times few columns.
        rows = self.importance.float().transpose(-2, -1).contiguous()
        log_weights = torch.bmm(rows.expand(content.shape[0], -1, -1), content.transpose(-2, -1))
        weights = sizes[:, None] * log_weights.clamp(-IMPORTANCE_LIMIT, IMPORTANCE_LIMIT).exp()
        if self.form == "matched":
            return _matched(keys, sizes, token_count(target)), weights
        values = unit(content @ self.directions.float())
        if self.form == "soft":
            return SoftAssignment(soft_shares(values, sizes, grid, target, self._gain())), weights
        cells, logits = local_logits(values, sizes, grid, target, self._gain())
        choice = logits.argmax(dim=-1, keepdim=True)  # (B, N, 1)
        position = cells.expand(choice.shape[0], -1, -1).gather(2, choice)[..., 0]
        gate = None
        if _learns(logits):
            # One, but with the gradient of the logarithm of the share: a helpful choice becomes more certain.
            best = logits.softmax(dim=-1).gather(2, choice)[..., 0]
            gate = best / best.detach()
        return HardAssignment(position, token_count(target), gate), weights

    def _gain(self) -> Tensor:
        """κ > 0."""
        return self.log_gain.float().exp()

    def _length_correction(
        self, part_lengths: Tensor, values: Tensor, sizes: Tensor, merged_sizes: Tensor, assignment: Assignment
    ) -> Tensor:
        """(B, G, P, 1) factor of the merged tokens that gives back length.

        A mean m of different vectors is shorter than they are. Kim et al., "Token Fusion" (2023,
        https://arxiv.org/abs/2312.01026), give it their mean length ℓ. Here the factor (ℓ / ‖m‖)^ρ has a learned power
        ρ, which starts at 1 where merges are never undone, else at 0.

        Args:
            part_lengths: (B, G, P, K) lengths of the parts of the merged tokens, whose length is ‖m‖.
        """
        token_lengths = length(values.float())[..., 0]  # (B, G, N)
        mean = assignment.collect_few(token_lengths * sizes[:, None]) / merged_sizes
        return (mean[..., None] / length(part_lengths)) ** self.length_power.float()

    def _grown(self, merged: Tensor, merged_sizes: Tensor) -> Tensor:
        """X̃ = m (1 + a log s) + b log s: (B, G, P, D) merged tokens m of sizes s, (B, 1, P).

        The scale a and the shift b per channel, which start at zero, grow with the size of the token.
        """
        growth = merged_sizes[..., None].log()  # (B, 1, P, 1), zero for a token that has not merged
        # As m + log s (a m + b): two passes over the tokens.
        return torch.addcmul(merged, torch.addcmul(self.shift.float(), merged, self.scale.float()), growth)

    def forward(
        self,
        tokens: Tensor,
        sizes: Tensor,
        grid: Grid,
        target: Grid,
        keys: Tensor | None = None,
        change: MaskChange | None = None,
    ) -> Merge:
        """See `MergeOperator`; `change`: that of the last mask before, from which the gradient form continues."""
        if self.form == "gradient":
            merge = self._merge_by_steps(tokens, sizes, grid, target, change)
        else:
            merge = self._merge_by_weights(tokens, sizes, grid, target, keys)
        if self.training and _learns(self.log_gain):
            merge = replace(merge, tokens=self.with_all_weights(merge.tokens))  # no form uses all of them
        return merge

    def merge_from(self, change: MaskChange | None, *args: Any) -> Merge:
        return self(*args, change)

    def _merge_by_weights(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None) -> Merge:
        """X̃_p = Σ_n A_np w_n Z_n / Σ_n A_np w_n per part, sizes Aᵀ s."""
        with full_precision(tokens.device):
            assignment, w = self.assign(tokens, sizes, grid, target, keys)
            totals = assignment.collect_few(torch.cat((w, sizes[:, None]), dim=1))  # (B, K + 1, P)
            (minimum,) = constant_tensors(_minimum_totals, device=tokens.device)
            totals, merged_sizes = totals.clamp(min=minimum).split_with_sizes((PARTS, 1), dim=1)
        values = summable(tokens)
        # Parts innermost: products and norms over the few parts are much slower with strides.
        by_token = w.transpose(-2, -1).contiguous()[:, None, ..., None].to(values.dtype)  # (B, 1, N, K, 1)
        weighted = values.unflatten(-1, (PARTS, -1)) * by_token
        parts = assignment.collect(weighted.flatten(-2)).unflatten(-1, (PARTS, -1))  # (B, G, P, K, D / K)
        factors = totals.transpose(-2, -1).contiguous()[:, None].reciprocal()  # (B, 1, P, K)
        if self.form == "matched":
            part_lengths = factors * length(parts.float())[..., 0]
            factors = factors * self._length_correction(part_lengths, values, sizes, merged_sizes, assignment)
        merged = (parts * factors[..., None]).flatten(-2)
        if self.form == "matched":
            merged = self._grown(merged, merged_sizes)
        merged = merged.to(parts.dtype if values is tokens else tokens.dtype)
        if self.needs_grid and self.form == "hard":
            empty = totals[:, :1, :, None] <= EMPTY_TOTAL
            if any_empty(empty):
                merged = torch.where(empty, area_mean(tokens, grid, target).to(merged.dtype), merged)
        return Merge(tokens=merged, sizes=merged_sizes[:, 0], assignment=assignment)

    def _merge_by_steps(
        self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, change: MaskChange | None
    ) -> Merge:
        """X̃ = Gᵀ Z with the mask after a step; sizes and unmerge by the shares of each token."""
        with full_precision(tokens.device):
            mask, shares, change = self.step(_content(tokens), sizes, grid, target, change)
            # Not as a product, which fvcore counts only where the sizes are used.
            merged_sizes = (shares * sizes[..., None]).sum(dim=1)
        values = summable(tokens)
        merged = SoftAssignment(mask).collect(values)
        merged = merged if values is tokens else merged.to(tokens.dtype)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=SoftAssignment(shares), change=change)

    def on_backbone_weights_loaded(self) -> None:
        """With `start="auto"`, cluster by content from now on."""
        if self._start == "auto":
            with torch.no_grad():
                self.log_gain.fill_(log(CONTENT_GAIN))

    def on_merges_stay(self) -> None:
        """Start with the mean length of the tokens: measured as worth it only here."""
        with torch.no_grad():
            self.length_power.fill_(1.0)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Norm (4 per element) and projection; then seeds, logits and the weighted sums of the form.

        Filling of empty merged tokens is counted as if every image had some.
        """
        n, p, d = shape.n, shape.p, shape.dim
        if form == "gradient":
            return GradientStep.macs(n, p, d) + n * p * (shape.groups * d + shape.carried)
        mask = 4 * n * d + n * d * PARTS
        if form == "matched":
            return mask + matching_macs(n, p, shape.heads * shape.key_dim)
        mask += n * d * RANK
        if form == "soft":
            return mask + 2 * n * p * RANK + shape.groups * n * p * d + n * p * (PARTS + 1 + shape.carried)
        separable = shape.target[0] * n + p * shape.grid[1]  # rows first, then columns; per channel
        mask += 2 * RANK * separable + n * NEAR * RANK
        return mask + (shape.groups * d * separable if shape.needs_grid else 0)

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """One product A (X̃_out − X̃_in) per group; by index it counts zero."""
        return shape.groups * shape.n * shape.p * shape.dim if form in ("soft", "gradient") else 0
