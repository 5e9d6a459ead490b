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
    """Carries values from tokens to merged tokens and back."""

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
        values = self._gated(values, -2)
        if exporting():
            return _by_image(self._one_hot(values.dtype).transpose(-2, -1), values)
        batch, groups, _, channels = values.shape
        # Whole rows at a time: ten times as fast on a CPU as a scatter along dimension 2 (100 of 196 tokens).
        total = values.new_zeros(batch * groups * self.count, channels)
        total.index_add_(0, self._rows(groups), values.reshape(-1, channels))
        return total.view(batch, groups, self.count, channels)

    def collect_few(self, values: Tensor) -> Tensor:
        values = self._gated(values, -1)
        if exporting():
            return torch.bmm(values, self._one_hot(values.dtype))
        total = values.new_zeros(*values.shape[:2], self.count)
        return total.scatter_add_(2, self.position[:, None].expand_as(values), values)

    def spread(self, values: Tensor) -> Tensor:
        if exporting():
            out = _by_image(self._one_hot(values.dtype), values)
        else:
            batch, groups, _, channels = values.shape
            rows = values.reshape(-1, channels).index_select(0, self._rows(groups))
            out = rows.view(batch, groups, self.position.shape[1], channels)
        return self._gated(out, -2)

    def _gated(self, values: Tensor, dim: int) -> Tensor:
        if self.gate is None:
            return values
        gate = self.gate[:, None].to(values.dtype)
        return values * (gate if dim == -1 else gate[..., None])

    def _rows(self, groups: int) -> Tensor:
        """(B·G·N,) row of each token's merged token among those of all images and groups."""
        batch = self.position.shape[0]
        if batch * groups == 1:
            return self.position[0]
        starts = torch.arange(0, batch * groups * self.count, self.count, device=self.position.device)
        return (starts.view(batch, groups, 1) + self.position[:, None]).flatten()

    def _one_hot(self, dtype: torch.dtype) -> Tensor:
        return F.one_hot(self.position, self.count).to(dtype)


def _by_image(matrix: Tensor, values: Tensor) -> Tensor:
    """Product of each image's (B, M, K) matrix with the (B, G, K, C) values of its groups."""
    batch, groups, _, channels = values.shape
    matrix = matrix.to(values.dtype)
    if groups > 1:
        matrix = matrix[:, None].expand(-1, groups, -1, -1).flatten(0, 1)
    return torch.bmm(matrix, values.flatten(0, 1)).view(batch, groups, matrix.shape[1], channels)
