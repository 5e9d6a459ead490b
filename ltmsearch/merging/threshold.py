"""Adaptive Token Merging: tokens that are alike enough merge, so that each image keeps as many as it needs.

From Erak et al., 2025 (https://arxiv.org/abs/2509.09955), which gives neither its measure of likeness nor its matching:
here the cosine of the keys of all heads, and one round of ToMe's bipartite matching (https://arxiv.org/abs/2210.09461).
Merged tokens keep the mean length of their tokens.

In a batch the images keep different numbers of tokens. Those that exist stand first; the places behind them are empty:
their size is 0, so that attention, which adds the logarithm of the size, pooling and further merges pass over them. A
batch has as many places as its largest image needs: a single image has no empty ones.

Shapes: B images, N places, P places afterwards, H heads with keys of C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from ltmsearch.errors import InputError
from ltmsearch.merging.assignment import HardAssignment
from ltmsearch.merging.constants import exporting
from ltmsearch.merging.matching import length, similarity
from ltmsearch.merging.operator import Merge, MergeOperator, MergeShape, register_operator
from ltmsearch.merging.precision import full_precision
from ltmsearch.schedules.grid import Grid
from ltmsearch.schedules.grid import tokens as token_count
from ltmsearch.schedules.schedule import Form

NO_PROGRAM = (
    "a network that merges by threshold cannot be exported: how many tokens it keeps depends on the image, and a "
    "program has fixed shapes; export a schedule of another operator, or run the network in PyTorch"
)
_counting: ContextVar[bool] = ContextVar("counting", default=False)


@contextmanager
def counting() -> Iterator[None]:
    """Inside, a traced network is one whose operations are counted for the image at hand, and not a program."""
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)


@register_operator
class ThresholdMerging(MergeOperator):
    """One round of bipartite matching per layer, without weights; `keep_ratio` is the threshold, in (0, 1]."""

    name = "threshold"
    forms = ("matched",)
    keyed_forms = ("matched",)
    adaptive = True

    @classmethod
    def target(cls, grid: Grid, keep_ratio: float, form: Form, *, needs_grid: bool = False) -> Grid:
        """The fewest tokens that a merge can leave, on no grid: half of them, rounded down, but at least one."""
        n = token_count(grid)
        return grid if keep_ratio == 1 or n == 1 else (n // 2,)

    def forward(self, tokens: Tensor, sizes: Tensor, grid: Grid, target: Grid, keys: Tensor | None = None) -> Merge:
        if keys is None:
            raise ValueError("`keys` must be given: thresholds apply to attention keys.")
        traced = torch.jit.is_tracing() and not _counting.get()  # type: ignore[attr-defined]
        if traced or exporting():
            raise InputError(NO_PROGRAM)
        with full_precision(tokens.device):
            position, counts = join_alike(keys.detach().flatten(2), sizes > 0, self.keep_ratio)
            # Reading a tensor would break the graph of `torch.compile`, which keeps all places instead.
            count = sizes.shape[1] if torch.compiler.is_compiling() else int(counts.max())
            assignment = HardAssignment(position, count)
            merged, merged_sizes = mean_at_length(tokens.float(), sizes, assignment)
        return Merge(tokens=merged.to(tokens.dtype), sizes=merged_sizes, assignment=assignment)

    @staticmethod
    def merge_macs(shape: MergeShape, form: Form) -> int:
        """Key similarities of one round, also where nothing merges."""
        return ((shape.n + 1) // 2) * (shape.n // 2) * shape.heads * shape.key_dim

    @staticmethod
    def unmerge_macs(shape: MergeShape, form: Form) -> int:
        """Unmerging by index counts zero."""
        return 0


def mean_at_length(tokens: Tensor, sizes: Tensor, assignment: HardAssignment) -> tuple[Tensor, Tensor]:
    """Size-weighted means of (B, G, N, D) float32 tokens, scaled to the mean length of their tokens, and their sizes.

    A mean is shorter than what it is of, and norms make up for that with what is not alike in it
    (https://arxiv.org/abs/2312.01026). Places without a token are zero.
    """
    merged_sizes = assignment.collect_few(sizes[:, None])  # (B, 1, P)
    share = 1 / merged_sizes.clamp_min(1)
    mean = assignment.collect(tokens * sizes[:, None, :, None]) * share[..., None]
    lengths = assignment.collect_few(length(tokens)[..., 0] * sizes[:, None]) * share  # (B, G, P)
    return mean * (lengths[..., None] / length(mean)), merged_sizes[:, 0]


def join_alike(keys: Tensor, exists: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Join each token at an even position with the most alike one at an odd position, if they are alike enough.

    Args:
        keys: (B, N, C).
        exists: (B, N) bool; in each image those that exist stand first.
        threshold: Least cosine of two tokens that join, in (0, 1].

    Returns:
        (B, N) int64: the new place of every token, in the old order; (B,) int64: number of tokens that remain. What
        does not exist is sent to the last of them, to which it adds its size of zero.
    """
    pairs = similarity(keys).masked_fill(~exists[:, None, 1::2], -torch.inf)
    best, partner = pairs.max(dim=-1)
    joins = (best >= threshold) & exists[:, 0::2]
    stays = exists.clone()
    stays[:, 0::2] &= ~joins
    position = stays.cumsum(dim=1).sub_(1)
    odd = position[:, 1::2].gather(1, partner)
    position[:, 0::2] = torch.where(joins, odd, position[:, 0::2])
    return position.clamp_min_(0), stays.sum(dim=1)
