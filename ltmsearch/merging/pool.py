"""The place prior alone, as a baseline: area pooling onto the smaller grid, weighted by size."""

from dataclasses import dataclass

from torch import Tensor

from ltmsearch.grid import Grid
from ltmsearch.merging.operator import Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.prior import prior_matrix
from ltmsearch.schedule import Form


@dataclass(frozen=True)
class PlaceAssignment:
    """Tokens are shared out by place alone, alike in every image."""

    prior: Tensor
    """(N, P), rows sum to 1."""

    def collect(self, values: Tensor) -> Tensor:
        """See `Assignment.collect`."""
        # (B, G, C, N) @ (N, P): the larger operand first, which is the one that fvcore counts.
        return (values.transpose(2, 3) @ self.prior.to(values.dtype)).transpose(2, 3)

    def spread(self, values: Tensor) -> Tensor:
        """See `Assignment.spread`."""
        return (values.transpose(2, 3) @ self.prior.to(values.dtype).transpose(0, 1)).transpose(2, 3)


@register_operator
class PoolMerging(MergeOperator):
    """X̃_p = Σ_n O_np s_n Z_n / Σ_n O_np s_n with the area overlap O; nothing is learned."""

    name = "pool"
    forms = ("soft",)

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge; arguments as in `MergeOperator`."""
        prior = prior_matrix(grid, target, tokens.device)
        assignment = PlaceAssignment(prior)
        merged_sizes = sizes @ prior  # (B, P)
        summed = assignment.collect(tokens * sizes[:, None, :, None].to(tokens.dtype))
        merged = summed / merged_sizes[:, None, :, None].to(summed.dtype)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """The weighted sum of the tokens and the sizes."""
        return shape.groups * shape.n * shape.p * shape.dim + shape.n * shape.p

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """One product with the prior per group."""
        return shape.groups * shape.n * shape.p * shape.dim
