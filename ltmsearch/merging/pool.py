"""The place prior alone, as a baseline: area pooling onto the smaller grid, weighted by size."""

from torch import Tensor

from ltmsearch.grid import Grid
from ltmsearch.merging.operator import Merge, MergeOperator, register_operator
from ltmsearch.merging.prior import prior_matrix


@register_operator
class PoolMerging(MergeOperator):
    """X̃_p = Σ_n O_np s_n Z_n / Σ_n O_np s_n with the area overlap O; nothing is learned.

    Args:
        dim: D; not used, every operator is built alike.
        content_gain: Not used: there is no content in this operator.
    """

    name = "pool"

    def __init__(self, dim: int, content_gain: float = 0.0) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        """Merge; arguments as in `MergeOperator`."""
        prior = prior_matrix(grid, target, tokens.device)
        merged_sizes = sizes @ prior  # (B, P)
        prior = prior.to(tokens.dtype)
        # (B, G, D, N) @ (N, P): the larger operand first, which is the one that fvcore counts.
        summed = (tokens * sizes[:, None, :, None].to(tokens.dtype)).transpose(2, 3) @ prior
        merged = (summed / merged_sizes[:, None, None].to(summed.dtype)).transpose(2, 3)
        return Merge(
            tokens=merged,
            sizes=merged_sizes,
            spread=lambda change: (change.transpose(2, 3) @ prior.transpose(0, 1)).transpose(2, 3),
        )

    @staticmethod
    def merge_macs(n: int, p: int, *, dim: int, key_dim: int, groups: int) -> int:
        """The weighted sum of the tokens and the sizes."""
        return groups * n * p * dim + n * p

    @staticmethod
    def unmerge_macs(n: int, p: int, *, dim: int, groups: int) -> int:
        """One product with the prior per group."""
        return groups * n * p * dim
