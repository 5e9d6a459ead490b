"""Token Merging (ToMe, https://arxiv.org/abs/2210.09461) as a baseline: bipartite soft matching on attention keys.

Tokens are compared by the mean of the heads' keys, as published.
"""

from torch import Tensor

from ltmsearch.merging.assignment import HardAssignment
from ltmsearch.merging.matching import average, match, matching_macs
from ltmsearch.merging.operator import Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.grid import tokens as token_count
from ltmsearch.schedules.schedule import Form


@register_operator
class BipartiteSoftMatching(MergeOperator):
    """ToMe's operator, without weights."""

    name = "tome"
    forms = ("matched",)
    keyed_forms = ("matched",)

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        if keys is None:
            raise ValueError("`keys` must be given: ToMe matches attention keys.")
        count = token_count(target)
        assignment = HardAssignment(match(keys.detach().mean(dim=2), sizes, count), count)
        merged, merged_sizes = average(tokens, sizes, assignment)
        return Merge(tokens=merged, sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Key similarities of every round."""
        return matching_macs(shape.n, shape.p, shape.key_dim)

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """Unmerging by index counts zero."""
        return 0
