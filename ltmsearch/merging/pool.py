"""Area pooling onto the smaller grid, weighted by size: the spatial prior alone, as a baseline."""

from torch import Tensor

from ltmsearch.merging.assignment import SoftAssignment
from ltmsearch.merging.constants import constant_tensors
from ltmsearch.merging.matching import average
from ltmsearch.merging.operator import Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.prior import area_overlap
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.schedule import Form


@register_operator
class PoolMerging(MergeOperator):
    """X̃_p = Σ_n O_np s_n Z_n / Σ_n O_np s_n with the area overlap O; nothing is learned."""

    name = "pool"
    forms = ("soft",)
    grid_forms = ("soft",)

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        (prior,) = constant_tensors(area_overlap, grid, target, device=tokens.device)
        assignment = SoftAssignment(prior.expand(tokens.shape[0], -1, -1))  # the same in every image
        merged, merged_sizes = average(tokens, sizes, assignment)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """The weighted sum of the tokens and the sizes."""
        return shape.n * shape.p * (shape.groups * shape.dim + 1 + shape.carried)

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """One product with the prior per group."""
        return shape.groups * shape.n * shape.p * shape.dim
