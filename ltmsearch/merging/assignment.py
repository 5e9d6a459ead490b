"""Assignments of tokens to merged tokens, and how values are carried there and back.

Shapes: B images, G groups that share the assignment, N tokens in, P tokens out, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ltmsearch.merging.constants import exporting


class Assignment(Protocol):
    """Carries values from tokens to merged tokens and back: the shares A (N, P) of each token in each merged token."""

    def collect(self, values: Tensor) -> Tensor:
        """Aᵀ · values: (B, G, N, C) to (B, G, P, C)."""
        ...

    def collect_few(self, values: Tensor) -> Tensor:
        """The same for few numbers per token, transposed: (B, C, N) to (B, C, P)."""
        ...

    def spread(self, values: Tensor) -> Tensor:
        """A · values: (B, G, P, C) to (B, G, N, C), a new tensor."""
        ...


@dataclass(frozen=True)
class SoftAssignment:
    """Each token is distributed over merged tokens, by matrix products."""

    shares: Tensor
    """(B, N, P), rows sum to 1."""

    def collect(self, values: Tensor) -> Tensor:
        return _by_image(self.shares.transpose(-2, -1), values)

    def collect_few(self, values: Tensor) -> Tensor:
        # Few rows times A: four times as fast on a CPU as Aᵀ times few columns (5 of them, 100 of 196 tokens).
        return torch.bmm(values, self.shares.to(values.dtype))

    def spread(self, values: Tensor) -> Tensor:
        return _by_image(self.shares, values)


@dataclass(frozen=True)
class HardAssignment:
    """Each token goes to a single merged token, by index, without an N×P matrix.

    Exported programs use products with a one-hot matrix instead: not all runtimes support scatters with reduction.
    """

    position: Tensor
    """(B, N) int64, the merged token of each token."""
    count: int
    """P."""
    gate: Tensor | None = None
    """(B, N) ones that carry the gradient to the choice of position; None without gradient."""

    def collect(self, values: Tensor) -> Tensor:
        values = _gated(self.gate, values, -2)
        if exporting():
            return _by_image(self._one_hot(values.dtype).transpose(-2, -1), values)
        batch, groups, _, channels = values.shape
        # Whole rows at a time: ten times as fast on a CPU as a scatter along dimension 2 (100 of 196 tokens).
        total = values.new_zeros(batch * groups * self.count, channels)
        total.index_add_(0, _rows(self.position, groups, self.count), values.reshape(-1, channels))
        return total.view(batch, groups, self.count, channels)

    def collect_few(self, values: Tensor) -> Tensor:
        values = _gated(self.gate, values, -1)
        if exporting():
            return torch.bmm(values, self._one_hot(values.dtype))
        total = values.new_zeros(*values.shape[:2], self.count)
        return total.scatter_add_(2, self.position[:, None].expand_as(values), values)

    def spread(self, values: Tensor) -> Tensor:
        if exporting():
            out = _by_image(self._one_hot(values.dtype), values)
        else:
            batch, groups, _, channels = values.shape
            rows = values.reshape(-1, channels).index_select(0, _rows(self.position, groups, self.count))
            out = rows.view(batch, groups, self.position.shape[1], channels)
        return _gated(self.gate, out, -2)

    def _one_hot(self, dtype: torch.dtype) -> Tensor:
        return F.one_hot(self.position, self.count).to(dtype)


@dataclass(frozen=True)
class Selection:
    """Some tokens stay, alone and in their order; the others are dropped: their rows of A are zero."""

    kept: Tensor
    """(B, P) int64 numbers of the tokens that stay, in ascending order."""
    count: int
    """N."""
    shares: Tensor | None = None
    """(B, N) shares in (0, 1) whose gradient the choice has; None without gradient."""

    def pick(self, values: Tensor) -> Tensor:
        """(B, G, N, C) values of the tokens that stay, (B, G, P, C), without the gradient of the choice."""
        batch, groups, _, channels = values.shape
        if exporting():
            return values.gather(2, self._index(groups, channels))
        rows = values.reshape(-1, channels).index_select(0, _rows(self.kept, groups, self.count))
        return rows.view(batch, groups, self.kept.shape[1], channels)

    def collect(self, values: Tensor) -> Tensor:
        return _gated(self._gate(), self.pick(values), -2)

    def collect_few(self, values: Tensor) -> Tensor:
        return _gated(self._gate(), values.gather(2, self.kept[:, None].expand(-1, values.shape[1], -1)), -1)

    def spread(self, values: Tensor) -> Tensor:
        values = _gated(self._gate(), values, -2)
        batch, groups, _, channels = values.shape
        if exporting():
            zeros = values.new_zeros(batch, groups, self.count, channels)
            return zeros.scatter(2, self._index(groups, channels), values)
        zeros = values.new_zeros(batch * groups * self.count, channels)
        rows = zeros.index_copy_(0, _rows(self.kept, groups, self.count), values.reshape(-1, channels))
        return rows.view(batch, groups, self.count, channels)

    def left_out(self) -> Tensor:
        """(B, N) float32: 1 for the tokens that do not stay, else 0."""
        ones = torch.ones(self.kept.shape[0], self.count, device=self.kept.device)
        return ones.scatter_(1, self.kept, 0.0)

    def _gate(self) -> Tensor | None:
        """(B, P) ones with the gradient of the logarithm of the share."""
        if self.shares is None:
            return None
        shares = self.shares.gather(1, self.kept)
        return shares / shares.detach()

    def _index(self, groups: int, channels: int) -> Tensor:
        return self.kept[:, None, :, None].expand(-1, groups, -1, channels)


@dataclass(frozen=True)
class PartialSelection:
    """Every token stays, alone and in its place, by a share of itself: a relaxed `Selection`. N = P."""

    shares: Tensor
    """(B, N) in (0, 1)."""

    def collect(self, values: Tensor) -> Tensor:
        return _gated(self.shares, values, -2)

    def collect_few(self, values: Tensor) -> Tensor:
        return _gated(self.shares, values, -1)

    def spread(self, values: Tensor) -> Tensor:
        return _gated(self.shares, values, -2)


def _by_image(matrix: Tensor, values: Tensor) -> Tensor:
    """Product of each image's (B, M, K) matrix with the (B, G, K, C) values of its groups."""
    batch, groups, _, channels = values.shape
    matrix = matrix.to(values.dtype)
    if groups > 1:
        matrix = matrix[:, None].expand(-1, groups, -1, -1).flatten(0, 1)
    return torch.bmm(matrix, values.flatten(0, 1)).view(batch, groups, matrix.shape[1], channels)


def rows_by_image(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Rows of values, the same ones of each image: (…, C) with `count` rows per image and (M,) int64 to (B·M, C)."""
    channels = values.shape[-1]
    if exporting():
        return values.reshape(-1, count, channels).index_select(1, index).reshape(-1, channels)
    values = values.reshape(-1, channels)  # whole rows at a time, as in `HardAssignment.collect`
    return values.index_select(0, _rows(index.expand(values.shape[0] // count, -1), 1, count))


def _rows(index: Tensor, groups: int, count: int) -> Tensor:
    """(B, M) numbers among the `count` tokens of one group to (B·G·M,) rows among those of all images and groups."""
    batch = index.shape[0]
    if batch * groups == 1:
        return index[0]
    starts = torch.arange(0, batch * groups * count, count, device=index.device)
    return (starts.view(batch, groups, 1) + index[:, None]).flatten()


def _gated(gate: Tensor | None, values: Tensor, dim: int) -> Tensor:
    """(B, G, M, C) values times a (B, M) gate, or (B, C, M) if the tokens are the last dimension."""
    if gate is None:
        return values
    gate = gate[:, None].to(values.dtype)
    return values * (gate if dim == -1 else gate[..., None])
